"""Passes of this wire as the service's, and what is done to their inputs on the way.

- Whole numbers become floats where a loss reads floats: this SDK sends `weights=[0, 1, 1]` as int64.
- A target of -100 does not count: its token becomes 0, and what weighs it becomes 0.
- `enable_debug_dump` false means nothing and is dropped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from weaver.compat.weaver_wire.errors import NotOffered
from weaver.compat.weaver_wire.tensors import loss_input, number, prompt_ids
from weaver.domain import Array, Datum, ForwardBackward
from weaver.errors import InvalidInput
from weaver.loss import TARGET_TOKENS, Loss

IGNORED_TARGET: Final = -100
MASK: Final = "loss_mask"
WEIGHTS: Final = ("weights", MASK, "advantages", "surrogate_weights")
"""The inputs of which each weighs a target alone: 0 takes it out of the loss."""
_REFUSED_METADATA: Final = ("router_replay", "sampling_mask_ref", "sampling_mask_refs", "sampling_mask_positions",
                            "sampling_mask_slice")  # fmt: skip
_REFUSED_INPUTS: Final = ("sampling_mask", "sampling_masks")


@dataclass(frozen=True, slots=True, eq=False)
class AskedPass:
    """A pass, and what its answer needs: each datum's id, and which of its targets did not count."""

    operation: ForwardBackward
    datum_ids: tuple[str | None, ...]
    ignored: tuple[Array | None, ...]


def asked_pass(
    loss_name: str, data: Sequence[object], config: Mapping[str, Any], losses: Mapping[str, Loss], *, backward: bool
) -> AskedPass:
    """Raises InvalidInput naming the field. A loss that is not known is left to the service to refuse."""
    loss = losses.get(loss_name)
    read = [_datum(raw, f"data[{index}]", loss) for index, raw in enumerate(data)]
    operation = ForwardBackward(tuple(one[0] for one in read), loss_name, _config(config), backward)
    return AskedPass(operation, tuple(one[1] for one in read), tuple(one[2] for one in read))


def _config(given: Mapping[str, Any]) -> dict[str, float | str]:
    config = {}
    for name, value in given.items():
        if name == "enable_debug_dump" and value is False:
            continue
        config[name] = value if isinstance(value, str) else number(value, f"loss_fn_config[{name!r}]")
    return config


def _datum(raw: object, where: str, loss: Loss | None) -> tuple[Datum, str | None, Array | None]:
    if not isinstance(raw, Mapping):
        raise InvalidInput(f"{where} must be an object")
    if raw.get("kind", "token") != "token":
        raise NotOffered(f"{where}.kind is {raw['kind']!r}: this server has no managed datasets; send the tokens")
    if unread := set(raw) - {"kind", "model_input", "loss_fn_inputs", "metadata", "datum_id"}:
        raise InvalidInput(f"{where} has {', '.join(sorted(map(str, unread)))}, which this server does not read")
    _check_metadata(raw.get("metadata") or {}, where)
    datum_id, inputs = raw.get("datum_id"), raw.get("loss_fn_inputs", {})
    if not isinstance(datum_id, str | None):
        raise InvalidInput(f"{where}.datum_id must be a text")
    if not isinstance(inputs, Mapping):
        raise InvalidInput(f"{where}.loss_fn_inputs must be an object")
    tokens = prompt_ids(raw.get("model_input"), f"{where}.model_input")
    arrays = {str(name): _input(str(name), value, where) for name, value in inputs.items()}
    ignored = _take_ignored(arrays, where, loss)
    return Datum(tokens, _as_declared(arrays, loss)), datum_id, ignored


def _check_metadata(metadata: object, where: str) -> None:
    if not isinstance(metadata, Mapping):
        raise InvalidInput(f"{where}.metadata must be an object")
    for name in _REFUSED_METADATA:
        if name in metadata:
            raise NotOffered(f"{where}.metadata[{name!r}]: this server has neither sampling masks nor router replay")


def _input(name: str, value: object, where: str) -> Array:
    field = f"{where}.loss_fn_inputs[{name!r}]"
    if name in _REFUSED_INPUTS:
        raise NotOffered(f"{field}: this server has no sampling masks; train on the full distribution, without it")
    return loss_input(value, field)


def _take_ignored(arrays: dict[str, Array], where: str, loss: Loss | None) -> Array | None:
    """Replace targets of -100 by token 0 with weight 0; returns where they were, or None."""
    targets = arrays.get(TARGET_TOKENS)
    if targets is None or not (targets == IGNORED_TARGET).any():
        return None
    ignored: Array = targets == IGNORED_TARGET
    arrays[TARGET_TOKENS] = np.where(ignored, 0, targets)
    declared = {one.name for one in loss.inputs} if loss else set()
    if MASK in declared and not {MASK, "weights"} & set(arrays):
        arrays[MASK] = np.ones(targets.shape, np.float32)
    weighing = [name for name in WEIGHTS if name in declared and name in arrays]
    if not weighing and not (loss and loss.forward_only):
        raise InvalidInput(
            f"{where}.loss_fn_inputs[{TARGET_TOKENS!r}] has {IGNORED_TARGET}, and there is nothing that takes a target "
            f"out of this loss; it may be used beside one of {', '.join(WEIGHTS)} where the loss reads that"
        )
    for name in weighing:
        if arrays[name].shape == targets.shape:  # what has another is refused at the service's door
            arrays[name] = np.where(ignored, 0, arrays[name])
    return ignored


def _as_declared(arrays: Mapping[str, Array], loss: Loss | None) -> dict[str, Array]:
    """Whole numbers as floats where the loss reads floats."""
    declared = {one.name: one.dtype for one in loss.inputs} if loss else {}
    return {
        name: array.astype(np.float32) if declared.get(name) == "float32" else array for name, array in arrays.items()
    }
