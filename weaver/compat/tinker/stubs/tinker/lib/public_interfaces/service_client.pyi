from weaver.compat.tinker.lib.public_interfaces.service_client import *
