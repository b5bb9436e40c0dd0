from weaver.compat.tinker.exceptions import *
