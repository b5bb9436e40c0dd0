"""Protobuf passes: right ones built field by field from the schema, and what can be wrong with one."""

from dataclasses import dataclass

import numpy as np
import zstandard
from hypothesis import strategies as st

from tests.fuzz.world import PROTOBUF, Asked
from weaver.compat.tinker import messages

VOCABULARY = 97
LOSSES = {
    "cross_entropy": ("weights",),
    "importance_sampling": ("logprobs", "advantages"),
    "ppo": ("logprobs", "advantages"),
    "cispo": ("logprobs", "advantages"),
    "dro": ("logprobs", "advantages"),
    "no_such_loss": ("weights",),
}
finite = st.floats(-3, 3, width=32)
any_float = st.floats(width=32)
extents = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 2**31, 2**62, 2**63 - 1])
raw_bytes = st.binary(max_size=40)


@st.composite
def right(draw, losses=tuple(LOSSES)):
    """A pass that can be computed, but for its model and number, which are put in when it is sent."""
    message = messages.ForwardBackwardRequest(loss_fn=draw(st.sampled_from(losses)), forward_only=draw(st.booleans()))
    for _ in range(draw(st.integers(1, 3))):
        add_datum(message, draw(st.integers(1, 6)), draw)
    if message.loss_fn == "dro":
        message.loss_fn_config_v2["beta"].number = draw(finite)
    return message


def add_datum(message, length, draw):
    datum = message.data.add()
    tokens = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=2 * length, max_size=2 * length))
    datum.model_input.add().encoded_text.tokens = np.array(tokens[:length], "<i4").tobytes()
    dense(datum.loss_fn_inputs["target_tokens"], np.array(tokens[length:], "<i8"))
    for name in LOSSES[message.loss_fn]:
        values = np.array(draw(st.lists(finite, min_size=length, max_size=length)), "<f4")
        if message.loss_fn == "cross_entropy" and draw(st.booleans()):
            sparse(datum.loss_fn_inputs[name], values)
            datum.loss_fn_inputs["target_tokens"].shape[:] = [length, 1]
        else:
            dense(datum.loss_fn_inputs[name], values)


def dense(tensor, array):
    tensor.dtype, tensor.dense = {"f": 1, "i": 2}[array.dtype.kind], array.tobytes()
    tensor.shape.extend(array.shape)


def sparse(tensor, values):
    """A column as compressed sparse rows."""
    tensor.dtype, rows = 1, np.flatnonzero(values)
    tensor.shape.extend([len(values), 1])
    tensor.sparse_csr.values = values[rows].tobytes()
    tensor.sparse_csr.crow_indices = np.searchsorted(rows, np.arange(len(values) + 1)).astype("<i8").tobytes()
    tensor.sparse_csr.col_indices = np.zeros(len(rows), "<i8").tobytes()


@st.composite
def wrong(draw):
    """A right pass with one to three fields of it changed, at any depth."""
    message = draw(right())
    for _ in range(draw(st.integers(1, 3))):
        change(draw, draw(st.sampled_from(list(everything(message)))))
    return message


def everything(message):
    """Each message inside, itself first."""
    yield message
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None or (not field.is_repeated and not message.HasField(field.name)):
            continue
        value = getattr(message, field.name)
        if not field.is_repeated:
            yield from everything(value)
        elif not field.message_type.GetOptions().map_entry:
            for one in value:
                yield from everything(one)
        elif field.message_type.fields_by_name["value"].message_type is not None:
            for key in sorted(value):
                yield from everything(value[key])


def change(draw, message):
    """One field set to something odd."""
    field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    value = getattr(message, field.name)
    if field.name in ("model_id", "seq_id"):
        return
    if field.is_repeated and field.message_type is None:
        value[:] = draw(st.lists(extents, max_size=4) | st.just([1] * 70))
    elif field.is_repeated and field.message_type.GetOptions().map_entry:
        change_map(draw, field, value)
    elif field.is_repeated:
        value.add() if draw(st.booleans()) else value.__delitem__(slice(None))
    elif field.message_type is not None:
        value.SetInParent()
    else:
        setattr(message, field.name, draw(scalar(field)))


def change_map(draw, field, value):
    key = draw(st.sampled_from(["weights", "target_tokens", "beta", "loss_id", "", "é" * 50, "logprobs"]))
    if field.message_type.fields_by_name["value"].message_type is None:
        value[key] = draw(any_float)
    elif key in value and draw(st.booleans()):
        del value[key]
    else:
        value[key].SetInParent()


