from weaver.compat.tinker.lib.public_interfaces.training_client import *
