"""What is checked of the tokens that a datum's targets were drawn among, as at the door.

Shapes: T targets, c tokens of all rows.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from weaver.backend import BackendFactory
from weaver.domain import Datum, ForwardBackward, IntArray, ModelFacts, TokenRows
from weaver.errors import InvalidInput
from weaver.loss import SAMPLING_MASK, TARGET_TOKENS, Loss

EMPTY: Final = "an empty row, as for tokens of a prompt, means that its target was drawn among all tokens"


def check_arrays(where: str, datum: Datum, loss: Loss) -> None:
    """Raises InvalidInput for a mask that came as an array, where no loss would read it as rows."""
    if SAMPLING_MASK in datum.loss_fn_inputs and SAMPLING_MASK not in {one.name for one in loss.inputs}:
        raise InvalidInput(
            f"{_field(where)} is an array; a sampling mask is a list of token ids for each target, which only Weaver's "
            "own protocol has. Leave it out, or train by `from weaver import ServiceClient`"
        )


def check_mask(where: str, datum: Datum, facts: ModelFacts, loss: Loss) -> None:
    """Raises InvalidInput for a mask that is not one of this datum's targets; there may be none."""
    mask, targets = datum.sampling_mask, datum.loss_fn_inputs[TARGET_TOKENS]
    if mask is None:
        return
    field = _field(where)
    if not loss.sampling_masks:
        raise InvalidInput(f"{field} is not read by the loss {loss.name!r}, which knows of no sampling masks")
    if targets.ndim != 1:
        raise InvalidInput(
            f"{field} needs target_tokens of shape (T,), one target per token; here it has shape {targets.shape}"
        )
    if len(mask) != len(targets):
        raise InvalidInput(
            f"{field} has {len(mask)} rows, and target_tokens has {len(targets)} tokens; give a row for each: {EMPTY}"
        )
    wrong_c = (mask.tokens_c < 0) | (mask.tokens_c >= facts.vocabulary_size)
    if wrong_c.any():
        row, token = _first(mask, wrong_c)
        raise InvalidInput(
            f"{field}[{row}] has the token {token}; token ids of {facts.name!r} go from 0 to "
            f"{facts.vocabulary_size - 1}"
        )
    _check_repeats(field, mask, facts)
    _check_targets(field, mask, targets.astype(np.int64))


def check_offered(operation: ForwardBackward, backend: BackendFactory) -> None:
    """Raises InvalidInput for a mask that the backend would not heed."""
    for index, datum in enumerate(operation.data):
        if datum.sampling_mask is not None and not backend.sampling_masks:
            raise InvalidInput(
                f"{_field(f'data[{index}]')}: this server's backend, {backend.name!r}, computes probabilities over "
                "the whole vocabulary only; leave it out"
            )


def _check_repeats(field: str, mask: TokenRows, facts: ModelFacts) -> None:
    cells_c = mask.rows_c * facts.vocabulary_size + mask.tokens_c
    if (np.diff(cells_c) > 0).all():  # rows in ascending order, as samplers tell them
        return
    cells_c.sort()
    repeated = np.flatnonzero(np.diff(cells_c) == 0)
    if repeated.size:
        row, token = divmod(int(cells_c[repeated[0]]), facts.vocabulary_size)
        raise InvalidInput(f"{field}[{row}] has the token {token} more than once; name each token of a row once")


def _check_targets(field: str, mask: TokenRows, targets_T: IntArray) -> None:
    rows_c = mask.rows_c
    lacking_T = np.diff(mask.starts) > 0
    lacking_T[rows_c[mask.tokens_c == targets_T[rows_c]]] = False
    if lacking_T.any():
        row = int(np.flatnonzero(lacking_T)[0])
        raise InvalidInput(
            f"{field}[{row}] lacks {int(targets_T[row])}, the target at [{row}], whose probability would be 0; a row "
            f"must have its target, and {EMPTY}"
        )


def _first(mask: TokenRows, wrong_c: NDArray[np.bool_]) -> tuple[int, int]:
    cell = int(np.flatnonzero(wrong_c)[0])
    return int(mask.rows_c[cell]), int(mask.tokens_c[cell])


def _field(where: str) -> str:
    return f"{where}.loss_fn_inputs[{SAMPLING_MASK!r}]"