def scalar(field):
    """Any value of a field's type."""
    kinds = {
        field.TYPE_BYTES: raw_bytes,
        field.TYPE_STRING: st.text(max_size=20),
        field.TYPE_BOOL: st.booleans(),
        field.TYPE_ENUM: st.sampled_from([0, 1, 2, 3, 4, 5, -1, 2**31 - 1]),
        field.TYPE_DOUBLE: any_float,
        field.TYPE_INT64: extents,
        field.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        field.TYPE_UINT32: st.integers(0, 2**32 - 1),
    }
    return kinds[field.type]


def oversized(name, shape):
    """A few bytes that declare a very large tensor."""
    message = messages.ForwardBackwardRequest(loss_fn="cross_entropy")
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.zeros(3, "<i4").tobytes()
    dense(datum.loss_fn_inputs["target_tokens"], np.zeros(3, "<i8"))
    tensor = datum.loss_fn_inputs[name]
    tensor.Clear()
    tensor.dtype = 1
    tensor.shape.extend(shape)
    tensor.sparse_csr.crow_indices = np.zeros(min(shape[0], 5) + 1, "<i8").tobytes()
    return message


OVERSIZED = [oversized("weights", shape) for shape in ([3, 2**40], [2**40, 3], [3, 2**25], [0, 2**62], [4, 2**24])]
BOMBS = [
    zstandard.ZstdCompressor().compress(bytes(2**26)),
    zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**26)),
    b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8,
    b"\x28\xb5\x2f\xfd",
]
"""zstd frames: 64 MiB of zeros with and without their size told, 2^64 bytes declared, and the first word alone."""
HUGE_LENGTHS = [
    b"\x1a\xff\xff\xff\xff\x0f",
    b"\x1a" + b"\xff" * 9 + b"\x01",
    b"\x0a\x80\x80\x80\x80\x08x",
    b"\x07",
    b"\x1b" * 200,
]
UNKNOWN_FIELDS = [b"\xf8\x07\x01", b"\x7a\x01x", b"\xf9\x07" + bytes(8)]


@dataclass(frozen=True)
class Body:
    """A body that is written when it is sent, for then the model and its next number are known."""

    message: object
    model_id: str | None
    seq_id: int | None
    damage: str
    place: float
    junk: bytes
    packed: bool

    def __call__(self, model_id, next_number):
        message = messages.ForwardBackwardRequest()
        message.CopyFrom(self.message)
        message.model_id = model_id if self.model_id is None else self.model_id
        message.seq_id = next_number if self.seq_id is None else self.seq_id
        raw = message.SerializeToString()
        at = int(self.place * len(raw))
        match self.damage:
            case "cut":
                raw = raw[:at]
            case "flip":
                raw = raw[:at] + self.junk[:1] + raw[at + 1 :]
            case "more":
                raw += self.junk
            case "noise" | "bomb":
                return self.junk
        packed = zstandard.ZstdCompressor().compress(raw) if self.packed else raw
        return packed[: int(self.place * len(packed))] if self.damage == "cut frame" else packed

    def __repr__(self):
        told = f"{self.damage} {self.place} {self.junk[:50]!r} {self.packed=} {self.model_id=} {self.seq_id=}"
        return f"{told}\n{self.message}"


@st.composite
def passes(draw, of):
    """Requests for a route that reads protobuf: whole ones and damaged ones."""
    damage = draw(st.sampled_from(["whole"] * 7 + ["cut", "flip", "more", "noise", "bomb", "cut frame"]))
    junk = {"more": st.sampled_from(HUGE_LENGTHS + UNKNOWN_FIELDS), "bomb": st.sampled_from(BOMBS)}
    body = Body(
        draw(of),
        draw(st.sampled_from([None] * 9 + ["", "nobody:train:0"])),
        draw(st.sampled_from([None] * 12 + [0, -1, 2**31 - 1])),
        damage,
        draw(st.floats(0, 0.999)),
        draw(junk.get(damage, st.binary(min_size=1, max_size=40))),
        damage == "cut frame" or draw(st.booleans()),
    )
    kind = draw(st.sampled_from([PROTOBUF] * 9 + [f"{PROTOBUF}; charset=x", "application/octet-stream"]))
    encoding = (("content-encoding", "zstd"),) if body.packed or damage == "bomb" else ()
    return Asked("POST", "/api/v1/forward_backward", headers=(("content-type", kind), *encoding), body=body)
