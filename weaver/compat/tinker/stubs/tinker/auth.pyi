from weaver.compat.tinker.auth import *
