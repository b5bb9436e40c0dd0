"""Steps and checkpoints: any number of ranks trains the same, begins the same and goes on from the same files."""

import dataclasses

import numpy as np
import pytest
import rank_tasks
import tiny_models
from parity import LOSSES, OnRanks, datum, random_state
from peft import LoraConfig, PeftModel
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM
from weaver_megatron.layout import Layout
from weaver_peft.trainer import open_backend

from weaver.backend import Pass
from weaver.domain import AdamParams, DimuonParams, LoraSpec, ModelSource, ModelState, OptimizerState
from weaver.errors import InvalidInput

LORA = LoraSpec(4, 8.0, seed=21)
STEPS = [
    AdamParams(0.01),
    AdamParams(0.02, beta1=0.8, beta2=0.9, weight_decay=0.1),
    AdamParams(0.01, grad_clip_norm=0.5),
    AdamParams(0.005, eps=1e-6, weight_decay=0.01, grad_clip_norm=2.0),
]
LAYOUTS = {
    "TP1": Layout(),
    "TP2": Layout(tp=2),
    "TP2 x DP2": Layout(tp=2, dp=2),
    "TP4, sequence parallel": Layout(tp=4, sequence_parallel=True),
}


@pytest.fixture
def opened(groups, models):
    """opened(where): a backend on the tiny Llama; `where` is a layout's name or "peft"."""

    def open_one(where, model="llama"):
        if where == "peft":
            return open_backend(ModelSource(model, str(models[model]), "cpu"))
        return OnRanks(groups(LAYOUTS[where]), models[model])

    return open_one


def a_pass(seed, loss="cross_entropy"):
    generator = np.random.default_rng(seed)
    return Pass("m", [datum(generator, n) for n in (12, 5, 17)], LOSSES[loss], {}, True)


def train(backend, steps, begin=0):
    """Grad norms and losses of some steps, two passes each."""
    told = []
    for number, params in enumerate(steps, begin):
        losses = [backend.forward_backward([a_pass(2 * number + k)])[0].metrics["loss:sum"] for k in (0, 1)]
        told.append((*losses, backend.optim_step("m", params)["grad_norm"]))
    return told


def assert_same(found, expected, tolerance, of=""):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=tolerance, rtol=0, err_msg=f"{of} {name}")


@pytest.mark.parametrize("where", LAYOUTS)
def test_a_seed_begins_the_same_on_any_ranks_and_on_peft(opened, where):
    begun = []
    for backend in (opened("peft"), opened(where)):
        backend.create_model("m", LORA)
        begun.append(backend.export_state("m", optimizer=True))
    expected, found = begun
    assert list(found.adapter.tensors) == list(expected.adapter.tensors)
    for name, array in expected.adapter.tensors.items():
        assert np.array_equal(found.adapter.tensors[name], array), name
    assert (found.optimizer.step, found.optimizer.tensors) == (0, {})
    assert found.adapter.target_modules == expected.adapter.target_modules


@pytest.mark.parametrize("where", LAYOUTS)
def test_training_is_that_of_peft(opened, where):
    """Every field of AdamW changes from step to step. Weights whose gradients are near zero are compared by what Adam
    makes of them, so the tolerance is a share of the learning rates."""
    told, states = [], []
    for backend in (opened("peft"), opened(where)):
        backend.create_model("m", LORA)
        told.append(train(backend, STEPS))
        states.append(backend.export_state("m", optimizer=True))
    np.testing.assert_allclose(told[1], told[0], rtol=1e-4)
    assert_same(states[1].adapter.tensors, states[0].adapter.tensors, 1e-5)
    assert states[1].optimizer.step == states[0].optimizer.step == len(STEPS)
    assert_same(states[1].optimizer.tensors, states[0].optimizer.tensors, 1e-5)


