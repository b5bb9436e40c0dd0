"""The same lines on the installed SDK and on ours: the same values, or errors of the same class."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import tinker as theirs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import weaver.compat.tinker as ours

NAN = float("nan")
PNG = b"\x89PNG"
SPARSE = torch.eye(6)
FAILED = {
    "session_id": "s",
    "created_at": "2026-01-01T00:00:00Z",
    "owner": "o",
    "project_id": "p",
    "checkpoints_count": 0,
    "status": {
        "type": "failed",
        "category": "user",
        "message": "m",
        "reason": {"type": "request", "request_id": "r", "request_type": "t"},
    },
}


def tokens(t):
    return t.ModelInput.from_ints([1, 2, 3])


def spans(t, *lengths):
    return [t.SampledProvenanceSpan(sequence_id=f"s{place}", length=length) for place, length in enumerate(lengths)]


def datum(t, **inputs):
    return t.Datum(tokens(t), inputs)


def csr(t, crow=(0, 1, 1), col=(2,), data=(5.0,), shape=(2, 3), dtype="float32"):
    return t.TensorData(list(data), dtype, list(shape), list(crow), list(col))


def topk(t, ids, logprobs):
    from_module = __import__(f"{t.__name__}.types.topk_logprobs", fromlist=["TopkLogprobs"])
    return from_module.TopkLogprobs(np.array(ids, np.int32), np.array(logprobs, np.float32))


MAKERS = {
    # Datum
    "lists": lambda t: datum(t, target_tokens=[1, 2, 3], weights=[0, 1, 1], advantages=[1, 0.5, NAN]),
    "every list": lambda t: datum(
        t, logprobs=[0.5], clip_low_threshold=[1], clip_high_threshold=[1], sequence_ratio_mask=[True, False]
    ),
    "nested lists": lambda t: datum(t, target_tokens=[[1, 0], [0, 0], [0, 0]]),
    "an empty list": lambda t: datum(t, weights=[]),
    "an empty list of tokens": lambda t: datum(t, target_tokens=[]),
    "an unknown list": lambda t: datum(t, tokens=[1]),
    "an unknown list of text": lambda t: datum(t, tokens=["a"]),
    "an unknown list of lists": lambda t: datum(t, tokens=[[1], [2]]),
    "a ragged list": lambda t: datum(t, weights=[[1], [1, 2]]),
    "a ragged unknown list": lambda t: datum(t, tokens=[[1], [1, 2]]),
    "a list of text": lambda t: datum(t, weights=["a"]),
    "a list of numbers as text": lambda t: datum(t, weights=["1.5"]),
    "a list of lists of text": lambda t: datum(t, weights=[["a"]]),
    "a list with None": lambda t: datum(t, logprobs=[None, -1.0]),
    "a list with a list and a number": lambda t: datum(t, weights=[[1.0], 1.0]),
    "a list of tensors": lambda t: datum(t, weights=[torch.tensor(1.0), torch.tensor(2.0)]),
    "a list of ints too large": lambda t: datum(t, target_tokens=[2**63]),
    "a tuple": lambda t: datum(t, weights=(1.0, 2.0)),
    "a number": lambda t: datum(t, weights=1.0),
    "a model input": lambda t: datum(t, target_tokens=tokens(t)),
    "an array": lambda t: datum(t, anything=np.array([1.0, 2.0])),
    "an unsigned array as input": lambda t: datum(t, target_tokens=np.array([1], np.uint32)),
    "a matrix array is not thinned out": lambda t: datum(t, weights=np.eye(6)),
    "a matrix tensor is": lambda t: datum(t, weights=SPARSE),
    "a matrix tensor of another name is not": lambda t: datum(t, advantages=SPARSE),
    "a tensor data": lambda t: datum(t, anything=csr(t)),
    "keywords": lambda t: t.Datum(loss_fn_inputs={"weights": [1.0]}, model_input=tokens(t)),
    "no inputs": lambda t: t.Datum(tokens(t)),
    "no model input": lambda t: t.Datum(),
    "inputs that are no dictionary": lambda t: t.Datum(tokens(t), [1]),
    "datum replaced": lambda t: dataclasses.replace(datum(t, weights=[1.0]), loss_fn_inputs={"weights": [2.0]}),
    "datum assigned": lambda t: setattr(datum(t), "model_input", None),
    "datum equal": lambda t: datum(t) == datum(t),
    "datum hashed": lambda t: hash(datum(t)),
    # provenance
    "spans": lambda t: datum(t, target_tokens=[1, 2, 3]).with_provenance(spans(t, 1, 2), spans(t, 3)),
    "spans by keyword": lambda t: datum(t, target_tokens=[1]).with_provenance(
        model_input=[t.PromptProvenanceSpan(sequence_id="a", offset=4, length=3)], loss_fn_inputs=spans(t, 1)
    ),
    "spans too short": lambda t: datum(t, target_tokens=[1, 2, 3]).with_provenance(spans(t, 1), spans(t, 3)),
    "target spans too long": lambda t: datum(t, target_tokens=[1, 2, 3]).with_provenance(spans(t, 3), spans(t, 4)),
    "spans without targets": lambda t: datum(t).with_provenance(spans(t, 3), spans(t, 9)),
    "spans of a matrix": lambda t: datum(t, target_tokens=torch.eye(3).long()).with_provenance(spans(t, 3), []),
    "spans of something else": lambda t: t.Datum(tokens(t), {}, ["a"], []),
    "spans of one kind": lambda t: t.Datum(tokens(t), {}, spans(t, 3)),
    "a span without a name": lambda t: t.SampledProvenanceSpan(sequence_id="", length=1),
    "a span of length -1": lambda t: t.PromptProvenanceSpan(sequence_id="a", length=-1),
    "a span from -1": lambda t: t.PromptProvenanceSpan(sequence_id="a", length=1, offset=-1),
    "a span by position": lambda t: t.PromptProvenanceSpan("a", 0, 1),
    "span equal": lambda t: spans(t, 1) == spans(t, 1),
    # ModelInput
    "from ints": lambda t: t.ModelInput.from_ints([1, 2]),
    "from an array": lambda t: t.ModelInput.from_ints(np.array([1, 2])),
    "from numpy's ints": lambda t: t.ModelInput.from_ints([np.int64(1)]),
    "from floats": lambda t: t.ModelInput.from_ints([1.5]),
    "from whole floats": lambda t: t.ModelInput.from_ints([1.0]),
    "from a tuple": lambda t: t.ModelInput.from_ints((1, 2)),
    "from a range": lambda t: t.ModelInput.from_ints(range(3)),
    "from text": lambda t: t.ModelInput.from_ints("12"),
    "by position": lambda t: t.ModelInput([]),
    "to ints": lambda t: tokens(t).append_int(7).append(t.EncodedTextChunk(tokens=[8])).to_ints(),
    "length": lambda t: (tokens(t).append_int(7).length, t.ModelInput.empty().length),
    "an image": lambda t: t.ModelInput.empty().append(t.types.ImageChunk(data=PNG, format="png", expected_tokens=4)),
    "an image's length": lambda t: t.ModelInput(
        chunks=[t.types.ImageChunk(data=PNG, format="png", expected_tokens=4)]
    ).length,
    "an image of no known length": lambda t: t.types.ImageChunk(data=PNG, format="png").length,
    "an image of another format": lambda t: t.types.ImageChunk(data=PNG, format="gif"),
    "an image has no ints": lambda t: t.ModelInput(chunks=[t.types.ImageChunk(data=PNG, format="png")]).to_ints(),
    "an image in base64": lambda t: t.types.ImageChunk(data="iVBORw==", format="png"),
    "an image in bad base64": lambda t: t.types.ImageChunk(data="iVBOR", format="png"),
    "an image as json": lambda t: t.types.ImageChunk(data=PNG, format="png").model_dump_json(),
    "a pointer's length": lambda t: t.types.ImageAssetPointerChunk(format="png", location="a").length,
    "a chunk from a dictionary": lambda t: t.ModelInput(chunks=[{"type": "encoded_text", "tokens": [1]}]),
    "an image from a dictionary": lambda t: t.ModelInput(
        chunks=[{"type": "image", "data": "iVBORw==", "format": "png"}]
    ),
    "a chunk of another type": lambda t: t.ModelInput(chunks=[{"type": "video", "tokens": [1]}]),
    "a chunk with a field too much": lambda t: t.EncodedTextChunk(tokens=[1], text="a"),
    "model input assigned": lambda t: setattr(tokens(t), "chunks", []),
    "model input equal": lambda t: tokens(t) == tokens(t),
    "model input printed": lambda t: str(tokens(t)),
    "sound": lambda t: t.DmelChunk(dmel=bytes([1, 2, 0x80, 0x01, 3])).length,
    "sound with a mark": lambda t: t.DmelChunk(dmel=bytes([254, 1, 1, 9])).length,
    "sound of a single number": lambda t: t.DmelChunk(dmel=bytes([1, 0])).length,
    "sound of an unknown dtype": lambda t: t.DmelChunk(dmel=bytes([8, 1, 1])).length,
    "empty sound": lambda t: t.DmelChunk(dmel=b"").length,
    "only a mark": lambda t: t.DmelChunk(dmel=bytes([254])).length,
    "half a sound": lambda t: t.DmelChunk(dmel=bytes([1, 2, 0x80])).length,
    "an endless extent": lambda t: t.DmelChunk(dmel=bytes([1, 1] + [0x80] * 12)).length,
    # parameters
    "sampling params": lambda t: t.SamplingParams(),
    "every sampling param": lambda t: t.SamplingParams(
        max_tokens=3, seed=2**70, stop=["a"], temperature=0, top_k=5, top_p=0.5
    ),
    "stop as text": lambda t: t.SamplingParams(stop="a"),
    "stop as ids": lambda t: t.SamplingParams(stop=[1, 2]),
    "stop as nothing": lambda t: t.SamplingParams(stop=[]),
    "stop as both": lambda t: t.SamplingParams(stop=["a", 1]),
    "an unknown sampling param": lambda t: t.SamplingParams(min_p=0.1),
    "a sampling param by position": lambda t: t.SamplingParams(3),
    "a sampling param as text": lambda t: t.SamplingParams(max_tokens="3"),
    "a sampling param that is no number": lambda t: t.SamplingParams(temperature="hot"),
    "adam": lambda t: t.AdamParams(),
    "adam's json": lambda t: t.AdamParams(learning_rate=1).model_dump_json(),
    "an unknown adam param": lambda t: t.AdamParams(lr=1e-3),
    "adam copied": lambda t: t.AdamParams().model_copy(update={"beta1": 0.5}),
    "adam assigned": lambda t: setattr(t.AdamParams(), "beta1", 0.5),
    "dimuon": lambda t: t.DimuonParams(learning_rate=0.1),
    "dimuon without a rate": lambda t: t.DimuonParams(),
    "dimuon of a negative rate": lambda t: t.DimuonParams(learning_rate=-1),
    "dimuon of an infinite rate": lambda t: t.DimuonParams(learning_rate=float("inf")),
    "dimuon with beta1 1": lambda t: t.DimuonParams(learning_rate=0.1, beta1=1),
    "another optimizer": lambda t: t.types.CreateModelRequest(
        session_id="s", model_seq_id=0, base_model="b", optimizer_config={"type": "lion", "x": 1}
    ).model_dump_json(),
    "adam's step": lambda t: t.OptimStepRequest(optim_params=t.AdamParams(), model_id="m").model_dump(),
    "dimuon's step": lambda t: t.OptimStepRequest(
        adam_params=t.DimuonParams(learning_rate=1.0), model_id="m"
    ).model_dump_json(),
    "a step read": lambda t: t.OptimStepRequest.model_validate({"adam_params": {"beta1": 0.5}, "model_id": "m"}),
    "lora": lambda t: t.LoraConfig(rank=8, seed=1),
    "lora without a rank": lambda t: t.LoraConfig(),
    "lora with alpha": lambda t: t.LoraConfig(rank=8, alpha=16),
    "a request": lambda t: t.SampleRequest(
        prompt=tokens(t), sampling_params=t.SamplingParams(), target_prompt_logprobs={"data": [1], "dtype": "int64"}
    ).model_dump_json(),
    "a request with a tensor": lambda t: t.SampleRequest(
        prompt=tokens(t), sampling_params=t.SamplingParams(), target_prompt_logprobs=t.TensorData([1], "int64")
    ),
    # answers
    "an empty sequence": lambda t: sequence(t, t.SampledSequence("stop", "s")),
    "a sequence": lambda t: sequence(
        t,
        t.SampledSequence(
            "length",
            "s",
            np.array([3, 4], np.int32),
            np.array([-1.5, NAN], np.float32),
            topk(t, [[3, 0], [0, 0]], [[-1, -99999], [-99999, -99999]]),
        ),
    ),
    "a sequence of lists": lambda t: sequence(
        t, t.SampledSequence("stop", "s", _tokens_list=[1], _logprobs_list=[-1.0], _topk_logprobs_list=[None])
    ),
    "a response": lambda t: response(
        t.SampleResponse(
            [],
            np.array([NAN, -1.0], np.float32),
            topk(t, [[0, 0, 0], [1, 0, 2]], [[-99999] * 3, [-1, -99999, -2]]),
        )
    ),
    "an empty response": lambda t: response(t.SampleResponse(sequences=[])),
    "top k without k": lambda t: response(t.SampleResponse([], None, topk(t, np.ones((2, 0)), np.ones((2, 0))))),
    "top k without positions": lambda t: response(
        t.SampleResponse([], None, topk(t, np.ones((0, 2)), np.ones((0, 2))))
    ),
    "an output": lambda t: t.ForwardBackwardOutput("a", [{"logprobs": csr(t)}]),
    "an output has no loss": lambda t: t.ForwardBackwardOutput("a", []).loss,
    "an input": lambda t: t.types.ForwardBackwardInput([datum(t)], "ppo", {"a": 1}),
    "a path": lambda t: t.ParsedCheckpointTinkerPath.from_tinker_path("tinker://run:train:0/sampler_weights/a"),
    "a path of another kind": lambda t: t.ParsedCheckpointTinkerPath.from_tinker_path("tinker://run/other/a"),
    "a path too long": lambda t: t.ParsedCheckpointTinkerPath.from_tinker_path("tinker://run/weights/a/b"),
    "a path without a scheme": lambda t: t.ParsedCheckpointTinkerPath.from_tinker_path("run/weights/a"),
    "a console": lambda t: t.types.SaveWeightsResponse(path="tinker://r:train:0/weights/a b").get_console_url(),
    "a console of a sampler": lambda t: t.types.SaveWeightsForSamplerResponse(
        path="tinker://r:train:0/sampler_weights/a"
    ).get_console_url(),
    "a playground": lambda t: t.types.SaveWeightsForSamplerResponse(path="tinker://r/weights/a").get_playground_url(),
    "a console of no path": lambda t: t.types.SaveWeightsResponse(path="a").get_console_url(),
    "an answer with more": lambda t: t.types.LoadWeightsResponse(path="a", more=1),
    "a session's status": lambda t: t.types.SessionSummary.model_validate(FAILED),
    "a search for nobody": lambda t: t.types.UserSearchOwner(owner_urns=[]),
    "a search of 201": lambda t: t.types.SessionSearchRequest(limit=201),
    "a cursor without a time zone": lambda t: t.types.SessionSearchCursor(
        last_created_at="2026-01-01T00:00:00", last_session_id="s"
    ),
}  # fmt: skip


def sequence(t, sampled):
    return [sampled.tokens, sampled.logprobs, sampled.topk_logprobs, sampled.stop_reason, repr(sampled)]


def response(answered):
    return [answered.prompt_logprobs, answered.topk_prompt_logprobs, answered.prompt_cache_hit_tokens, repr(answered)]


@pytest.mark.parametrize("case", MAKERS)
def test_the_same_lines_do_the_same(assert_same, case):
    assert_same(MAKERS[case])


ANYTHING = st.recursive(
    st.one_of(st.integers(-(2**64), 2**64), st.floats(), st.booleans(), st.none(), st.text(max_size=2)),
    lambda parts: st.lists(parts, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["target_tokens", "weights", "mine"]), st.lists(ANYTHING, max_size=4))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_any_list_becomes_the_same_input_or_the_same_error(assert_same, name, values):
    assert_same(lambda t: datum(t, **{name: values}))


@pytest.mark.parametrize(
    "make",
    [
        lambda t: csr(t),
        lambda t: datum(t, target_tokens=[1, 2, 3]).with_provenance(spans(t, 3), spans(t, 3)),
        lambda t: t.ModelInput(chunks=[t.types.ImageChunk(data=PNG, format="png", expected_tokens=2)]),
        lambda t: t.SampleResponse([t.SampledSequence("stop", "s", np.array([1]))], None, topk(t, [[1]], [[-1.0]])),
        lambda t: t.ForwardBackwardOutput("a", [{"logprobs": csr(t)}], {"loss:sum": 1.0}),
        lambda t: t.DimuonParams(learning_rate=0.5),
        lambda t: t.types.RequestErrorCategory.User,
    ],
)
def test_a_value_survives_pickle_and_deepcopy(as_plain, make):
    value = make(ours)
    assert as_plain(pickle.loads(pickle.dumps(value))) == as_plain(value) == as_plain(copy.deepcopy(value))
    assert as_plain(value) == as_plain(make(theirs))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda t: t.TensorData([1]), "TensorData lacks dtype"),
        (lambda t: t.TensorData([1], "int8"), "TensorData.dtype is 'int8'; it can be 'int64' or 'float32'"),
        (lambda t: datum(t, mine=[1]), r"loss_fn_inputs\['mine'\] is a list, which has no dtype"),
        (lambda t: datum(t, weights=[[1], []]), r"loss_fn_inputs\['weights'\] is not a rectangle of numbers"),
        (lambda t: datum(t, weights={}), r"loss_fn_inputs\['weights'\] is a dict; pass a TensorData, list"),
        (lambda t: csr(t, col=[3]).to_numpy(), "sparse_col_indices names a column outside of 0 to 2"),
        (lambda t: t.Datum(tokens(t), {}, ["a"], []), r"model_input_spans\[0\] is a str"),
        (lambda t: datum(t).with_provenance(spans(t, 1), []), "spans of model_input cover 1 positions, and it has 3"),
        (lambda t: t.SampledProvenanceSpan(sequence_id="", length=1), "SampledProvenanceSpan.sequence_id is empty"),
        (lambda t: t.types.ImageChunk(data=PNG, format="png").length, "expected_tokens, which is not set"),
        (lambda t: t.ParsedCheckpointTinkerPath.from_tinker_path("a"), "tinker_path is 'a'; it has to be tinker://"),
    ],
)
def test_an_error_names_the_field(make, text):
    with pytest.raises((TypeError, ValueError, KeyError, RuntimeError), match=text):
        make(ours)
