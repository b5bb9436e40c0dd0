"""The values of Weaver's API: what they take, what they refuse, and how they travel."""

import asyncio
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest
import torch

import weaver
from weaver import align_training_outputs, attach_loss_fn_outputs, types
from weaver.types.tensor import tensor_payload


def datum(tokens=(1, 2), **more):
    return types.Datum(model_input=types.ModelInput.from_ints(list(tokens)), **more)


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([0, 1, 1], {"data": [0, 1, 1], "dtype": "int64"}),
        ([0.0, 0.5], {"data": [0.0, 0.5], "dtype": "float32"}),
        ([True, False], {"data": [1, 0], "dtype": "int64"}),
        (torch.tensor([1.5, 2.0], dtype=torch.bfloat16), {"data": [1.5, 2.0], "dtype": "float32"}),
        (torch.tensor([1, 2], dtype=torch.int32), {"data": [1, 2], "dtype": "int64"}),
        (np.array([0.25, 1.0]), {"data": [0.25, 1.0], "dtype": "float32"}),
        ([[1.0], [2.0]], {"data": [[1.0], [2.0]], "dtype": "float32"}),
        (torch.tensor([1.0], requires_grad=True), {"data": [1.0], "dtype": "float32"}),
    ],
    ids=str,
)
def test_numbers_with_a_point_travel_as_float32_and_all_others_as_int64(values, written):
    assert tensor_payload(values).to_dict() == written
    assert datum(loss_fn_inputs={"a": values}).to_payload()["loss_fn_inputs"]["a"] == written
    assert datum(loss_fn_inputs={"a": values}).tensors()["a"].to_dict() == written


def test_a_type_can_be_asked_for_and_a_tensor_made():
    made = types.TensorData.from_array([1, 2], dtype="float64")
    assert made.to_dict() == {"data": [1.0, 2.0], "dtype": "float64"}
    assert made.to_tensor().dtype == torch.float64
    for use in (
        lambda: types.TensorData.from_array([1], dtype="int8"),
        lambda: types.TensorData([1], "int8").to_tensor(),
        lambda: tensor_payload(torch.tensor([1j])),
        lambda: tensor_payload(np.array([2**63], np.uint64)),
    ):
        with pytest.raises(TypeError, match="Unsupported"):
            use()


def test_loss_inputs_become_tensors_and_uneven_lists_stay():
    made = datum(loss_fn_inputs={"weights": [0, 1], "mask": [[1], [2, 3]], "mixed": [[1], 2]})
    assert torch.equal(made.loss_fn_inputs["weights"], torch.tensor([0, 1]))
    assert made.loss_fn_inputs["mask"] == [[1], [2, 3]]
    assert made.to_payload()["loss_fn_inputs"]["mixed"] == [[1], 2]


