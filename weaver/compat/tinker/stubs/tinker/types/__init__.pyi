from weaver.compat.tinker.types import *
