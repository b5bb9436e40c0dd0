from weaver.compat.tinker.lib.public_interfaces.backcompat_training_client_future import *
