"""Tinker's requests to weaver's values and results back, with the vendor's own encoder and decoder at the other end."""

import math
import re

import numpy as np
import pytest
import tinker
from tinker import types as sdk
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import deserialize_forward_backward_output, deserialize_sample_response

from weaver.compat.tinker import answers, convert, messages
from weaver.compat.tinker.tensors import DENSE_LIMIT
from weaver.domain import (
    ForwardBackwardResult,
    ModelCreated,
    OptimStepResult,
    ProvenanceSpan,
    SampledSequence,
    SampleResult,
    StopReason,
    TopLogprobs,
)
from weaver.errors import InvalidInput


def datum(tokens, **inputs):
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)


def encoded(data, loss_fn="cross_entropy", config=None):
    """The body that the SDK sends."""
    request = sdk.ForwardBackwardRequest(
        forward_backward_input=sdk.ForwardBackwardInput(data=data, loss_fn=loss_fn, loss_fn_config=config),
        model_id="s:train:0",
        seq_id=1,
    )
    return forward_backward_request_to_proto(request).SerializeToString()


def decoded(body):
    return convert.forward_backward(convert.forward_backward_message(body))


def message_with(tensor=None, **fields):
    """A request of one datum, to be spoilt."""
    message = messages.ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn="cross_entropy", **fields)
    added = message.data.add()
    added.model_input.add().encoded_text.tokens = np.arange(3, dtype="<i4").tobytes()
    if tensor is not None:
        added.loss_fn_inputs["weights"].CopyFrom(tensor)
    return message


def sparse(shape, crow, col, values, dtype=messages.DType.FLOAT32):
    tensor = messages.Tensor(dtype=dtype, shape=shape)
    tensor.sparse_csr.values = np.array(values, "<f4").tobytes()
    tensor.sparse_csr.crow_indices = np.array(crow, "<i8").tobytes()
    tensor.sparse_csr.col_indices = np.array(col, "<i8").tobytes()
    return tensor


def test_tokens_and_inputs_arrive_as_they_were_sent():
    operation = decoded(encoded([datum([5, 2**31 - 1], target_tokens=[7, 8], weights=[-0.5, 1e-9])]))
    (got,) = operation.data
    assert got.tokens_T.dtype == np.int64
    assert got.tokens_T.tolist() == [5, 2**31 - 1]
    assert got.loss_fn_inputs["target_tokens"].dtype == np.int64
    assert got.loss_fn_inputs["target_tokens"].tolist() == [7, 8]
    assert got.loss_fn_inputs["weights"].dtype == np.float32
    np.testing.assert_array_equal(got.loss_fn_inputs["weights"], np.array([-0.5, 1e-9], np.float32))
    assert got.loss_fn_inputs["weights"].flags.writeable
    assert operation.backward
    assert operation.loss == "cross_entropy"
    assert operation.config == {}


def test_tokens_of_several_chunks_are_joined_in_order():
    prompt = tinker.ModelInput.from_ints([1, 2]).append(tinker.EncodedTextChunk(tokens=[3])).append_int(4)
    operation = decoded(encoded([tinker.Datum(model_input=prompt, loss_fn_inputs={})]))
    assert operation.data[0].tokens_T.tolist() == [1, 2, 3, 4]


def test_a_sparse_tensor_is_filled_up_with_zeros():
    import torch

    dense = torch.zeros(4, 50)
    dense[1, 3], dense[3, 0] = 2.5, -1.0
    tensor = tinker.TensorData.from_torch_sparse(dense)
    assert tensor.sparse_crow_indices is not None
    operation = decoded(encoded([datum([1, 2, 3, 4], weights=tensor)]))
    np.testing.assert_array_equal(operation.data[0].loss_fn_inputs["weights"], dense.numpy())


def test_a_tensor_without_a_shape_is_one_dimensional():
    tensor = messages.Tensor(dense=np.arange(3, dtype="<f4").tobytes(), dtype=messages.DType.FLOAT32)
    operation = convert.forward_backward(message_with(tensor))
    assert operation.data[0].loss_fn_inputs["weights"].tolist() == [0, 1, 2]


def test_provenance_spans_are_kept():
    sampled = tinker.SampledProvenanceSpan(sequence_id="s1", offset=4, length=2)
    prompt = tinker.PromptProvenanceSpan(sequence_id="s0", length=3)
    spanned = tinker.Datum(
        model_input=tinker.ModelInput.from_ints([1, 2]),
        loss_fn_inputs={},
        model_input_spans=[prompt],
        loss_fn_input_spans=[prompt, sampled],
    )
    (got,) = decoded(encoded([spanned])).data
    assert got.token_spans == (ProvenanceSpan("prompt", "s0", 0, 3),)
    assert got.loss_input_spans == (ProvenanceSpan("prompt", "s0", 0, 3), ProvenanceSpan("sampled", "s1", 4, 2))


