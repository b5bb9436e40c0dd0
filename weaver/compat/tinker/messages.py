"""The protobuf messages of Tinker's wire, built from one table.

They live in a descriptor pool of their own: the vendor's package registers the same names in the default pool, and a
program may well use both.
"""

from enum import IntEnum
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

_PACKAGE = "tinker_public"


class StopReason(IntEnum):
    """Why a sequence ended. 0 is what an absent field reads as."""

    STOP = 0
    LENGTH = 1


class DType(IntEnum):
    """What a byte array holds, little-endian."""

    UNSPECIFIED = 0
    FLOAT32 = 1
    INT64 = 2
    INT32 = 3
    BFLOAT16 = 4


_ENUMS: dict[str, type[IntEnum]] = {"StopReason": StopReason, "DType": DType}

# One line per field: number, name, kind, and before the kind: `repeated`, `optional` (presence is told), `map` (from
# string) or `oneof:<name>`.
_MESSAGES: dict[str, tuple[str, ...]] = {
    "ForwardBackwardRequest": (
        "1 model_id string",
        "2 seq_id int32",
        "3 data repeated Datum",
        "4 loss_fn string",
        "5 loss_fn_config map double",
        "6 forward_only bool",
        "7 loss_fn_config_v2 map LossConfigValue",
    ),
    "LossConfigValue": ("1 number oneof:value double", "2 text oneof:value string"),
    "Datum": (
        "1 model_input repeated Chunk",
        "2 loss_fn_inputs map Tensor",
        "3 model_input_spans repeated ProvenanceSpan",
        "4 loss_fn_input_spans repeated ProvenanceSpan",
    ),
    "Chunk": (
        "1 encoded_text oneof:chunk EncodedTextChunk",
        "2 image oneof:chunk ImageChunk",
        "3 dmel oneof:chunk DmelChunk",
    ),
    "EncodedTextChunk": ("1 tokens bytes",),
    "ImageChunk": (
        "1 data bytes",
        "2 format string",
        "3 expected_tokens optional int32",
        "4 override_dimensions optional ImageDimensions",
    ),
    "ImageDimensions": ("1 width uint32", "2 height uint32"),
    "DmelChunk": ("1 dmel bytes",),
    "Tensor": (
        "1 dense oneof:encoding bytes",
        "2 sparse_csr oneof:encoding SparseCsr",
        "3 dtype DType",
        "4 shape repeated int64",
    ),
    "SparseCsr": ("1 values bytes", "2 crow_indices bytes", "3 col_indices bytes"),
    "ProvenanceSpan": (
        "1 prompt_tokens oneof:span PromptProvenanceSpan",
        "2 sampled_tokens oneof:span SampledProvenanceSpan",
    ),
    "PromptProvenanceSpan": ("1 sequence_id string", "2 offset int64", "3 length int64"),
    "SampledProvenanceSpan": ("1 sequence_id string", "2 offset int64", "3 length int64"),
    "ForwardBackwardOutput": (
        "1 loss_fn_output_type string",
        "2 loss_fn_outputs repeated ArrayRecord",
        "3 metrics map double",
    ),
    "ArrayRecord": ("1 type_tag string", "2 fields map BatchedTensor", "3 num_datums int64"),
    "BatchedTensor": ("1 data bytes", "2 offsets bytes", "3 dtype DType", "4 trailing_shape repeated int64"),
    "SampleResponse": (
        "1 sequences repeated SampledSequence",
        "2 prompt_logprobs optional bytes",
        "3 topk_prompt_logprobs optional TopkLogprobs",
        "4 prompt_cache_hit_tokens int32",
        "5 target_prompt_logprobs optional Tensor",
        "6 prompt_alt_tokens optional PromptAltTokens",
    ),
    "PromptAltTokens": ("1 tokens Tensor", "2 logprobs Tensor"),
    "SampledSequence": (
        "1 stop_reason StopReason",
        "2 tokens bytes",
        "3 logprobs optional bytes",
        "4 topk_sampled_logprobs optional TopkLogprobs",
    ),
    "TopkLogprobs": ("1 token_ids bytes", "2 logprobs bytes", "3 k uint32", "4 length uint32"),
}


