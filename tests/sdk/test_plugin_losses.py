"""Losses of an installed package through the vendor's SDK: the whole batch, outputs of their own, what goes wrong."""

import json
import shutil
import sys
import urllib.request
from pathlib import Path

import httpx
import numpy as np
import pytest
import tinker
import torch

import weaver.compat.tinker as ours
from weaver.compat.tinker.transports.in_process import end_all

LLAMA, QWEN = "tiny/llama", "tiny/qwen3"
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The package `weaver-tested`, as pip would leave it on the path."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(HERE / "plugin_losses.py", folder / "weaver_tested.py")
    metadata = folder / "weaver_tested-0.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: weaver-tested\nVersion: 0.3\n")
    (metadata / "entry_points.txt").write_text("[weaver]\ntested = weaver_tested\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        import weaver_tested

        yield weaver_tested
    sys.modules.pop("weaver_tested", None)


@pytest.fixture(scope="module")
def server(plugin, folders, server_class, tmp_path_factory):
    running = server_class(folders, tmp_path_factory.mktemp("data"))
    yield running
    running.stop()


def bradley_terry(beta):
    def formula(logprobs):
        sums = [lp.sum() for lp in logprobs]
        margins = [beta * (better - worse) for better, worse in zip(sums[::2], sums[1::2])]
        return sum(torch.log1p(torch.exp(-margin)) for margin in margins)

    return formula


def split(client, size):
    """Make the SDK send calls in parts of so many data, as it does with more than 1024 or 5 MB."""
    holder = client.holder
    holder._client_config = holder._client_config.model_copy(update={"fwdbwd_max_chunk_len": size})


@pytest.fixture
def expected(reference):
    """Value and gradients of a formula over all logprobs, by transformers, peft and autograd."""

    def compute(client, base_model, batch, formula):
        model = reference(client, base_model)
        model.model.zero_grad()
        value = formula([model.logprobs(datum) for datum in batch])
        value.backward()
        named = model.model.named_parameters()
        gradients = {n.replace(".default", ""): p.grad.numpy().copy() for n, p in named if "lora_" in n}
        return value.item(), gradients

    return compute


@pytest.mark.parametrize("base_model", [LLAMA, QWEN])
def test_a_loss_that_sees_the_batch_agrees_with_autograd(
    trained, expected, measured, data, assert_same_gradients, base_model
):
    """More tokens than one micro-batch holds, so that the logprobs come from several."""
    client = trained(base_model)
    batch = [data.datum(length) for length in (13, 40, 200, 190, 250, 240, 120, 200, 1, 2)]
    value, gradients = expected(client, base_model, batch, bradley_terry(0.05))
    found = client.forward_backward(batch, "bradley_terry", {"beta": 0.05}).result()
    assert found.metrics["loss:sum"] == pytest.approx(value, rel=1e-5)
    assert found.metrics["pairs:sum"] == 5
    for output in found.loss_fn_outputs:
        assert output["sum"].to_numpy() == pytest.approx(output["logprobs"].to_numpy().sum(), rel=1e-5)
    assert_same_gradients(measured(client), gradients, tolerance=1e-5)


def test_a_batch_loss_reads_inputs_of_all_data(trained, expected, measured, data, assert_same_gradients):
    client, rewards = trained(), [1.0, -2.0, 0.5]
    batch = [data.datum(length) for length in (9, 4, 17)]
    for datum, reward in zip(batch, rewards):
        datum.loss_fn_inputs["reward"] = tinker.TensorData.from_numpy(np.array([reward], np.float32))
    mean = sum(rewards) / 3
    value, gradients = expected(
        client, LLAMA, batch, lambda lps: -sum((r - mean) * lp.sum() for r, lp in zip(rewards, lps))
    )
    assert client.forward_backward(batch, "centred").result().metrics["loss:sum"] == pytest.approx(value, rel=1e-5)
    assert_same_gradients(measured(client), gradients, tolerance=1e-5)


def test_forward_alone_gives_the_batchs_value_and_no_gradient(trained, data):
    client, batch = trained(), [data.datum(length) for length in (9, 4)]
    alone = client.forward(batch, "bradley_terry").result()
    assert client.optim_step(tinker.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"] == 0
    both = client.forward_backward(batch, "bradley_terry").result()
    assert alone.metrics == pytest.approx(both.metrics, rel=1e-6)
    assert client.optim_step(tinker.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"] > 0


def test_a_call_that_the_sdk_splits_is_one_batch(trained, expected, measured, data, assert_same_gradients, plugin):
    client = trained()
    batch = [data.datum(length) for length in (13, 4, 20, 19, 25, 24, 12)] + [data.datum(3)]
    value, gradients = expected(client, LLAMA, batch, bradley_terry(0.1))
    split(client, 3)
    plugin.seen.clear()
    found = client.forward_backward(batch, "bradley_terry").result()
    assert plugin.seen == [8]
    assert found.metrics["loss:sum"] == pytest.approx(value, rel=1e-5)
    assert found.metrics["pairs:sum"] == 4
    assert [len(one["logprobs"].data) for one in found.loss_fn_outputs] == [13, 4, 20, 19, 25, 24, 12, 3]
    assert_same_gradients(measured(client), gradients, tolerance=1e-5)


def test_calls_that_follow_each_other_are_batches_of_their_own(trained, data, plugin):
    client = trained()
    split(client, 3)
    plugin.seen.clear()
    sizes = (2, 4, 8, 2)
    futures = [client.forward_backward([data.datum(3) for _ in range(size)], "bradley_terry") for size in sizes]
    assert [len(future.result().loss_fn_outputs) for future in futures] == list(sizes)
    assert plugin.seen == list(sizes)


@pytest.mark.parametrize("targets", [None, 3])
def test_a_losss_own_outputs_arrive_beside_the_logprobs(trained, data, targets):
    client = trained()
    batch = [data.datum(length, targets, weights=(-1.0, 2.0)) for length in (5, 2)]
    output = client.forward_backward(batch, "telling", {"times": 2}).result()
    for datum, found in zip(batch, output.loss_fn_outputs, strict=True):
        weights, logprobs = datum.loss_fn_inputs["weights"].to_numpy(), found["logprobs"].to_numpy()
        np.testing.assert_allclose(found["weighted"].to_numpy(), weights * logprobs, rtol=1e-6)
        assert found["length"].to_numpy().tolist() == [2 * len(weights)]


def test_an_optional_input_may_be_left_out_of_some_data(trained, data):
    client, with_weights, without = trained(), data.datum(5, weights=(-1.0, 2.0)), data.datum(4)
    output = client.forward_backward([with_weights, without], "telling").result()
    lp = output.loss_fn_outputs[1]["logprobs"].to_numpy()
    np.testing.assert_array_equal(output.loss_fn_outputs[1]["weighted"].to_numpy(), lp)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"form": "cubed"}, r"loss_fn_config\['form'\] is 'cubed'; the loss 'telling' takes one of 'plain', 'squared'"),
        ({"form": 1.0}, r"loss_fn_config\['form'\] is 1.0; the loss 'telling' takes one of"),
        ({"times": 1.5}, r"loss_fn_config\['times'\] is 1.5; the loss 'telling' needs a whole number"),
        ({"times": 4}, r"takes finite values from 1 to 3"),
        ({"time": 4}, r"loss_fn_config\['time'\] is not read by the loss 'telling': it reads form, times"),
    ],
)
def test_a_config_that_is_not_taken_is_refused_by_name(trained, data, config, message):
    with pytest.raises(tinker.BadRequestError, match=message):
        trained().forward_backward([data.datum(5)], "telling", config).result()


