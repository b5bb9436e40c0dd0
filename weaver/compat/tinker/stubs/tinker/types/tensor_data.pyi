from weaver.compat.tinker.types.tensor_data import *
