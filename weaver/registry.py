"""Finds plugins, names culprits, and catalogs their records by name.

Strict about contracts (a duplicate name, an unknown hook, a wrong argument: refuse to start, naming both sides);
patient with imports (a plugin that fails to import is remembered, and named when something it may have had is missed).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Protocol, TypeVar

import pluggy

from weaver import hookspecs
from weaver.backend import BackendFactory
from weaver.errors import PluginBroken, UnknownName
from weaver.loss import Loss
from weaver.sampler import SamplerFactory

GROUP = "weaver"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Record = TypeVar("Record", bound=_Named)


@dataclass(frozen=True, slots=True)
class FailedPlugin:
    """An installed plugin that could not be imported, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Registry:
    """Every record that the installed plugins yield, by name."""

    losses: Mapping[str, Loss]
    backends: Mapping[str, BackendFactory]
    samplers: Mapping[str, SamplerFactory]
    failed: tuple[FailedPlugin, ...] = ()

    def loss(self, name: str) -> Loss:
        return self._look_up("loss", name, self.losses)

    def backend(self, name: str) -> BackendFactory:
        return self._look_up("backend", name, self.backends)

    def sampler(self, name: str) -> SamplerFactory:
        return self._look_up("sampler", name, self.samplers)

    def _look_up(self, kind: str, name: str, records: Mapping[str, Record]) -> Record:
        if name in records:
            return records[name]
        message = f"there is no {kind} {name!r}; there are: {', '.join(sorted(records)) or 'none'}"
        for failed in self.failed:
            message += f". The plugin {failed.name} is installed but could not be imported: {failed.reason}"
        raise UnknownName(message)


def load_registry(disabled: Iterable[str] = (), found: Iterable[EntryPoint] | None = None) -> Registry:
    """Load every plugin of the entry-point group `weaver` but the disabled ones."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    failed, sources = [], {}
    for entry_point in _unique(entry_points(group=GROUP) if found is None else found):
        label = _label(entry_point)
        if entry_point.name in disabled or label in disabled:
            continue
        try:
            module = entry_point.load()
        except Exception as error:  # noqa: BLE001 -- an import may raise anything; it is remembered and told
            failed.append(FailedPlugin(label, f"{type(error).__name__}: {error}"))
            continue
        sources[label] = module
        _register(manager, module, label)
    return Registry(
        losses=_collect("loss", Loss, "weaver_losses", sources),
        backends=_collect("backend", BackendFactory, "weaver_backends", sources),
        samplers=_collect("sampler", SamplerFactory, "weaver_samplers", sources),
        failed=tuple(failed),
    )


def _unique(found: Iterable[EntryPoint]) -> list[EntryPoint]:
    """The entry points, refusing one name in two packages: pluggy would ignore the second silently."""
    by_name: dict[str, EntryPoint] = {}
    for entry_point in found:
        other = by_name.setdefault(entry_point.name, entry_point)
        if other.value != entry_point.value:
            raise PluginBroken(
                f"two packages have an entry point {entry_point.name!r}: {_label(other)} and {_label(entry_point)}. "
                "Uninstall one, or name one in WEAVER_DISABLE_PLUGINS."
            )
    return list(by_name.values())


def _label(entry_point: EntryPoint) -> str:
    if entry_point.dist is None:
        return entry_point.value
    if entry_point.dist.name == "weaver-train":
        return entry_point.value
    return f"{entry_point.dist.name} {entry_point.dist.version}"


def _register(manager: pluggy.PluginManager, module: ModuleType, label: str) -> None:
    """Let pluggy check the hooks' names and arguments, and say whose they are when they are wrong."""
    try:
        manager.register(module, name=label)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginBroken(f"the plugin {label} breaks the contract in weaver.hookspecs: {error}") from error


def _collect(
    kind: str, record_type: type[Record], hook: str, sources: Mapping[str, ModuleType]
) -> Mapping[str, Record]:
    records: dict[str, Record] = {}
    owners: dict[str, str] = {}
    for label, module in sources.items():
        implementation = getattr(module, hook, None)
        for record in _yielded(implementation, hook, label) if implementation is not None else ():
            if not isinstance(record, record_type):
                raise PluginBroken(f"{label}: {hook} yielded {record!r}, not a {record_type.__name__}")
            if record.name in records:
                raise PluginBroken(
                    f"two plugins register the {kind} {record.name!r}: {owners[record.name]} and {label}. "
                    "Uninstall one, or name one in WEAVER_DISABLE_PLUGINS."
                )
            records[record.name], owners[record.name] = record, label
    return records


def _yielded(implementation: Callable[[], Iterable[object]], hook: str, label: str) -> list[object]:
    try:
        return list(implementation())
    except Exception as error:
        raise PluginBroken(f"{label}: {hook} raised {type(error).__name__}: {error}") from error
