from weaver.compat.tinker.types.sample_response import *
