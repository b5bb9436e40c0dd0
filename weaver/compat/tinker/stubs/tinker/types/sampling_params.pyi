from weaver.compat.tinker.types.sampling import *
