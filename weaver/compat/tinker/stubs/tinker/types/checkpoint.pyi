from weaver.compat.tinker.types.checkpoints import *
