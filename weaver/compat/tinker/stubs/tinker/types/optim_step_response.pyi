from weaver.compat.tinker.types.optimizer import *
