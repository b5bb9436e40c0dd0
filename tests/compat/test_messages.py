"""Our messages against the vendor's generated ones, both in this process."""

import math

import pytest
from google.protobuf import descriptor_pb2
from tinker.proto import tinker_public_pb2 as vendor

from weaver.compat.tinker import messages

NAMES = [name for name in vendor.DESCRIPTOR.message_types_by_name if name in messages._MESSAGES]

TENSOR = {"dense": b"\0\0\x80?", "dtype": 1, "shape": [1]}
SPARSE = {
    "sparse_csr": {"values": b"\0\0\x80?", "crow_indices": b"c", "col_indices": b"d"},
    "dtype": 2,
    "shape": [2, 3],
}
SPANS = [
    {"prompt_tokens": {"sequence_id": "p", "offset": 1, "length": 2}},
    {"sampled_tokens": {"sequence_id": "s", "offset": 2**40, "length": 3}},
]
TOPK = {"token_ids": b"\1\0\0\0", "logprobs": b"\0\0\0\0", "k": 1, "length": 1}
IMAGE = {"data": b"x", "format": "png", "expected_tokens": 0, "override_dimensions": {"width": 1, "height": 2}}
DATUM = {
    "model_input": [{"encoded_text": {"tokens": b"\1\0\0\0"}}, {"image": IMAGE}, {"dmel": {"dmel": b"z"}}],
    "loss_fn_inputs": {"weights": TENSOR, "target_tokens": SPARSE},
    "model_input_spans": SPANS,
    "loss_fn_input_spans": SPANS[:1],
}
RECORD = {
    "type_tag": "ArrayRecord",
    "fields": {"logprobs": {"data": b"\0" * 8, "offsets": b"o", "dtype": 4, "trailing_shape": [2, 1]}},
    "num_datums": 2,
}
SEQUENCE = {"stop_reason": 1, "tokens": b"\1\0\0\0", "logprobs": b"", "topk_sampled_logprobs": TOPK}

FULL = {
    "ForwardBackwardRequest": {
        "model_id": "s:train:0",
        "seq_id": -1,
        "data": [DATUM, DATUM],
        "loss_fn": "ppo",
        "loss_fn_config": {"a": 1.5, "b": -math.inf},
        "forward_only": True,
        "loss_fn_config_v2": {"a": {"number": 0.0}, "c": {"text": ""}},
    },
    "LossConfigValue": {"text": "t"},
    "Datum": DATUM,
    "Chunk": {"image": IMAGE},
    "EncodedTextChunk": {"tokens": b"abcd"},
    "ImageChunk": IMAGE,
    "ImageDimensions": {"width": 2**32 - 1, "height": 1},
    "DmelChunk": {"dmel": b"d"},
    "Tensor": SPARSE,
    "SparseCsr": SPARSE["sparse_csr"],
    "ProvenanceSpan": SPANS[1],
    "PromptProvenanceSpan": SPANS[0]["prompt_tokens"],
    "SampledProvenanceSpan": SPANS[1]["sampled_tokens"],
    "ForwardBackwardOutput": {
        "loss_fn_output_type": "ArrayRecord",
        "loss_fn_outputs": [RECORD],
        "metrics": {"loss:sum": 2.5},
    },
    "ArrayRecord": RECORD,
    "BatchedTensor": RECORD["fields"]["logprobs"],
    "SampleResponse": {
        "sequences": [SEQUENCE],
        "prompt_logprobs": b"",
        "topk_prompt_logprobs": TOPK,
        "prompt_cache_hit_tokens": 7,
        "target_prompt_logprobs": TENSOR,
        "prompt_alt_tokens": {"tokens": TENSOR, "logprobs": SPARSE},
    },
    "PromptAltTokens": {"tokens": TENSOR, "logprobs": SPARSE},
    "SampledSequence": SEQUENCE,
    "TopkLogprobs": TOPK,
}


def filled(cls, values):
    """An instance with every field set, maps and nested messages included."""
    message = cls()
    fill(message, values)
    return message


def fill(message, values):
    for name, value in values.items():
        field = getattr(message, name)
        if isinstance(value, dict):
            fill_dict(field, value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                fill(field.add(), item)
        elif isinstance(value, list):
            field.extend(value)
        else:
            setattr(message, name, value)


def fill_dict(field, values):
    if not hasattr(field, "items"):
        fill(field, values)
        return
    for key, value in values.items():
        if isinstance(value, dict):
            fill(field[key], value)
        else:
            field[key] = value


def wire(message):
    return message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_vendor_writes_we_read_and_write_back_byte_for_byte(name):
    theirs = filled(getattr(vendor, name), FULL[name])
    assert wire(messages.message_class(name).FromString(wire(theirs))) == wire(theirs) != b""


@pytest.mark.parametrize("name", NAMES)
def test_what_we_write_the_vendor_reads_without_unknown_fields(name):
    ours = filled(messages.message_class(name), FULL[name])
    read = getattr(vendor, name).FromString(wire(ours))
    assert read == filled(getattr(vendor, name), FULL[name])
    assert wire(read) == wire(ours)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_has_the_vendors_number_type_and_presence(name):
    def facts(descriptor):
        proto = descriptor_pb2.DescriptorProto()
        descriptor.CopyToProto(proto)
        fields = [*proto.field, *(field for nested in proto.nested_type for field in nested.field)]
        return sorted((f.number, f.name, f.type, f.label, f.type_name, f.proto3_optional) for f in fields), sorted(
            one.name for one in proto.oneof_decl
        )

    assert facts(messages.message_class(name).DESCRIPTOR) == facts(getattr(vendor, name).DESCRIPTOR)


def test_no_message_but_the_unused_sampling_ones_is_left_out():
    left_out = set(vendor.DESCRIPTOR.message_types_by_name) - set(NAMES)
    assert left_out == {"SamplingParams", "StopStrings", "StopTokens"}
    assert set(NAMES) == set(messages._MESSAGES)


def test_enums_have_the_vendors_numbers():
    assert (messages.StopReason.STOP, messages.StopReason.LENGTH) == (
        vendor.STOP_REASON_STOP,
        vendor.STOP_REASON_LENGTH,
    )
    for member in messages.DType:
        assert member == getattr(vendor, f"DTYPE_{member.name}")