def test_what_is_changed_later_is_checked_again_and_does_not_reach_what_was_sent(local):
    made = datum([5, 9, 3], loss_fn_inputs={"target_tokens": torch.tensor([9, 3, 7]), "weights": torch.ones(3)})
    made.model_input.chunks[0].tokens.append(-8)
    with pytest.raises(ValueError, match="model input tokens must be non-negative"):
        made.to_payload()
    made.model_input.chunks[0].tokens.pop()

    async def changed_meanwhile():
        async with weaver.AsyncServiceClient() as service:
            trainer = await service.create_model(base_model="tiny/llama", lora_config={"rank": 4, "seed": 3})
            expected = await trainer.forward([made], "cross_entropy")
            asked = trainer.forward([made], "cross_entropy")
            made.loss_fn_inputs["weights"].zero_()
            return await asked, expected

    asked, expected = asyncio.run(changed_meanwhile())
    assert asked == expected
    made.loss_fn_inputs["target_tokens"][0] = -5
    with pytest.raises(ValueError, match="may not contain negative token IDs other than -100"):
        made.to_payload()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: types.ModelInput.from_ints([True]), "must be integers"),
        (lambda: types.ModelInput.from_ints([1.0]), "must be integers"),
        (lambda: types.ModelInput.from_ints([1, -1]), "must be non-negative"),
        (lambda: types.ModelInput([types.ModelInputChunk("image", [1])]).to_ints(), "encoded_text only"),
        (lambda: types.Datum(), "exactly one of model_input or sample_ref"),
        (lambda: datum(sample_ref=types.SampleRef("a", "1", 0)), "exactly one of model_input or sample_ref"),
        (lambda: datum(loss_fn_inputs={"target_tokens": [-8, 1]}), "redacted -8 tokens are response-only"),
        (lambda: datum(loss_fn_inputs={"target_tokens": [-1, 1]}), "negative token IDs other than -100"),
        (lambda: datum(datum_id=" "), "datum_id must be a non-empty string"),
        (lambda: datum(datum_id="a" * 256), "at most 255"),
        (
            lambda: types.Datum.from_sample_ref(
                dataset="a", version="1", sample_idx=0, loss_fn_inputs={"weights": [1]}
            ),
            "server-owned loss inputs: weights",
        ),
        (lambda: types.SampleRef("a/b", "1", 0), "dataset must be a single safe path segment"),
        (lambda: types.SampleRef("a", "1", -1), "sample_idx must be an integer of at least 0"),
        (lambda: types.SamplingParams(stop=[True]).to_payload(), r"stop\[0\] is True"),
        (lambda: types.coerce_pause_mode("x"), "invalid pause mode 'x'"),
    ],
)
def test_what_makes_no_sense_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_targets_that_do_not_count_and_numpys_integers_are_read():
    assert datum(loss_fn_inputs={"target_tokens": [-100, 3]}).tensors()["target_tokens"].data == [-100, 3]
    made = types.ModelInput.from_ints(tokens=np.array([1, 2]))
    made.extend_tokens([3])
    assert made.to_payload() == {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]}
    assert type(made.to_ints()[0]) is int
    empty = types.ModelInput()
    assert empty.to_ints() == []
    empty.extend_tokens([4])
    assert empty.to_ints() == [4]


def test_a_text_alone_is_one_stop():
    assert types.SamplingParams(stop="END").to_payload()["stop"] == ["END"]
    assert types.SamplingParams(stop=["\n", 7, "a"]).to_payload() == {
        "temperature": 1.0, "top_p": 1.0, "top_k": -1, "stop": ["\n", "a"], "stop_token_ids": [7]
    }  # fmt: skip


def test_one_id_gives_every_datum_one_which_the_outputs_must_have():
    data = [datum([1]), datum([2], datum_id="mine"), datum([1])]
    again = [datum([7]), datum([2], datum_id="mine"), datum([8])]
    outputs = [{"logprobs": {"data": [-1.0 * i]}, "datum_id": name} for i, name in enumerate(ids_of(data))]
    assert ids_of(data) == ids_of(again), "tokens do not show in them"
    assert len(set(ids_of(data))) == 3
    assert align_training_outputs(data, {"result": {"loss_fn_outputs": outputs}}) == outputs
    attached = attach_loss_fn_outputs(data, {"loss_fn_outputs": outputs})
    assert [one.loss_fn_inputs["old_logprobs"].tolist() for one in attached] == [[0.0], [-1.0], [-2.0]]
    assert data[0].loss_fn_inputs == {}, "the data themselves have not changed"
    with pytest.raises(ValueError, match=r"loss_fn_outputs\[0\] datum_id does not match"):
        align_training_outputs(data, {"loss_fn_outputs": outputs[::-1]})
    with pytest.raises(ValueError, match=r"loss_fn_outputs\[0\] has invalid datum_id"):
        align_training_outputs(data, {"loss_fn_outputs": [{}, {}, {}]})
    with pytest.raises(ValueError, match="datum 1: duplicate datum_id 'a'"):
        align_training_outputs([datum(datum_id="a"), datum(datum_id="a")], {"loss_fn_outputs": [{}, {}]})


def ids_of(data):
    from weaver.types.datum import identified

    return [one.datum_id for one in identified(data)]


