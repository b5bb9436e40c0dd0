"""Sampling masks on Weaver's wire, and what of them is refused; no torch: the backend `echo` computes over them."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from weaver.backend import ModelSource
from weaver.compat.weaver_wire import WireContext, dispatch, ids
from weaver.config import Config
from weaver.domain import AdamParams, Datum, ForwardBackward, OptimStep, TokenRows
from weaver.errors import InvalidInput, PluginBroken
from weaver.loss import Loss, LossInput
from weaver.registry import load_registry
from weaver.service import Service

MODEL, FIELD = "some/echo", "data[0].loss_fn_inputs['sampling_mask']"
TARGETS, WEIGHTS = [6, 7, 8], [1.0, 0.5, 2.0]
ROWS = [[6, 2], [], [9, 4, 8]]


def started(tmp_path, registry=None):
    source = ModelSource(MODEL, "echo:vocab=10,context=64")
    return Service(Config(models=(source,), data_dir=tmp_path, backend="echo", sampler="echo"), registry=registry)


@pytest.fixture
def service(tmp_path):
    made = started(tmp_path)
    yield made
    made.close()


@pytest.fixture
def context(service):
    return WireContext(service)


def ask(context, method, path, body):
    return asyncio.run(dispatch(context, method, path, None, body))


def new_model(context):
    _, session = ask(context, "POST", "/sessions", {"tags": []})
    body = {"model_seq_id": 1, "base_model": MODEL, "lora_config": {"rank": 4}}
    return ask(context, "POST", f"/sessions/{session['id']}/models", body)[1]["id"]


@pytest.fixture
def model_id(context):
    return new_model(context)


def ask_pass(context, model_id, mask, loss="cross_entropy", kind="forward-backward", **inputs):
    given = {"target_tokens": TARGETS, "weights": WEIGHTS, **inputs, "sampling_mask": mask}
    one = {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": [5, 6, 7]}]},
        "loss_fn_inputs": {name: value for name, value in given.items() if value is not None},
    }
    field = kind.replace("-", "_") + "_input"
    number = context.service.free_number(ids.inner(model_id))
    body = {"payload": {"seq_id": number, field: {"loss_fn": loss, "data": [one]}}}
    return ask(context, "POST", f"/models/{model_id}/{kind}-passes", body)


def logprobs(answer):
    status, told = answer
    assert status == 200, told
    [output] = told["response"]["result"]["loss_fn_outputs"]
    return output["logprobs"]["data"].tolist()


def uniform(*counts):
    """Of tokens drawn among so many: a new model finds all equally likely."""
    return pytest.approx([-np.log(count) for count in counts])


def test_probabilities_are_over_the_rows_and_an_empty_one_keeps_all(context, model_id):
    assert logprobs(ask_pass(context, model_id, ROWS)) == uniform(2, 10, 3)


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        ([[6, 2], [7, 1], [8, 0]], (2, 2, 2)),
        ({"data": [[6, 2], [7, 1], [8, 0]], "dtype": "int64"}, (2, 2, 2)),
        (np.array([[6], [7], [8]]), (1, 1, 1)),
        (np.array([[6, 2], [7, 1], [8, 0]], np.int32), (2, 2, 2)),
        ({"data": [[], [], []], "dtype": "float32"}, (10, 10, 10)),
        ([[], [], []], (10, 10, 10)),
        (((6, 2), (), (8,)), (2, 10, 1)),
    ],
    ids=str,
)
def test_rows_of_one_length_may_be_a_tensor_as_the_sdks_make_them(context, model_id, mask, counts):
    assert logprobs(ask_pass(context, model_id, mask)) == uniform(*counts)


def test_a_target_that_does_not_count_needs_no_row(context, model_id):
    """Its row says nothing of the token that stands in its place."""
    found = logprobs(ask_pass(context, model_id, [[6, 2], [3], [8]], target_tokens=[6, -100, 8]))
    assert found == pytest.approx([-np.log(2), 0, 0])
    assert logprobs(ask_pass(context, model_id, ROWS, target_tokens=[-100, 7, 8])) == pytest.approx(
        [0, -np.log(10), -np.log(3)]
    )


def test_another_mask_is_another_request(context, model_id):
    def numbered(mask):
        one = {"model_input": {"chunks": [{"tokens": [5, 6, 7]}]},
               "loss_fn_inputs": {"target_tokens": TARGETS, "weights": WEIGHTS, "sampling_mask": mask}}  # fmt: skip
        body = {"payload": {"seq_id": 1, "forward_backward_input": {"loss_fn": "cross_entropy", "data": [one]}}}
        return ask(context, "POST", f"/models/{model_id}/forward-backward-passes", body)

    first, again, other = numbered(ROWS), numbered(ROWS), numbered([[6, 2], [], [8]])
    assert (first[0], again[1]["id"]) == (200, first[1]["id"])
    assert (other[0], other[1]["error"]) == (409, "sequence_refused")


REFUSED = {
    "too few rows": ([[6], [7]], " has 2 rows, and target_tokens has 3 tokens; give a row for each: an empty row"),
    "too many rows": ([[6], [7], [8], []], " has 4 rows, and target_tokens has 3 tokens"),
    "no such token": ([[6], [7, 10], [8]], "[1] has the token 10; token ids of 'some/echo' go from 0 to 9"),
    "a negative token": ([[6], [7], [8, -1]], "[2] has the token -1; token ids"),
    "a token twice": ([[], [7], [3, 8, 3]], "[2] has the token 3 more than once"),
    "a row without its target": (
        [[6], [], [4, 9]],
        "[2] lacks 8, the target at [2], whose probability would be 0; a row must have its target, and an empty row",
    ),
    "numbers": ([1, 2, 3], " must be a list of token ids for each target: rows of whole numbers"),
    "fractions": ([[6.5], [7], [8, 1]], " must be a list of token ids"),
    "booleans": ([[True], [7], [8, 1]], " must be a list of token ids"),
    "texts": ([["6"], [7], [8, 1]], " must be a list of token ids"),
    "huge numbers": ([[2**70], [7], [8, 1]], " must be a list of token ids"),
    "deeper lists of many lengths": ([[[6], [7, 1]], [7], [8]], " must be a list of token ids"),
    "no row": ([None, [7], [8]], " must be a list of token ids"),
    "no token": ([[6, None], [7], [8]], " must be a list of token ids"),
    "numbers past 63 bits": ([[2**63], [7], [8]], " must be a list of token ids"),
    "deeper lists": ([[[6]], [[7]], [[8]]], " must be a list of token ids"),
    "a table of fractions": ({"data": [[6.0], [7.0], [8.0]], "dtype": "float32"}, " must be a list of token ids"),
    "one row alone": ({"data": [6, 7, 8], "dtype": "int64"}, " must be a list of token ids"),
    "a text": ("678", " must be a list of token ids"),
    "nothing": ({}, " must be an object with data and dtype"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_mask_is_refused_by_name_and_changes_nothing(context, service, model_id, name):
    mask, sentence = REFUSED[name]
    status, told = ask_pass(context, model_id, mask)
    assert (status, told["error"]) == (400, "invalid_request")
    assert told["message"].startswith(FIELD + sentence), told["message"]
    number = service.free_number(ids.inner(model_id))
    ticket = service.submit(ids.inner(model_id), number, OptimStep(AdamParams()))
    assert service.future(ticket.request_id).result(60).metrics == {"grad_norm": 0.0}


def test_several_targets_for_a_token_have_no_masks(context, model_id):
    status, told = ask_pass(context, model_id, ROWS, target_tokens=[[6, 1], [7, 1], [8, 1]], weights=[[1.0, 1.0]] * 3)
    assert status == 400
    assert (
        f"{FIELD} needs target_tokens of shape (T,), one target per token; here it has shape (3, 2)" in told["message"]
    )


@pytest.mark.parametrize("name", ["sampling_mask_ref", "sampling_mask_refs", "sampling_mask_slice"])
def test_masks_by_reference_are_refused_and_the_other_way_is_told(context, model_id, name):
    one = {"model_input": {"chunks": [{"tokens": [5]}]}, "metadata": {name: {}},
           "loss_fn_inputs": {"target_tokens": [6], "weights": [1.0]}}  # fmt: skip
    body = {"payload": {"seq_id": 1, "forward_backward_input": {"loss_fn": "cross_entropy", "data": [one]}}}
    status, told = ask(context, "POST", f"/models/{model_id}/forward-backward-passes", body)
    assert (status, told["error"]) == (400, "not_offered")
    assert f"data[0].metadata[{name!r}]: this server keeps no sampling masks" in told["message"]
    assert "loss_fn_inputs['sampling_mask']" in told["message"]


def test_the_name_that_samples_have_is_refused_with_the_right_one(context, model_id):
    status, told = ask_pass(context, model_id, None, sampling_masks=ROWS)
    assert (status, told["error"]) == (400, "not_offered")
    assert "called 'sampling_mask'" in told["message"]


# Losses and backends that know of none


def plain(logprobs, inputs, config):
    return -logprobs.sum()


def submitted(service, datum, loss="cross_entropy"):
    """A pass at the front door, where Tinker's protocol comes in too."""
    model_id = ids.inner(new_model(WireContext(service)))
    return service.submit(model_id, 1, ForwardBackward((datum,), loss, {}, backward=False))


