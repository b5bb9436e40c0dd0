from weaver.compat.tinker.lib.public_interfaces.backcompat_sampling_client_future import *
