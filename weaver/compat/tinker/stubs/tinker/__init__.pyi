from weaver.compat.tinker import *
from weaver.compat.tinker import __title__ as __title__
from weaver.compat.tinker import __version__ as __version__
from weaver.compat.tinker import auth as auth
from weaver.compat.tinker import install as install
from weaver.compat.tinker import types as types
