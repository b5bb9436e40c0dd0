from weaver.compat.tinker.lib.public_interfaces.custom_loss import *
