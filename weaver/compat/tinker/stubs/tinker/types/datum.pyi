from weaver.compat.tinker.types.datum import *
