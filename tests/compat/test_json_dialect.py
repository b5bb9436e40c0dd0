"""The passes that SDKs before 0.25 write as JSON. The body is one that SDK 0.16.1 sent, but for the numbers in it."""

import json
from copy import deepcopy

import numpy as np
import pytest
import tinker
from tinker import types as sdk
from tinker.proto.request_conv import forward_backward_request_to_proto

from weaver.compat.tinker import convert, json_answers, json_dialect, requests
from weaver.domain import (
    ForwardBackwardResult,
    PromptAlternatives,
    PromptTargets,
    SampledSequence,
    SampleResult,
    StopReason,
    TargetLogprobs,
    TopLogprobs,
)
from weaver.errors import InvalidInput

BODY = {
    "forward_backward_input": {
        "data": [
            {
                "loss_fn_inputs": {
                    "target_tokens": {"data": [2, 3, 4], "dtype": "int64", "shape": [3]},
                    "weights": {"data": [1.0, 0.10000000149011612, -2.5], "dtype": "float32", "shape": [3]},
                },
                "model_input": {"chunks": [{"tokens": [1]}, {"tokens": [2, 3], "type": "encoded_text"}]},
            },
            {
                "loss_fn_inputs": {
                    "target_tokens": {"data": [5, 6, 7, 8], "dtype": "int64", "shape": [2, 2]},
                    "weights": {
                        "data": [0.5, -1],
                        "dtype": "float32",
                        "shape": [2, 2],
                        "sparse_crow_indices": [0, 1, 2],
                        "sparse_col_indices": [1, 0],
                    },
                },
                "model_input": {"chunks": [{"tokens": [9, 8]}]},
            },
        ],
        "loss_fn": "cross_entropy",
        "loss_fn_config": None,
    },
    "model_id": "s:train:0",
    "seq_id": 1,
}


def read(body):
    return json_dialect.forward_backward(requests.parse(json_dialect.ForwardBackward, body))


def spoilt(change):
    body = deepcopy(BODY)
    change(body["forward_backward_input"])
    return body


def first_inputs(asked):
    return asked["data"][0]["loss_fn_inputs"]


def second_weights(asked):
    return asked["data"][1]["loss_fn_inputs"]["weights"]


def in_protobuf(body):
    """What the latest SDK would have sent for it."""
    asked = body["forward_backward_input"]
    data = [
        tinker.Datum(
            model_input=tinker.ModelInput(
                chunks=[sdk.EncodedTextChunk(tokens=chunk["tokens"]) for chunk in datum["model_input"]["chunks"]]
            ),
            loss_fn_inputs={name: tinker.TensorData(**tensor) for name, tensor in datum["loss_fn_inputs"].items()},
        )
        for datum in asked["data"]
    ]
    made = sdk.ForwardBackwardInput(data=data, loss_fn=asked["loss_fn"], loss_fn_config=asked["loss_fn_config"])
    request = sdk.ForwardBackwardRequest(forward_backward_input=made, model_id=body["model_id"], seq_id=body["seq_id"])
    message = forward_backward_request_to_proto(request).SerializeToString()
    return convert.forward_backward(convert.forward_backward_message(message))


def arrays(operation):
    return [
        [("tokens", datum.tokens_T), *sorted(datum.loss_fn_inputs.items(), key=lambda item: item[0])]
        for datum in operation.data
    ]


@pytest.mark.parametrize("config", [None, {"clip_low_threshold": 0.7, "clip_high_threshold": 2}])
def test_json_means_what_protobuf_means(config):
    body = spoilt(lambda asked: asked.update(loss_fn_config=config))
    found, expected = read(body), in_protobuf(body)
    assert (found.loss, found.config, found.backward) == (expected.loss, expected.config, True)
    assert found.config == (config or {})
    for one, other in zip(arrays(found), arrays(expected), strict=True):
        for (name, array), (expected_name, expected_array) in zip(one, other, strict=True):
            assert (name, array.dtype, array.shape) == (expected_name, expected_array.dtype, expected_array.shape)
            np.testing.assert_array_equal(array, expected_array)
    np.testing.assert_array_equal(found.data[1].loss_fn_inputs["weights"], [[0, 0.5], [-1, 0]])


def test_forward_is_a_pass_without_gradients():
    body = {"forward_input": BODY["forward_backward_input"], "model_id": "m", "seq_id": 2}
    assert not json_dialect.forward(requests.parse(json_dialect.Forward, body)).backward


def test_a_shape_may_be_left_out():
    body = spoilt(lambda asked: first_inputs(asked)["weights"].pop("shape"))
    assert read(body).data[0].loss_fn_inputs["weights"].shape == (3,)


