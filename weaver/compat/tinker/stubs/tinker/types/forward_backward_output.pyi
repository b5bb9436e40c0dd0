from weaver.compat.tinker.types.forward_backward import *
