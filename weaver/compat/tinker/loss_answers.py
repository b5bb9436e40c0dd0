"""The record of a loss as JSON. A bound that is infinite, and a default that is not there, is null; so is the role of a
config field that nobody but the loss reads."""

import math
from collections.abc import Iterable

from weaver.compat.tinker.answers import Json
from weaver.loss import ConfigField, Loss


def losses(records: Iterable[Loss]) -> Json:
    return {"losses": [loss(record) for record in records]}


def loss(record: Loss) -> Json:
    return {
        "name": record.name,
        "description": record.description,
        "source": record.source,
        "plugin": record.plugin,
        "batch": record.batch,
        "target_ranks": list(record.target_ranks),
        "carries_other_inputs": record.carries_others,
        "forward_only": record.forward_only,
        "sampling_masks": record.sampling_masks,
        "spellings": [list(spelling) for spelling in record.spellings],
        "inputs": [
            {
                "name": one.name,
                "dtype": one.dtype,
                "shape": one.shape,
                "optional": one.optional or one.recorded,
                "recorded": one.recorded,
                "description": one.description,
            }
            for one in record.inputs
        ],
        "config": [_config(one) for one in record.config],
        "outputs": [
            {"name": one.name, "dtype": "float32", "shape": one.shape, "description": one.description}
            for one in record.outputs
        ],
    }


def _config(one: ConfigField) -> Json:
    return {
        "name": one.name,
        "type": one.type,
        "required": one.default is None and not one.optional,
        "default": one.default,
        "minimum": _bound(one.minimum),
        "maximum": _bound(one.maximum),
        "above": _bound(one.above),
        "role": one.role or None,
        "choices": list(one.choices),
        "description": one.description,
    }


def _bound(value: float) -> float | None:
    return value if math.isfinite(value) else None
