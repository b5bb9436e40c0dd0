"""Finds plugins, names culprits, and catalogs their records by name.

Strict about contracts (a duplicate name, an unknown hook, a wrong argument: refuse to start, naming both sides);
patient with imports (a plugin that fails to import is remembered, and named when something it may have had is missed).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Final, TypeVar

import pluggy

from weaver import hookspecs
from weaver.backend import BackendFactory
from weaver.errors import PluginBroken, UnknownName
from weaver.loss import Loss
from weaver.operators import Authenticator, CheckpointStore, Observer
from weaver.sampler import SamplerFactory

GROUP: Final = "weaver"
KINDS: Final[Mapping[str, tuple[str, type[Any]]]] = {
    "weaver_losses": ("loss", Loss),
    "weaver_backends": ("backend", BackendFactory),
    "weaver_samplers": ("sampler", SamplerFactory),
    "weaver_checkpoint_stores": ("checkpoint store", CheckpointStore),
    "weaver_authenticators": ("authenticator", Authenticator),
    "weaver_observers": ("observer", Observer),
}
"""By hook: what its records are called, and their class."""
_REMEDY: Final = "Mend or uninstall it, or name it in WEAVER_DISABLE_PLUGINS."

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class FailedPlugin:
    """An installed plugin that could not be imported, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """An installed plugin: its label, its package and version, and the names it registers by hook."""

    name: str
    package: str
    version: str
    names: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Registry:
    """Every record that the installed plugins yield, by name."""

    losses: Mapping[str, Loss]
    backends: Mapping[str, BackendFactory]
    samplers: Mapping[str, SamplerFactory]
    failed: tuple[FailedPlugin, ...] = ()
    stores: Mapping[str, CheckpointStore] = field(default_factory=dict)
    authenticators: Mapping[str, Authenticator] = field(default_factory=dict)
    observers: Mapping[str, Observer] = field(default_factory=dict)
    plugins: tuple[LoadedPlugin, ...] = ()

    def loss(self, name: str) -> Loss:
        return self._look_up("loss", name, self.losses)

    def backend(self, name: str) -> BackendFactory:
        return self._look_up("backend", name, self.backends)

    def sampler(self, name: str) -> SamplerFactory:
        return self._look_up("sampler", name, self.samplers)

    def store(self, scheme: str) -> CheckpointStore:
        return self._look_up("checkpoint store", scheme, self.stores)

    def named(self, name: str) -> dict[str, Any]:
        """Every record of that name, by what it is called. Raises UnknownName listing all names there are."""
        records: dict[str, Mapping[str, Any]] = {
            "loss": self.losses,
            "backend": self.backends,
            "sampler": self.samplers,
            "checkpoint store": self.stores,
            "authenticator": self.authenticators,
            "observer": self.observers,
        }
        all_names: dict[str, Any] = {one: None for of_kind in records.values() for one in of_kind}
        self._look_up("record", name, all_names)
        return {kind: of_kind[name] for kind, of_kind in records.items() if name in of_kind}

    def _look_up(self, kind: str, name: str, records: Mapping[str, Found]) -> Found:
        if name in records:
            return records[name]
        message = f"there is no {kind} {name!r}; there are: {', '.join(sorted(records)) or 'none'}"
        for failed in self.failed:
            message += f". The plugin {failed.name} is installed but could not be imported: {failed.reason}"
        raise UnknownName(message)