def test_a_text_of_the_config_reaches_the_loss(trained, data):
    client, batch = trained(), [data.datum(5)]
    output = client.forward_backward(batch, "telling", {"form": "squared"}).result()
    assert output.metrics["loss:sum"] == pytest.approx(np.square(output.loss_fn_outputs[0]["logprobs"].data).sum())


BROKEN = {
    "vector": r"the loss 'vector' of weaver-tested 0.3 failed on data\[0\]: it returned \(3,\), not a scalar tensor",
    "not_finite": r"the loss 'not_finite' of weaver-tested 0.3 failed on data\[0\]: its value is -inf",
    "constant": r"the loss 'constant' of weaver-tested 0.3 failed on data\[0\]: .* it has no gradient",
    "raising": r"the loss 'raising' of weaver-tested 0.3 failed on data\[0\]: KeyError: 'oh'",
    "raising_batch": r"the loss 'raising_batch' of weaver-tested 0.3 failed on the batch data\[0\] to data\[1\]: Key",
    "steep": r"the loss 'steep' of weaver-tested 0.3 failed on data\[0\] of its batch: its gradient is not finite",
    "misshapen": r"'misshapen' of weaver-tested 0.3 failed on data\[0\]: its output 'weighted' has shape \(2,\); ",
}


@pytest.mark.parametrize("loss", BROKEN)
def test_a_loss_that_breaks_the_contract_fails_its_own_pass_only(
    trained, measured, data, assert_same_gradients, service_client, loss
):
    client, other = trained(), service_client.create_lora_training_client(LLAMA, rank=2, seed=1).result()
    good = data.supervised(11, 30)
    client.forward_backward(good, "cross_entropy").result()
    alone = measured(client)
    client.forward_backward(good, "cross_entropy").result()
    failing = client.forward_backward([data.datum(3), data.datum(4)], loss)
    others = other.forward_backward(good, "cross_entropy")
    with pytest.raises(tinker.RequestFailedError, match=BROKEN[loss]):
        failing.result()
    assert np.isfinite(others.result().metrics["loss:sum"])
    assert_same_gradients(measured(client), alone, tolerance=1e-6)


