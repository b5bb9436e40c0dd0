"""Passes of this wire as the service's, and what is done to their inputs on the way.

- Whole numbers become floats where a loss reads floats: this SDK sends `weights=[0, 1, 1]` as int64.
- A target of -100 does not count: its token becomes 0, and what weighs it becomes 0; its row of a sampling mask, empty.
- A sampling mask is a list of token ids for each target, not an array.
- `enable_debug_dump` false means nothing and is dropped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from weaver.compat.weaver_wire.errors import NotOffered
from weaver.compat.weaver_wire.tensors import loss_input, number, prompt_ids, token_rows
from weaver.domain import Array, Datum, ForwardBackward, TokenRows
from weaver.errors import InvalidInput
from weaver.loss import SAMPLING_MASK, TARGET_TOKENS, Loss

IGNORED_TARGET: Final = -100
MASK: Final = "loss_mask"
WEIGHTS: Final = ("weights", MASK, "advantages", "surrogate_weights")
"""The inputs of which each weighs a target alone: 0 takes it out of the loss."""
_NO_REPLAY: Final = "this server has no router replay; leave it out"
_NO_REFERENCES: Final = (
    f"this server keeps no sampling masks to refer to; send the rows themselves as loss_fn_inputs[{SAMPLING_MASK!r}]"
)
_REFUSED_METADATA: Final = {
    "router_replay": _NO_REPLAY,
    "sampling_mask_ref": _NO_REFERENCES,
    "sampling_mask_refs": _NO_REFERENCES,
    "sampling_mask_positions": _NO_REFERENCES,
    "sampling_mask_slice": _NO_REFERENCES,
}
_MISSPELT_MASK: Final = "sampling_masks"


@dataclass(frozen=True, slots=True, eq=False)
class AskedPass:
    """A pass, and what its answer needs: each datum's id, and which of its targets did not count."""

    operation: ForwardBackward
    datum_ids: tuple[str | None, ...]
    ignored: tuple[Array | None, ...]

    @property
    def without_data(self) -> "AskedPass":
        """All that the answer is made of, to keep with the result."""
        return replace(self, operation=replace(self.operation, data=()))


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
    arrays = {str(name): _input(str(name), value, where) for name, value in inputs.items() if name != SAMPLING_MASK}
    mask = _sampling_mask(inputs, where)
    ignored = _take_ignored(arrays, where, loss)
    if mask is not None and ignored is not None:
        mask = _without(mask, ignored)
    return Datum(tokens, _as_declared(arrays, loss), sampling_mask=mask), datum_id, ignored


def _check_metadata(metadata: object, where: str) -> None:
    if not isinstance(metadata, Mapping):
        raise InvalidInput(f"{where}.metadata must be an object")
    for name, why in _REFUSED_METADATA.items():
        if name in metadata:
            raise NotOffered(f"{where}.metadata[{name!r}]: {why}")


def _input(name: str, value: object, where: str) -> Array:
    field = f"{where}.loss_fn_inputs[{name!r}]"
    if name == _MISSPELT_MASK:
        raise NotOffered(f"{field} is not read; a datum's rows of token ids are called {SAMPLING_MASK!r}")
    return loss_input(value, field)


def _sampling_mask(inputs: Mapping[str, object], where: str) -> TokenRows | None:
    if SAMPLING_MASK not in inputs:
        return None
    return token_rows(inputs[SAMPLING_MASK], f"{where}.loss_fn_inputs[{SAMPLING_MASK!r}]")


def _without(mask: TokenRows, ignored: Array) -> TokenRows:
    """The rows of ignored targets emptied: they say nothing of the token that stands there now."""
    if ignored.shape != (len(mask),):  # refused at the service's door
        return mask
    kept_c = np.logical_not(ignored[mask.rows_c])
    lengths = np.where(ignored, 0, np.diff(mask.starts))
    return TokenRows(np.cumsum([0, *lengths], dtype=np.int64), mask.tokens_c[kept_c])


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
