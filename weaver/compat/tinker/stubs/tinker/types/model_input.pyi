from weaver.compat.tinker.types.model_input import *