def test_ids_come_back_from_the_service(local, server):
    for where in ({}, {"base_url": server}):
        with weaver.ServiceClient(**where) as service:
            trainer = service.create_model(base_model="tiny/llama", lora_config={"rank": 4})
            inputs = {"target_tokens": [9, 3], "weights": [1.0, 1.0]}
            data = [datum([5, 9], loss_fn_inputs=inputs), datum([5, 9], loss_fn_inputs=inputs, datum_id="mine")]
            result = trainer.forward(data, "cross_entropy")
            aligned = align_training_outputs(data, result)
            assert [one["datum_id"] for one in aligned] == ids_of(data)
            attached = attach_loss_fn_outputs(data, result, field_map={"logprobs": "logprobs"})
            assert attached[1].loss_fn_inputs["logprobs"].tolist() == aligned[1]["logprobs"]["data"]


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ({}, "must contain a loss_fn_outputs array"),
        ({"loss_fn_outputs": [{}, {}]}, "Expected 1 loss_fn_outputs, got 2"),
        ({"loss_fn_outputs": [1]}, "must be an array of objects"),
        ({"loss_fn_outputs": [{}], "result": {"loss_fn_outputs": [{"a": 1}]}}, "ambiguous loss_fn_outputs"),
    ],
)
def test_a_result_of_other_data_is_refused(result, sentence):
    with pytest.raises(ValueError, match=sentence):
        align_training_outputs([datum()], result)


def test_tokens_and_what_is_the_servers_are_not_attached():
    result = {"loss_fn_outputs": [{"logprobs": [-1.0], "target_tokens": [1], "x": [[1]]}]}
    for fields in ({"target_tokens": "a"}, {"logprobs": "weights"}):
        with pytest.raises(ValueError, match="token-bearing or server-owned fields"):
            attach_loss_fn_outputs([datum()], result, field_map=fields)
    with pytest.raises(ValueError, match=r"loss_fn_outputs\[0\] is missing nothing"):
        attach_loss_fn_outputs([datum()], result, field_map={"nothing": "a"})
    with pytest.raises(ValueError, match="x must be one-dimensional"):
        attach_loss_fn_outputs([datum()], result, field_map={"x": "a"})


def test_a_hidden_sample_that_shows_anything_is_refused():
    told = {
        "kind": "sample_ref_output",
        "datum_id": "d",
        "sample_ref": {"dataset": "a", "version": "1", "sample_idx": 0},
        "input_token_count": 2,
        "content_visibility": "protected",
        "target_tokens": [-8, -8],
    }
    data = [types.Datum.from_sample_ref(dataset="a", version="1", sample_idx=0, datum_id="d")]
    [found] = align_training_outputs(data, {"loss_fn_outputs": [told]})
    assert found.is_redacted
    assert found.target_tokens == (-8, -8)
    for more in ({"target_tokens": [-8, 5]}, {"logprobs": [-1.0, -2.0]}, {"token_ids": [1, 2]}):
        with pytest.raises(ValueError, match=r"-8 sentinel|may not have logprobs"):
            types.SampleRefOutput.from_payload({**told, **more})


def test_a_price_is_exact():
    price = {"unit": "1M", "unit_price_micros": 1}
    kinds = ("training_tokens", "sampling_prefill_tokens", "sampling_cached_prefill_tokens", "sampling_output_tokens")
    prices = {f"{kind}:lora": price for kind in kinds}
    told = {"id": "a", "name": "b", "training_modes": ["lora", "full-ft"], "prices": prices}
    model = types.SupportedModel.from_payload(told)
    assert [mode.mode for mode in model.training_modes] == ["lora"], "a mode without its prices is not offered"
    assert model.training_mode("LoRA").price.unit_price_usd == Decimal("0.000001")
    assert set(model.sampling_prices) == set(kinds[1:])
    assert model.to_dict(mode="full_ft")["training_modes"] == []


WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else found(name, package)
import weaver
from weaver import types
made = types.Datum(types.ModelInput.from_ints([5, 9]), {"target_tokens": [9, 3], "weights": [1.0, 0.5]})
with weaver.ServiceClient(base_url=sys.argv[1]) as service:
    trainer = service.create_model(base_model="tiny/llama", lora_config={"rank": 4})
    print(trainer.forward_backward([made], "cross_entropy")["result"]["metrics"]["loss"] > 0)
try:
    types.TensorData([1], "int64").to_tensor()
except ImportError as error:
    print(error)
"""


def test_naming_the_api_loads_no_framework():
    code = "import sys, weaver, weaver.training_client; weaver.types, weaver.ServiceClient; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "httpx" in loaded
    assert loaded & {"torch", "transformers", "peft", "tokenizers", "fastapi", "tinker"} == set()


def test_a_client_of_a_server_needs_no_torch(server):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, server], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout.splitlines() == ["True", "tensors need torch: pip install 'weaver-train[peft]'"], done.stderr
