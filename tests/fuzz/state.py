"""All that a server remembers, as one value that can be compared: rows, files, lanes, weights, futures.

Left out, because they may move whatever is asked: when sessions and models were last heard of (`Leases`,
`last_requests`), when results were last asked for, and `usage`, which is written down in the background.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import numpy as np
import sqlalchemy as sa

from weaver.store import metadata

MOVING = {"last_requests", "usage"}


def state_of(service, rows, data_dir):
    """Everything by name."""
    return {
        "rows": rows.read(),
        "files": files_of(data_dir),
        "models": dict(service._training._models),
        "lanes": {name: lanes_of(engine) for name, engine in service._base_models._engines.items()},
        "backends": {name: backend_of(engine) for name, engine in service._base_models._engines.items()},
        "futures": sorted(service._futures._kept),
        "losses": sorted(service._losses._made),
        "samplers": sorted(service._sampling._created),
        "samples": sorted(service._sampling._seen),
        "leases": sorted(service.sessions._leases._heard),
    }


def differences(before, after):
    """What differs, part by part: empty for equal states. Numbers that were given up are told as such."""
    told = []
    for part in before:
        told += [] if _same(before[part], after[part]) else [f"{part}: {_told(before[part], after[part])}"]
    return told


class Rows:
    """The rows of every table, read again only when somebody has written."""

    def __init__(self, service):
        self._connection = service._store.engine.connect()
        self._version, self._rows = None, {}

    def read(self):
        version = self._connection.execute(sa.text("PRAGMA data_version")).scalar_one()
        if version != self._version:
            self._version = version
            self._rows = {table.name: self._of(table) for table in metadata.sorted_tables if table.name not in MOVING}
        return self._rows

    def close(self):
        self._connection.close()

    def _of(self, table):
        return sorted(repr(tuple(row)) for row in self._connection.execute(sa.select(table)))


def files_of(data_dir):
    """Every file of the data directory but the database's, which `Rows` reads."""
    return {
        str(file.relative_to(data_dir)): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in data_dir.rglob("*")
        if file.is_file() and not file.name.startswith("weaver.sqlite")
    }


def lanes_of(engine):
    return {
        model_id: (sorted(lane._waiting), sorted(lane._accepted), lane.ended, repr(lane.failure))
        for model_id, lane in engine._lanes.items()
    }


def numbers_of(service):
    """By model, the numbers that are here or given up: all below the first, and the others."""
    engines = service._base_models._engines.values()
    lanes = [pair for engine in engines for pair in list(engine._lanes.items())]
    return {model_id: (lane._next, lane._waiting.keys() | lane._tombstones) for model_id, lane in lanes}


def numbers_taken(before, after):
    """How many numbers of one model are taken now that were not before."""
    (low, ahead), (high, more) = before, after
    return len((set(range(low, high)) | {one for one in more if one >= low}) - ahead)


def first_free(numbers):
    """The first number that is neither here nor given up."""
    free, ahead = numbers
    while free in ahead:
        free += 1
    return free


def backend_of(engine):
    """A digest of every model's weights, gradients and optimizer."""
    backend = engine._executor._opened
    return {} if backend is None else {name: digest(model) for name, model in backend._models.items()}


def digest(model):
    found = hashlib.blake2b(digest_size=16)
    for part in _parts(model, set()):
        found.update(part)
    return found.hexdigest()


def _parts(value, seen):
    """The arrays and numbers inside a value, in order."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, int | float | str | None):
        yield repr(value).encode()
    elif id(value) in seen or type(value).__name__ == "BaseModel":
        return
    else:
        seen.add(id(value))
        for part in _inside(value):
            yield from _parts(part, seen)


def _inside(value):
    if isinstance(value, Mapping):
        return [one for pair in value.items() for one in pair]
    if isinstance(value, list | tuple | set):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    if type(value).__module__.startswith("torch.optim"):
        return [value.state]
    return list(getattr(value, "__dict__", {}).values())


def _same(before, after):
    return before == after


def _told(before, after):
    if isinstance(before, Mapping):
        keys = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
        return {key: _told(before.get(key), after.get(key)) for key in sorted(keys, key=str)}
    if isinstance(before, list) and isinstance(after, list):
        return {"gone": [one for one in before if one not in after], "new": [one for one in after if one not in before]}
    return f"{before!r} -> {after!r}"
