"""Where a backend lives: in this process, or in processes of its own. Whoever has it open does not see which."""

from collections.abc import Iterable

from weaver.backend import Backend, BackendFactory, ModelSource
from weaver.workers.group import Ended, Group
from weaver.workers.group_backend import GroupBackend
from weaver.workers.messages import Begin


def open_backend(factory: BackendFactory, source: ModelSource, disabled_plugins: Iterable[str] = ()) -> Backend:
    """The backend of `factory`, open; `source` has its options. Processes of its own leave out the disabled plugins."""
    if factory.processes is None:
        return factory.open(source)
    begin, ranks = Begin(factory.name, source, frozenset(disabled_plugins)), factory.processes(source.options)

    def start(ended: Ended) -> Group:
        return Group(begin, ranks, ended)

    return GroupBackend(start)


__all__ = ["GroupBackend", "open_backend"]