def test_sdks_that_may_send_a_call_in_pieces_are_refused(server, trained, data):
    """Those before 0.25, which write JSON: a part of theirs cannot be told from a call."""
    client, asked = trained(), {"input": {"data": [], "loss_fn": "bradley_terry"}}
    seq_id = client.save_state("counting").result() and client._request_id_counter + 1
    for route, field in (("forward_backward", "forward_backward_input"), ("forward", "forward_input")):
        body = {"model_id": client.model_id, "seq_id": seq_id, field: {**asked["input"], "data": [one_datum(3)]}}
        answer = httpx.post(f"{server.url}/api/v1/{route}", json=body, headers={"X-API-Key": "tml-x"})
        assert answer.status_code == 400
        assert "the loss 'bradley_terry' must see all data of a call, which SDKs before 0.25" in answer.json()["detail"]


def one_datum(length):
    tokens = list(range(2, 2 + length))
    targets = {"data": tokens, "dtype": "int64", "shape": [length]}
    return {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
        "loss_fn_inputs": {"target_tokens": targets},
    }


@pytest.mark.parametrize("over_http", [True, False])
def test_weavers_own_client_gets_a_losss_outputs_too(server, folders, tmp_path, over_http, monkeypatch, data):
    monkeypatch.setenv("WEAVER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WEAVER_MODEL_ALIASES", f"{LLAMA}={folders[LLAMA]}")
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    where = {"base_url": server.url, "api_key": "tml-x"} if over_http else {}
    try:
        client = ours.ServiceClient(**where).create_lora_training_client(LLAMA, rank=2)
        tensor = ours.TensorData.from_numpy(np.array([4, 5, 6]))
        datum = ours.Datum(model_input=ours.ModelInput.from_ints([3, 4, 5]), loss_fn_inputs={"target_tokens": tensor})
        [found] = client.forward_backward([datum], "telling", {"times": 2}).result().loss_fn_outputs
        np.testing.assert_array_equal(found["weighted"].to_numpy(), found["logprobs"].to_numpy())
        assert found["length"].to_numpy().tolist() == [6]
        pair = client.forward_backward([datum, datum], "bradley_terry").result()
        assert pair.metrics["loss:sum"] == pytest.approx(np.log(2), rel=1e-6)
    finally:
        end_all()


def test_the_records_are_told_over_http(server):
    with urllib.request.urlopen(f"{server.url}/api/v1/losses") as answer:
        told = {one["name"]: one for one in json.load(answer)["losses"]}
    assert told["bradley_terry"]["batch"] is True
    assert told["bradley_terry"]["plugin"] == "weaver-tested 0.3"
    assert told["ppo"]["plugin"] == "weaver.plugins.losses"
    assert told["telling"]["config"][0]["choices"] == ["plain", "squared"]
    assert told["telling"]["outputs"][1] == {"name": "length", "dtype": "float32", "shape": "scalar", "description": ""}
    beta, temperature = told["dro"]["config"]
    assert (beta["required"], beta["default"], beta["minimum"], beta["maximum"]) == (True, None, 0.0, None)
    assert (temperature["name"], temperature["required"], temperature["default"]) == ("temperature", False, 1.0)