def load_registry(
    disabled: Iterable[str] = (), found: Iterable[EntryPoint] | None = None, *, strict: bool = False
) -> Registry:
    """Load every plugin of the entry-point group `weaver` but the disabled ones. Where `strict`, one that cannot be
    imported raises PluginBroken."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    failed, sources = [], {}
    disabled, entry_of = frozenset(disabled), {}
    for entry_point in _unique(entry_points(group=GROUP) if found is None else found, disabled):
        label = _label(entry_point)
        label = label if label not in sources else f"{label} ({entry_point.name})"
        try:
            module = entry_point.load()
        except Exception as error:  # noqa: BLE001 -- an import may raise anything; it is remembered and told
            failed.append(_failure(label, error, strict=strict))
            continue
        sources[label], entry_of[label] = module, entry_point
        _register(manager, module, label)
    records = {hook: _collect(kind, of, hook, sources) for hook, (kind, of) in KINDS.items()}
    return Registry(
        losses={
            name: replace(loss, plugin=label)
            for label, losses in records["weaver_losses"].items()
            for name, loss in losses.items()
        },
        backends=_together(records["weaver_backends"]),
        samplers=_together(records["weaver_samplers"]),
        failed=tuple(failed),
        stores=_together(records["weaver_checkpoint_stores"]),
        authenticators=_together(records["weaver_authenticators"]),
        observers=_together(records["weaver_observers"]),
        plugins=tuple(_loaded(entry_of[label], label, records) for label in sources),
    )


def losses_for_worker(names: Iterable[str], process: str, disabled: Iterable[str] = ()) -> Mapping[str, Loss]:
    """The losses of these names, for a process that computes for a server: functions do not travel, names do.

    `process` is what messages call it, like "rank 1 on host b". Raises UnknownName naming the loss, the process and the
    remedy for a loss that its server has and its own environment has not.
    """
    registry = load_registry(disabled)
    found = {}
    for name in names:
        try:
            found[name] = registry.loss(name)
        except UnknownName as error:
            raise UnknownName(
                f"{process} has not the loss {name!r}, which the server has: {error}. Install the loss's package, in "
                "the same version, in the environment that this process runs in, and start it again."
            ) from error
    return found


def _failure(label: str, error: Exception, *, strict: bool) -> FailedPlugin:
    failure = FailedPlugin(label, f"{type(error).__name__}: {error}")
    if strict:
        raise PluginBroken(
            f"the plugin {label} could not be imported: {failure.reason}. Mend or uninstall it, name it in "
            "WEAVER_DISABLE_PLUGINS, or unset WEAVER_STRICT_PLUGINS."
        ) from error
    return failure


def _loaded(
    entry_point: EntryPoint, label: str, records: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> LoadedPlugin:
    dist = entry_point.dist
    names = {hook: tuple(by_label[label]) for hook, by_label in records.items() if by_label.get(label)}
    return LoadedPlugin(label, dist.name if dist else entry_point.value, dist.version if dist else "", names)


def _unique(found: Iterable[EntryPoint], disabled: frozenset[str]) -> list[EntryPoint]:
    """The entry points but the disabled ones, refusing one name in two packages: pluggy would ignore the second
    silently."""
    by_name: dict[str, EntryPoint] = {}
    for entry_point in found:
        if not disabled.isdisjoint(_names(entry_point)):
            continue
        other = by_name.setdefault(entry_point.name, entry_point)
        if (_label(other), other.value) != (_label(entry_point), entry_point.value):
            raise PluginBroken(
                f"two packages have an entry point {entry_point.name!r}: {_label(other)} and {_label(entry_point)}. "
                "Uninstall one, or name one in WEAVER_DISABLE_PLUGINS."
            )
    return list(by_name.values())


def _names(entry_point: EntryPoint) -> set[str]:
    """By which a plugin can be disabled: its entry point, its package with or without the version."""
    package = {entry_point.dist.name} if entry_point.dist and entry_point.dist.name != "weaver-train" else set()
    return {entry_point.name, _label(entry_point), *package}


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
        raise PluginBroken(
            f"the plugin {label} breaks the contract in weaver.hookspecs: {error}. The hooks are {', '.join(KINDS)}, "
            f"without arguments; a hook that a module imports counts as its own. {_REMEDY}"
        ) from error


def _together(by_label: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: record for records in by_label.values() for name, record in records.items()}


def _collect(
    kind: str, record_type: type[Any], hook: str, sources: Mapping[str, ModuleType]
) -> Mapping[str, dict[str, Any]]:
    """By plugin, its records by name. Raises PluginBroken for a name that there is twice."""
    owners: dict[str, str] = {}
    by_label: dict[str, dict[str, Any]] = {}
    for label, module in sources.items():
        implementation = getattr(module, hook, None)
        for record in _yielded(implementation, hook, label) if implementation is not None else ():
            if not isinstance(record, record_type):
                raise PluginBroken(f"{label}: {hook} yielded {record!r}, not a {record_type.__name__}. {_REMEDY}")
            if record.name in owners:
                raise PluginBroken(
                    f"two plugins register the {kind} {record.name!r}: {owners[record.name]} and {label}. "
                    "Uninstall one, or name one in WEAVER_DISABLE_PLUGINS."
                )
            owners[record.name] = label
            by_label.setdefault(label, {})[record.name] = record
    return by_label


def _yielded(implementation: Callable[[], Iterable[object]], hook: str, label: str) -> list[Any]:
    try:
        return list(implementation())
    except Exception as error:
        raise PluginBroken(f"{label}: {hook} raised {type(error).__name__}: {error}. {_REMEDY}") from error