def datum(mask=None, **inputs):
    arrays = {"target_tokens": np.array(TARGETS), "weights": np.array(WEIGHTS, np.float32), **inputs}
    return Datum(np.array([5, 6, 7]), arrays, sampling_mask=mask)


def test_a_loss_that_takes_no_masks_refuses_them(tmp_path):
    registry = load_registry()
    losses = {**registry.losses, "plain": Loss("plain", plain, (LossInput("weights"),))}
    service = started(tmp_path, replace(registry, losses=losses))
    try:
        with pytest.raises(InvalidInput) as refused:
            submitted(service, datum(TokenRows.of_lists(ROWS)), "plain")
    finally:
        service.close()
    assert str(refused.value) == f"{FIELD} is not read by the loss 'plain', which knows of no sampling masks"


def test_a_backend_that_heeds_no_masks_gets_none(tmp_path):
    registry = load_registry()
    older = replace(registry.backend("echo"), sampling_masks=False)
    service = started(tmp_path, replace(registry, backends={**registry.backends, "echo": older}))
    try:
        with pytest.raises(InvalidInput) as refused:
            submitted(service, datum(TokenRows.of_lists(ROWS)))
        assert submitted(service, datum()).request_id
    finally:
        service.close()
    assert str(refused.value) == (
        f"{FIELD}: this server's backend, 'echo', computes probabilities over the whole vocabulary only; leave it out"
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "forward_logprob"])
def test_an_array_of_that_name_as_tinkers_protocol_has_it_is_refused(service, loss):
    """Also where a loss carries what it does not read."""
    with pytest.raises(InvalidInput) as refused:
        submitted(service, datum(sampling_mask=np.array([[6], [7], [8]])), loss)
    assert str(refused.value).startswith(
        f"{FIELD} is an array; a sampling mask is a list of token ids for each target, which only Weaver's own protocol"
    )


def test_a_loss_may_not_call_an_input_of_its_own_so():
    with pytest.raises(PluginBroken, match="declares 'sampling_mask' twice among its inputs, or it is taken"):
        Loss("mine", plain, (LossInput("sampling_mask"),), sampling_masks=True)