@pytest.mark.parametrize("saved_by", ["TP2", "peft"])
@pytest.mark.parametrize("where", ["peft", *LAYOUTS])
def test_a_checkpoint_goes_on_anywhere(opened, saved_by, where):
    """The next step is the one that the backend which saved it takes."""
    backend = opened(saved_by)
    backend.create_model("m", LORA)
    train(backend, STEPS[:2])
    saved = backend.export_state("m", optimizer=True)
    expected_told, expected = train(backend, STEPS[2:3], 2), backend.export_state("m", optimizer=True)
    other = opened(where)
    other.create_model("m", dataclasses.replace(LORA, seed=1))
    other.import_state("m", saved)
    assert_same(other.export_state("m", optimizer=True).adapter.tensors, saved.adapter.tensors, 0)
    told, found = train(other, STEPS[2:3], 2), other.export_state("m", optimizer=True)
    np.testing.assert_allclose(told, expected_told, rtol=1e-5)
    assert found.optimizer.step == 3
    assert_same(found.adapter.tensors, expected.adapter.tensors, 1e-5)
    assert_same(found.optimizer.tensors, expected.optimizer.tensors, 1e-5)


def test_experts_of_a_checkpoint_find_their_ranks(groups, models):
    """Saved by two ranks with half of the experts each, gone on with by two that share every expert."""
    halves, shared = (OnRanks(groups(layout), models["qwen3_moe"]) for layout in (Layout(dp=2, ep=2), Layout(tp=2)))
    halves.create_model("m", LORA)
    train(halves, STEPS[:1])
    saved = halves.export_state("m", optimizer=True)
    shared.create_model("m", LORA)
    shared.import_state("m", saved)
    assert_same(shared.export_state("m", optimizer=True).optimizer.tensors, saved.optimizer.tensors, 0)
    told = [train(backend, STEPS[1:3], 1) for backend in (halves, shared)]
    np.testing.assert_allclose(told[1], told[0], rtol=1e-5)
    expected, found = (backend.export_state("m", optimizer=False).adapter.tensors for backend in (halves, shared))
    assert_same(found, expected, 1e-5)
    groups.end(Layout(dp=2, ep=2))


def test_import_clears_gradients_and_the_optimizer_where_the_state_has_none(opened):
    backend = opened("TP2")
    backend.create_model("m", LORA)
    train(backend, STEPS[:1])
    backend.forward_backward([a_pass(9)])
    backend.import_state("m", ModelState(backend.export_state("m", optimizer=False).adapter, None))
    assert backend.export_state("m", optimizer=True).optimizer.step == 0
    assert backend.optim_step("m", STEPS[0])["grad_norm"] == 0


def test_the_norm_counts_every_number_once(opened):
    """By its definition, on the whole gradients."""
    backend = opened("TP2 x DP2")
    backend.create_model("m", LORA)
    backend.forward_backward([a_pass(1)])
    whole = backend._group.call(rank_tasks.gradients, "m")[0]
    expected = np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in whole.values()))
    assert backend.optim_step("m", STEPS[0])["grad_norm"] == pytest.approx(expected, rel=1e-6)


def state_with(state, **changed):
    return dataclasses.replace(state, adapter=dataclasses.replace(state.adapter, **changed))


def test_an_adapter_of_another_shape_is_refused_and_changes_nothing(opened):
    backend = opened("TP2")
    backend.create_model("m", LORA)
    state = backend.export_state("m", optimizer=True)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    narrow = {**state.adapter.tensors, name: state.adapter.tensors[name][:, :3]}
    without = {key: array for key, array in state.adapter.tensors.items() if key != name}
    beside = {**state.adapter.tensors, "base_model.model.model.norm.weight": np.ones(64, np.float32)}
    for tensors, says in (
        (narrow, r"up_proj.lora_B.weight' has shape \(96, 3\); this model's has \(96, 4\)"),
        (without, "lacks tensor .*up_proj.lora_B"),
        (beside, "neither LoRA nor the base model's own weight"),
    ):
        with pytest.raises(InvalidInput, match=says):
            backend.import_state("m", state_with(state, tensors=tensors))
    momentum = ModelState(state.adapter, OptimizerState(3, {f"{name}.momentum_buffer": narrow[name]}, "dimuon"))
    with pytest.raises(InvalidInput, match=r"optimizer state lacks tensor .*lm_head.lora_A.weight.momentum_buffer"):
        backend.import_state("m", momentum)
    with pytest.raises(InvalidInput, match="optimizer state lacks tensor"):
        backend.import_state("m", ModelState(state.adapter, OptimizerState(3, {})))
    assert_same(backend.export_state("m", optimizer=False).adapter.tensors, state.adapter.tensors, 0)


