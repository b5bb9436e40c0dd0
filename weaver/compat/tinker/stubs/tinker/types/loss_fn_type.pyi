from weaver.compat.tinker.types.names import *