def test_forward_only_asks_for_no_gradients():
    assert not convert.forward_backward(message_with(forward_only=True)).backward


def test_the_config_may_hold_numbers_and_texts():
    assert decoded(encoded([datum([1])], "x", {"a": 2, "b": "text"})).config == {"a": 2.0, "b": "text"}


def test_the_older_config_map_is_read_where_it_is_alone():
    assert convert.forward_backward(message_with(loss_fn_config={"a": 0.5})).config == {"a": 0.5}


@pytest.mark.parametrize("newer", [{"a": {"number": 2.0}}, {"a": {"text": "1.0"}}, {"b": {"number": 1.0}}])
def test_config_maps_that_contradict_each_other_are_refused(newer):
    with pytest.raises(
        InvalidInput, match=r"loss_fn_config\['a'\] is 1.0 in loss_fn_config and .* in loss_fn_config_v2"
    ):
        convert.forward_backward(message_with(loss_fn_config={"a": 1.0}, loss_fn_config_v2=newer))


def test_the_same_nan_in_both_config_maps_is_no_contradiction():
    config = convert.forward_backward(
        message_with(loss_fn_config={"a": math.nan}, loss_fn_config_v2={"a": {"number": math.nan}})
    ).config
    assert math.isnan(config["a"])


def test_a_config_value_without_a_value_is_refused():
    with pytest.raises(InvalidInput, match=r"loss_fn_config\['a'\] has no value"):
        convert.forward_backward(message_with(loss_fn_config_v2={"a": {}}))


F32, I64 = messages.DType.FLOAT32, messages.DType.INT64
WEIGHTS = r"data\[0\].loss_fn_inputs\['weights'\]"


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (messages.Tensor(dense=b"\0" * 8, dtype=F32, shape=[3]), r"declares the shape \[3\] and carries 2 values"),
        (messages.Tensor(dense=b"\0" * 7, dtype=F32), "7 bytes, which is no whole number of float32 values"),
        (messages.Tensor(dense=b"", dtype=F32, shape=[-1, 0]), "an extent cannot be negative"),
        (messages.Tensor(dense=b"\0\0", dtype=messages.DType.BFLOAT16), "dtype bfloat16; this server reads float32"),
        (messages.Tensor(dense=b"\0\0", dtype=9), "dtype 9; this server reads float32 and int64"),
        (messages.Tensor(dense=b"\0\0"), "dtype unspecified"),
        (messages.Tensor(dtype=F32), "neither dense nor sparse_csr"),
        (sparse([2], [0, 1], [0], [1.0]), "needs a shape of two extents"),
        (sparse([2, 2], [0, 1], [0], [1.0]), "crow_indices must be 3 ascending row starts"),
        (sparse([2, 2], [0, 2, 1], [0], [1.0]), "crow_indices must be 3 ascending row starts"),
        (sparse([2, 2], [1, 1, 1], [0], [1.0]), "crow_indices must be 3 ascending row starts"),
        (sparse([2, 2], [0, 0, 1], [2], [1.0]), "col_indices must lie from 0 to 1"),
        (sparse([2, 2], [0, 0, 1], [-1], [1.0]), "col_indices must lie from 0 to 1"),
        (sparse([2, 2], [0, 0, 1], [1], [1.0, 2.0]), "has 2 values for 1 column indices"),
        (sparse([1, 2], [0, 2], [1, 1], [1.0, 2.0]), "names a column twice in one row"),
    ],
)
def test_a_malformed_tensor_is_refused_by_name(tensor, sentence):
    with pytest.raises(InvalidInput, match=WEIGHTS + ".*" + sentence):
        convert.forward_backward(message_with(tensor))


@pytest.mark.parametrize("shape", [[0, 2**62], [1] * 70, [2**62, 0]])
def test_a_shape_that_no_array_has_is_refused_by_name(shape):
    """Its values are as many as it says, so only numpy knows better."""
    values = b"" if 0 in shape else bytes(4)
    tensor = messages.Tensor(dtype=messages.DType.FLOAT32, shape=shape, dense=values)
    with pytest.raises(InvalidInput, match=re.escape("data[0].loss_fn_inputs['weights'] declares the shape [")):
        convert.forward_backward(message_with(tensor))


def test_a_few_bytes_cannot_declare_a_tensor_of_any_size():
    with pytest.raises(InvalidInput, match="at most 134217728 are read"):
        convert.forward_backward(message_with(sparse([DENSE_LIMIT, 2], [0], [], [])))


