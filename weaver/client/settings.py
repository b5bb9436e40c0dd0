"""Where a client's service is, and how its requests travel: arguments first, then the environment."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from weaver import config

_TRANSPORTS: Final = ("default", "http-binary")
_COMPRESSIONS: Final = ("raw", "zstd")
_MODES: Final = ("auto", "fixed", "prefer")
_CLUSTER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
MOST_CLUSTERS: Final = 32


@dataclass(frozen=True)
class Settings:
    """`base_url` None: a service in this process, which needs no key."""

    base_url: str | None
    api_key: str | None = field(repr=False)
    tensor_transport: str
    tensor_compression: str


def settings(
    base_url: str | None, api_key: str | None, tensor_transport: str | None, tensor_compression: str | None
) -> Settings:
    """Raises ValueError for a transport or a compression there is not."""
    return Settings(
        base_url=base_url or config.client_setting("WEAVER_BASE_URL"),
        api_key=api_key or config.client_setting("WEAVER_API_KEY"),
        tensor_transport=_one_of(_TRANSPORTS, tensor_transport, "WEAVER_TENSOR_TRANSPORT", "tensor transport"),
        tensor_compression=_one_of(
            _COMPRESSIONS[::-1], tensor_compression, "WEAVER_TENSOR_COMPRESSION", "tensor compression"
        ),
    )


def _one_of(known: tuple[str, ...], given: str | None, variable: str, name: str) -> str:
    """The first where nobody says."""
    chosen = given or config.client_setting(variable) or known[0]
    if chosen not in known:
        raise ValueError(f"Unsupported {name} {chosen!r}. Supported: {', '.join(sorted(known))}")
    return chosen


def scope(given: str | None, variable: str) -> str | None:
    """An organization or a project; None where it is not named or empty."""
    chosen = config.client_setting(variable) if given is None else given
    return (chosen or "").strip() or None


def poll_interval() -> float | None:
    """Seconds between polls of a server that does not wait with its answer; None: longer and longer."""
    given = config.client_setting("WEAVER_OPERATION_POLL_INTERVAL")
    if given is None:
        return None
    if not float(given) > 0:
        raise ValueError(f"WEAVER_OPERATION_POLL_INTERVAL must be positive, got {given!r}")
    return float(given)


def poll_failures() -> int:
    """How many polls may fail before an operation is given up."""
    given = config.client_setting("WEAVER_OPERATION_POLL_TRANSIENT_RETRIES") or "20"
    if not given.isdigit():
        raise ValueError(f"WEAVER_OPERATION_POLL_TRANSIENT_RETRIES must be a number from 0 on, got {given!r}")
    return int(given)


def scheduling_policy(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Where a session's work may run. Raises ValueError for anything but a mode and clusters."""
    if given is None:
        return None
    if not isinstance(given, Mapping) or set(given) - {"mode", "clusters"}:
        raise ValueError("scheduling_policy accepts only mode and clusters")
    mode, clusters = given.get("mode", "auto"), given.get("clusters", [])
    if mode not in _MODES:
        raise ValueError("scheduling_policy mode must be auto, fixed, or prefer")
    if not isinstance(clusters, list | tuple) or len(clusters) > MOST_CLUSTERS:
        raise ValueError(f"scheduling_policy clusters must be a list of at most {MOST_CLUSTERS} IDs")
    for cluster in clusters:
        if not isinstance(cluster, str) or not _CLUSTER.fullmatch(cluster):
            raise ValueError(f"Invalid scheduling cluster ID {cluster!r}")
    if len(set(clusters)) != len(clusters):
        raise ValueError("Duplicate scheduling cluster ID")
    if (mode == "fixed" and len(clusters) != 1) or (mode == "prefer" and not clusters):
        raise ValueError("fixed needs exactly one cluster; prefer needs an ordered cluster list")
    return {"mode": mode, **({"clusters": list(clusters)} if clusters else {})}