def _set_type(field: FieldDescriptorProto, kind: str) -> None:
    """Say what a field holds: a message or enum of this file, or a scalar."""
    if kind in _MESSAGES:
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    elif kind in _ENUMS:
        field.type, field.type_name = FieldDescriptorProto.TYPE_ENUM, f".{_PACKAGE}.{kind}"
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")


def _oneof(message: DescriptorProto, name: str) -> int:
    """The index of a message's oneof, made when first asked for."""
    names = [declared.name for declared in message.oneof_decl]
    if name not in names:
        message.oneof_decl.add(name=name)
        names.append(name)
    return names.index(name)


def _add_map(message: DescriptorProto, field: FieldDescriptorProto, kind: str) -> None:
    """A map is, on the wire, a repeated message of key and value."""
    entry_name = "".join(part.capitalize() for part in field.name.split("_")) + "Entry"
    entry = message.nested_type.add(name=entry_name)
    entry.options.map_entry = True
    label = FieldDescriptorProto.LABEL_OPTIONAL
    entry.field.add(name="key", number=1, label=label, type=FieldDescriptorProto.TYPE_STRING)
    _set_type(entry.field.add(name="value", number=2, label=label), kind)
    field.label, field.type = FieldDescriptorProto.LABEL_REPEATED, FieldDescriptorProto.TYPE_MESSAGE
    field.type_name = f".{_PACKAGE}.{message.name}.{entry_name}"


def _add_field(message: DescriptorProto, line: str) -> None:
    number, name, *qualifier, kind = line.split()
    field = message.field.add(name=name, number=int(number), label=FieldDescriptorProto.LABEL_OPTIONAL)
    match qualifier:
        case ["map"]:
            _add_map(message, field, kind)
            return
        case ["repeated"]:
            field.label = FieldDescriptorProto.LABEL_REPEATED
        case ["optional"]:
            field.proto3_optional = True
        case [oneof]:
            field.oneof_index = _oneof(message, oneof.removeprefix("oneof:"))
    _set_type(field, kind)


def _add_optional_oneofs(message: DescriptorProto) -> None:
    """proto3 tells presence through a oneof of one field; these come after the real ones."""
    for field in message.field:
        if field.proto3_optional:
            field.oneof_index = _oneof(message, f"_{field.name}")


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="weaver/tinker_wire.proto", package=_PACKAGE, syntax="proto3")
    for enum_name, members in _ENUMS.items():
        enum = file.enum_type.add(name=enum_name)
        for member in members:
            enum.value.add(name=f"{enum_name.upper()}_{member.name}", number=member.value)
    for message_name, lines in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for line in lines:
            _add_field(message, line)
        _add_optional_oneofs(message)
    return file


def _build() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_file().SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


_CLASSES = _build()

ForwardBackwardRequest: Any = _CLASSES["ForwardBackwardRequest"]
Datum: Any = _CLASSES["Datum"]
Chunk: Any = _CLASSES["Chunk"]
Tensor: Any = _CLASSES["Tensor"]
SparseCsr: Any = _CLASSES["SparseCsr"]
ProvenanceSpan: Any = _CLASSES["ProvenanceSpan"]
ForwardBackwardOutput: Any = _CLASSES["ForwardBackwardOutput"]
ArrayRecord: Any = _CLASSES["ArrayRecord"]
BatchedTensor: Any = _CLASSES["BatchedTensor"]
SampleResponse: Any = _CLASSES["SampleResponse"]
TopkLogprobs: Any = _CLASSES["TopkLogprobs"]


def message_class(name: str) -> Any:
    """The class of any message of this wire, by its name in the schema."""
    return _CLASSES[name]
