from weaver.compat.tinker.types.models import *
