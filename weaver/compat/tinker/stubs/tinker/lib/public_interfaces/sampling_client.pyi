from weaver.compat.tinker.lib.public_interfaces.sampling_client import *