def test_the_base_models_own_output_layer_beside_an_adapter_is_compared_and_left_out(opened, models):
    backend = opened("TP2", "qwen2")
    backend.create_model("m", LORA)
    state = backend.export_state("m", optimizer=False)
    own = tiny_models.reference(models["qwen2"]).get_output_embeddings().weight.detach().numpy()
    for name in ("base_model.model.lm_head.base_layer.weight", "base_model.model.model.embed_tokens.weight"):
        backend.import_state("m", state_with(state, tensors={**state.adapter.tensors, name: own}))
        with pytest.raises(InvalidInput, match="neither LoRA"):
            backend.import_state("m", state_with(state, tensors={**state.adapter.tensors, name: own + 0.1}))


@pytest.mark.parametrize("where", ["TP2 x DP2", "TP4, sequence parallel"])
def test_dimuon_steps_on_whole_matrices_as_peft_does(opened, where):
    """From one state, twice: the second time from a checkpoint of the first. torch computes directions in bfloat16, so
    steps differ by roundings; the direction of a part of a matrix would be another one altogether."""
    backends = opened("peft"), opened(where)
    for backend in backends:
        backend.create_model("m", LORA)
    state = random_state(backends[0].export_state("m", optimizer=False).adapter)
    for number, params in enumerate((DimuonParams(0.02, beta1=0.8), DimuonParams(0.01, grad_clip_norm=0.5))):
        ends = []
        for backend in backends:
            backend.import_state("m", state)
            norm = train(backend, [params], number)[0][2]
            ends.append((norm, backend.export_state("m", optimizer=True)))
        (norm, expected), (found_norm, found) = ends
        assert found_norm == pytest.approx(norm, rel=1e-5)
        assert (found.optimizer.kind, found.optimizer.step) == ("dimuon", number + 1)
        assert found.optimizer.tensors.keys() == expected.optimizer.tensors.keys()
        for name, array in expected.optimizer.tensors.items():
            assert np.linalg.norm(found.optimizer.tensors[name] - array) < 1e-4 * np.linalg.norm(array), name
        for name, before in state.adapter.tensors.items():
            step = expected.adapter.tensors[name] - before
            assert np.linalg.norm(found.adapter.tensors[name] - before - step) < 0.02 * np.linalg.norm(step), name
        state = found if number == 0 else expected


def test_a_module_that_the_model_has_not_is_refused(opened):
    backend = opened("TP2")
    with pytest.raises(InvalidInput, match="'c_attn' is no linear layer of 'llama'"):
        backend.create_model("m", dataclasses.replace(LORA, only_modules=("c_attn",)))


@pytest.mark.parametrize("model", ["qwen3", "qwen3_moe"])
def test_what_is_saved_is_an_adapter_that_peft_reads(opened, models, tmp_path, model):
    """From its files, into transformers' own model, whose experts are one tensor: the same logprobs."""
    backend = opened("TP2", model)
    backend.create_model("m", LORA)
    train(backend, STEPS[:2])
    adapter = backend.export_state("m", optimizer=False).adapter
    (found,) = backend.forward_backward([dataclasses.replace(a_pass(0), backward=False)])
    save_file(dict(adapter.tensors), tmp_path / "adapter_model.safetensors")
    LoraConfig(r=4, lora_alpha=8.0, target_modules=list(adapter.target_modules)).save_pretrained(tmp_path)
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models[model]), tmp_path).eval()
    for array, one in zip(found.logprobs, a_pass(0).data, strict=True):
        np.testing.assert_allclose(array, tiny_models.scores(read, one)[0].detach().numpy(), atol=1e-5)
    without = tiny_models.scores(tiny_models.reference(models[model]), a_pass(0).data[0])[0].detach().numpy()
    assert np.abs(without - found.logprobs[0]).max() > 0.1
