"""One piece of training data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from json import dumps
from numbers import Real
from typing import Any, Final
from uuid import uuid4

import numpy as np

from weaver.types.datasets import WEAVER_REDACTED_TOKEN_ID, SampleRef, datum_id
from weaver.types.model_input import ModelInput
from weaver.types.tensor import TensorData, array, tensor

NO_TARGET: Final = -100
_NUMBERS: Final = {int, float, bool}
_KEEPERS_INPUTS: Final = frozenset({"model_input", "target_tokens", "loss_mask", "weights"})
"""What whoever keeps a sample says of it, and nobody else."""


@dataclass(slots=True)
class Datum:
    """Tokens, or a kept sample's name, with what a loss reads beside them.

    Loss inputs become tensors (arrays where torch is not installed); lists of lists of different lengths stay lists.
    """

    model_input: ModelInput | None = None
    loss_fn_inputs: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    sample_ref: SampleRef | None = None
    datum_id: str | None = None

    def __post_init__(self) -> None:
        if (self.model_input is None) == (self.sample_ref is None):
            raise ValueError("Datum requires exactly one of model_input or sample_ref")
        if self.is_sample_ref and self.datum_id is None:
            self.datum_id = f"d-{uuid4().hex}"
        if self.datum_id is not None:
            self.datum_id = datum_id(self.datum_id)
        self.loss_fn_inputs = {name: self._taken(value) for name, value in self.loss_fn_inputs.items()}
        self._check()

    def _taken(self, value: Any) -> Any:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        return value if _is_jagged(value) or (self.is_sample_ref and is_number) else tensor(value)

    def _check(self) -> None:
        """Raises ValueError for targets that are no tokens, and for what a sample's keeper says of it."""
        given = sorted(_KEEPERS_INPUTS & self.loss_fn_inputs.keys())
        if self.is_sample_ref and given:
            raise ValueError(f"sample-ref Datum cannot provide server-owned loss inputs: {', '.join(given)}")
        targets = self.loss_fn_inputs.get("target_tokens")
        if targets is None:
            return
        found = array(targets)
        wrong = found[(found < 0) & (found != NO_TARGET)]
        if (wrong == WEAVER_REDACTED_TOKEN_ID).any():
            raise ValueError("redacted -8 tokens are response-only and cannot be targets")
        if wrong.size:
            raise ValueError("target_tokens may not contain negative token IDs other than -100")

    @property
    def kind(self) -> str:
        """token or sample_ref."""
        return "sample_ref" if self.is_sample_ref else "token"

    @property
    def is_sample_ref(self) -> bool:
        """Whether it names a kept sample."""
        return self.sample_ref is not None

    def to_payload(self) -> dict[str, object]:
        """As JSON has it."""
        return message(self, listed=True)

    @classmethod
    def from_raw(
        cls,
        *,
        model_input: ModelInput,
        loss_fn_inputs: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        datum_id: str | None = None,
    ) -> "Datum":
        """Of tokens, with dictionaries of its own."""
        return cls(model_input, dict(loss_fn_inputs), dict(metadata or {}), datum_id=datum_id)

    @classmethod
    def from_sample_ref(
        cls,
        *,
        dataset: str,
        version: str,
        sample_idx: int,
        loss_fn_inputs: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        datum_id: str | None = None,
    ) -> "Datum":
        """Of a sample that the service keeps."""
        ref = SampleRef(dataset, version, sample_idx)
        return cls(None, dict(loss_fn_inputs or {}), dict(metadata or {}), ref, datum_id)

    def with_loss_fn_inputs(self, updates: Mapping[str, Any] | None = None, **named_updates: Any) -> "Datum":
        """A copy with more, or other, loss inputs."""
        inputs = {**self.loss_fn_inputs, **(updates or {}), **named_updates}
        return Datum(self.model_input, inputs, dict(self.metadata), self.sample_ref, self.datum_id)

    def tensors(self) -> dict[str, TensorData]:
        """The loss inputs that are tensors, as they travel."""
        dense = {name: value for name, value in self.loss_fn_inputs.items() if hasattr(value, "shape")}
        return {name: TensorData.from_array(value) for name, value in dense.items()}


def message(datum: Datum, *, listed: bool) -> dict[str, object]:
    """What a service reads: tokens and loss inputs are arrays of their own, or lists where they are `listed`.

    Everything is checked again: dictionaries and lists are the user's to change.
    """
    datum._check()
    made: dict[str, object] = {} if datum.datum_id is None else {"datum_id": datum.datum_id}
    if datum.sample_ref is not None:
        made |= {"kind": "sample_ref", **datum.sample_ref.to_payload()}
    elif datum.model_input is not None:
        chunks = [chunk.to_dict() for chunk in datum.model_input.chunks]
        if not listed:
            chunks = [{**chunk, "tokens": np.array(chunk["tokens"], np.int64)} for chunk in chunks]
        made["model_input"] = {"chunks": chunks}
    made["loss_fn_inputs"] = {
        name: _input(name, value, datum, listed=listed) for name, value in datum.loss_fn_inputs.items()
    }
    return made | ({"metadata": dict(datum.metadata)} if datum.metadata else {})


def _input(name: str, value: Any, datum: Datum, *, listed: bool) -> object:
    if datum.is_sample_ref and isinstance(value, Real):
        return value
    if _is_jagged(value):
        return value
    found = array(value)
    made = {"data": found.tolist() if listed else found, "dtype": str(found.dtype)}
    return made | ({"shape": list(found.shape)} if datum.is_sample_ref else {})


def identified(data: Sequence[Datum]) -> list[Datum]:
    """The data as they are sent: when one has an id, every one gets one. Raises ValueError for an id twice.

    An id that is made up depends on the others' ids and on its place, never on tokens.
    """
    found = list(data)
    known = [(index, datum.datum_id) for index, datum in enumerate(found) if datum.datum_id is not None]
    if not known:
        return found
    seen: set[str | None] = set()
    for index, one in known:
        if one in seen:
            raise ValueError(f"datum {index}: duplicate datum_id {one!r}")
        seen.add(one)
    anchor = dumps(known)
    for index, datum in enumerate(found):
        if datum.datum_id is None:
            digest = sha256(f"{anchor}/{index}".encode()).hexdigest()
            found[index] = Datum(
                datum.model_input, dict(datum.loss_fn_inputs), dict(datum.metadata), datum_id=f"d-mixed-{digest}"
            )
    return found


def _is_jagged(value: Any) -> bool:
    """Lists of different lengths, or lists beside numbers: no tensor has that shape."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or set(map(type, value)) <= _NUMBERS:
        return False
    lengths = {len(item) if isinstance(item, Sequence) and not isinstance(item, str) else None for item in value}
    return len(lengths) > 1
