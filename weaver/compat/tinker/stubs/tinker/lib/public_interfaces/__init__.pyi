from weaver.compat.tinker.lib.public_interfaces import *
