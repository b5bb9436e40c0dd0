from weaver.compat.tinker.lib.public_interfaces.rest_client import *