CHUNK = "forward_backward_input.data[0].model_input.chunks[0]"
WEIGHTS = "forward_backward_input.data[0].loss_fn_inputs.weights"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: a.pop("loss_fn"), "forward_backward_input.loss_fn is missing"),
        (lambda a: a.update(lr=1), "forward_backward_input.lr is not a field this server reads here"),
        (lambda a: a["data"][0].update(spans=[]), "forward_backward_input.data[0].spans is not a field"),
        (lambda a: a.update(loss_fn_config={"beta": None}), "forward_backward_input.loss_fn_config.beta: input should"),
        (lambda a: a["data"][0]["model_input"]["chunks"][0].update(type="image"), f"{CHUNK} is of type 'image'"),
        (lambda a: a["data"][0]["model_input"]["chunks"][0].update(tokens=[-1]), f"{CHUNK}.tokens[0]: input should"),
        (lambda a: a["data"][0]["model_input"]["chunks"][0].update(tokens=[2**31]), f"{CHUNK}.tokens[0]: input should"),
        (lambda a: first_inputs(a)["weights"].update(data=[1.0, None, 2.0]), f"{WEIGHTS}.data holds null, which is"),
        (lambda a: first_inputs(a)["weights"].update(data=[1.0, True, 2.0]), f"{WEIGHTS}.data holds a bool, at 1"),
        (lambda a: first_inputs(a)["weights"].update(data=[[1.0, 2.0, 3.0]]), f"{WEIGHTS}.data holds a list, at 0"),
        (lambda a: first_inputs(a)["weights"].update(data="1 2"), f"{WEIGHTS}.data must be a flat list of numbers"),
        (lambda a: first_inputs(a)["weights"].update(dtype="float16"), f"{WEIGHTS}.dtype is 'float16'"),
        (lambda a: first_inputs(a)["weights"].update(requires_grad=True), f"{WEIGHTS}.requires_grad is not a field"),
        (
            lambda a: first_inputs(a)["weights"].update(shape=[4]),
            "data[0].loss_fn_inputs['weights'] declares the shape [4] and carries 3 values",
        ),
        (
            lambda a: first_inputs(a)["weights"].update(shape=[-3]),
            "data[0].loss_fn_inputs['weights'] declares the shape [-3]; an extent cannot be negative",
        ),
        (
            lambda a: first_inputs(a)["target_tokens"].update(data=[2, 3.0, 4]),
            "data[0].loss_fn_inputs['target_tokens'] has dtype int64 and holds 3.0",
        ),
        (
            lambda a: first_inputs(a)["target_tokens"].update(data=[2, 2**63, 4]),
            "data[0].loss_fn_inputs['target_tokens'] holds a number that does not fit in int64",
        ),
        (
            lambda a: first_inputs(a)["weights"].update(data=[1.0, 10**400, 4]),
            "data[0].loss_fn_inputs['weights'] holds a number that does not fit in float32",
        ),
        (
            lambda a: second_weights(a).pop("sparse_col_indices"),
            "data[1].loss_fn_inputs['weights'] needs sparse_crow_indices and sparse_col_indices both",
        ),
        (
            lambda a: second_weights(a).update(sparse_col_indices=[1, 2]),
            "data[1].loss_fn_inputs['weights'].col_indices must lie from 0 to 1",
        ),
        (
            lambda a: second_weights(a).update(shape=[2, 2**40]),
            "data: the sparse loss_fn_inputs of one request declare",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(change, sentence):
    with pytest.raises(InvalidInput) as refusal:
        read(spoilt(change))
    assert str(refusal.value).startswith(sentence)


def test_results_of_passes_keep_their_shapes_and_what_json_has_no_number_for():
    ragged = (np.array([-0.5, -np.inf], np.float32), np.array([[-1.0, np.nan]], np.float32))
    answer = json.loads(json_answers.forward_backward_output(ForwardBackwardResult(ragged, {"loss:sum": np.inf})))
    assert answer == {
        "loss_fn_output_type": "ArrayRecord",
        "loss_fn_outputs": [
            {"logprobs": {"data": [-0.5, "-Infinity"], "dtype": "float32", "shape": [2]}},
            {"logprobs": {"data": [-1.0, "NaN"], "dtype": "float32", "shape": [1, 2]}},
        ],
        "metrics": {"loss:sum": "Infinity"},
    }


def floats(*values):
    return np.array(values, np.float32)


def test_samples_tell_all_that_was_asked_for():
    targets = PromptTargets((1, 5), np.array([0, 0]), np.array([1, 4]), np.array([7, 8]), True)
    table = TopLogprobs(np.array([[0, 0], [7, 8], [7, 0]], np.int32), floats([np.nan] * 2, [-1, -2], [-3, np.nan]))
    result = SampleResult(
        (SampledSequence(np.array([4, 1]), floats(-0.5, -1.5), StopReason.STOP, table),),
        prompt_logprobs_n=floats(np.nan, -0.25),
        topk_prompt_logprobs=table,
        target_logprobs=TargetLogprobs(targets, floats(-1, -2)),
        prompt_alternatives=PromptAlternatives(np.array([[3, 4]]), floats([-4, -5])),
        cached_prompt_tokens=1,
    )
    rows = [None, [[7, -1.0], [8, -2.0]], [[7, -3.0]]]
    sequence = {"stop_reason": "stop", "tokens": [4, 1], "logprobs": [-0.5, -1.5], "topk_sampled_logprobs": rows}
    assert json.loads(json_answers.sample_response(result)) == {
        "type": "sample",
        "sequences": [sequence],
        "prompt_cache_hit_tokens": 1,
        "prompt_logprobs": [None, -0.25],
        "topk_prompt_logprobs": rows,
        "target_prompt_logprobs": {
            "data": [-1.0, -2.0],
            "dtype": "float32",
            "shape": [1, 5],
            "sparse_crow_indices": [0, 2],
            "sparse_col_indices": [1, 4],
        },
        "prompt_alt_tokens": {
            "tokens": {"data": [3, 4], "dtype": "int64", "shape": [1, 2]},
            "logprobs": {"data": [-4.0, -5.0], "dtype": "float32", "shape": [1, 2]},
        },
    }


def test_what_was_not_asked_for_is_absent():
    plain = SampleResult((SampledSequence(np.array([4]), floats(-0.5), StopReason.LENGTH),))
    answer = json.loads(json_answers.sample_response(plain))
    assert answer.keys() == {"type", "sequences", "prompt_cache_hit_tokens"}
    assert answer["sequences"] == [{"stop_reason": "length", "tokens": [4], "logprobs": [-0.5]}]