def test_sizes_are_bounded_over_a_whole_request():
    message = message_with(sparse([DENSE_LIMIT, 1], [0], [], []))
    message.data.add().loss_fn_inputs["x"].CopyFrom(sparse([-1, 2], [0], [], []))
    with pytest.raises(InvalidInput, match="the sparse loss_fn_inputs of one request declare 134217730 elements"):
        convert.forward_backward(message)


@pytest.mark.parametrize("kind", ["image", "dmel"])
def test_only_text_is_read(kind):
    message = message_with()
    getattr(message.data[0].model_input.add(), kind).SetInParent()
    with pytest.raises(
        InvalidInput, match=rf"data\[0\].model_input\[1\] is of type {kind}; this server reads encoded_text"
    ):
        convert.forward_backward(message)


def test_a_field_of_a_newer_client_is_refused_instead_of_dropped():
    varint_field_15 = b"\x78\x01"
    with pytest.raises(
        InvalidInput, match=r"the request has protobuf fields this server does not know: numbers \[15\]"
    ):
        decoded(encoded([datum([1])]) + varint_field_15)


def test_a_body_that_is_no_protobuf_is_refused():
    with pytest.raises(InvalidInput, match="the body is not a protobuf ForwardBackwardRequest"):
        convert.forward_backward_message(b"\xff\xff")


def test_a_span_without_a_sequence_is_refused():
    message = message_with()
    message.data[0].model_input_spans.add().prompt_tokens.length = 3
    with pytest.raises(InvalidInput, match=r"data\[0\].model_input_spans\[0\] needs a sequence_id"):
        convert.forward_backward(message)


def test_logprobs_of_every_shape_come_back_in_the_order_of_the_data():
    shapes = [(3,), (2,), (2, 4), (1, 4), (5,), (0,)]
    arrays = tuple(np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in shapes)
    body = answers.forward_backward_output(ForwardBackwardResult(arrays, {"loss:sum": -1.5}))
    output = deserialize_forward_backward_output(body)
    assert output.loss_fn_output_type == "ArrayRecord"
    assert output.metrics == {"loss:sum": -1.5}
    for sent, got in zip(arrays, output.loss_fn_outputs, strict=True):
        np.testing.assert_array_equal(got["logprobs"].to_numpy(), sent)


def test_a_pass_over_nothing_has_no_outputs():
    assert (
        deserialize_forward_backward_output(
            answers.forward_backward_output(ForwardBackwardResult((), {"loss:sum": 0.0}))
        ).loss_fn_outputs
        == []
    )


def test_a_sample_comes_back_with_its_prompt_logprobs_and_empty_cells():
    nan = math.nan
    sequences = (
        SampledSequence(np.array([4, 5]), np.array([-0.1, -0.2], np.float32), StopReason.STOP),
        SampledSequence(np.array([6]), np.array([-0.3], np.float32), StopReason.LENGTH),
    )
    top = TopLogprobs(
        np.array([[0, 0], [9, 8], [7, 3]], np.int32),
        np.array([[nan, nan], [-0.5, -0.6], [-0.7, nan]], np.float32),
    )
    body = answers.sample_response(SampleResult(sequences, np.array([nan, -1, -2], np.float32), top))
    response = deserialize_sample_response(body)
    assert [(list(s.tokens), s.stop_reason) for s in response.sequences] == [([4, 5], "stop"), ([6], "length")]
    np.testing.assert_array_equal(response.sequences[0].logprobs_np, np.array([-0.1, -0.2], np.float32))
    assert response.prompt_logprobs == [None, -1, -2]
    assert response.topk_prompt_logprobs[0] is None
    assert response.topk_prompt_logprobs[1] == [(9, pytest.approx(-0.5)), (8, pytest.approx(-0.6))]
    assert response.topk_prompt_logprobs_np.token_ids.tolist() == [[0, 0], [9, 8], [7, 0]]
    assert response.topk_prompt_logprobs_np.logprobs[2, 1] == -99999.0


def test_a_metric_that_is_no_number_survives_json():
    metrics = {"grad_norm": math.nan, "a": math.inf, "b": -math.inf, "c": 1.5}
    sent = answers.result_json(OptimStepResult(metrics))
    got = sdk.OptimStepResponse.model_validate(sent).metrics
    assert math.isnan(got["grad_norm"])
    assert (got["a"], got["b"], got["c"]) == (math.inf, -math.inf, 1.5)


def test_no_json_result_looks_like_a_failure_or_a_repeat_to_a_polling_client():
    for result in (OptimStepResult({}), ModelCreated("m")):
        assert not {"error", "status", "type"} & answers.result_json(result).keys()
