from weaver.compat.tinker.lib.retry_handler import *
