"""The losses that `check_backend` makes, as a plugin: to other processes losses go by their names."""

from weaver.hookspecs import hookimpl
from weaver.testing.bench import BROKEN, MADE


@hookimpl
def weaver_losses():
    yield from MADE
    yield from BROKEN
