from weaver.compat.tinker.lib.public_interfaces.admin_client import *
