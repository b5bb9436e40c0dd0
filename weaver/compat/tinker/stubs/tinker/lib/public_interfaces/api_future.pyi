from weaver.compat.tinker.lib.public_interfaces.api_future import *
