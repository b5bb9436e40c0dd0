"""Each tensor of each rank, beside the rows and columns of transformers' own that it must be."""

import json

import pytest
import rank_tasks
import tiny_models
import torch
from parity import open_model
from safetensors.torch import load_file, save_file
from weaver_megatron.layout import Layout

from weaver.domain import ModelSource
from weaver.errors import InvalidInput

HEADS, KEY_HEADS = 8, 4
NINE_HEADS = {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8}


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2), Layout(tp=4), Layout(tp=2, ep=2)], ids=str)
@pytest.mark.parametrize("model", tiny_models.CONFIGS)
def test_every_tensor_of_a_rank_is_its_part_of_transformers_own(groups, models, layout, model):
    group = groups(layout)
    if layout.ep > 1 and model != "qwen3_moe":
        with pytest.raises(InvalidInput, match=r"ep is 2, but '.*' .* has no experts"):
            open_model(group, models[model])
        return
    open_model(group, models[model])
    own = dict(tiny_models.reference(models[model]).state_dict())
    for found, tp_rank, expert_part in group.call(rank_tasks.parameters):
        expected = part_of(own, model, layout, tp_rank, expert_part)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name


def part_of(own, model, layout, tp_rank, expert_part):
    """By megatron-core's names, written out head by head."""
    tp, parts = layout.tp, {}
    vocabulary = -(-tiny_models.VOCABULARY // tp)
    tables = {"embedding.word_embeddings": "model.embed_tokens", "output_layer": "lm_head"}
    for name, theirs in tables.items():
        table = torch.zeros(vocabulary * tp, 64)
        table[: tiny_models.VOCABULARY] = own[f"{theirs}.weight"]
        parts[f"{name}.weight"] = table[tp_rank * vocabulary :][:vocabulary]
    if model == "qwen2":
        del parts["output_layer.weight"]
    parts["decoder.final_layernorm.weight"] = own["model.norm.weight"]
    for number in (0, 1):
        here, theirs = f"decoder.layers.{number}", f"model.layers.{number}"
        parts[f"{here}.input_layernorm.weight"] = own[f"{theirs}.input_layernorm.weight"]
        parts[f"{here}.pre_mlp_layernorm.weight"] = own[f"{theirs}.post_attention_layernorm.weight"]
        for kind in ("weight", "bias") if model == "qwen2" else ("weight",):
            parts[f"{here}.self_attention.linear_qkv.{kind}"] = qkv(own, f"{theirs}.self_attn", kind, tp, tp_rank)
        output = own[f"{theirs}.self_attn.o_proj.weight"]
        parts[f"{here}.self_attention.linear_proj.weight"] = output.chunk(tp, dim=1)[tp_rank]
        if model.startswith("qwen3"):
            for one in "qk":
                parts[f"{here}.self_attention.{one}_layernorm.weight"] = own[f"{theirs}.self_attn.{one}_norm.weight"]
        mlp = f"{theirs}.mlp"
        if model != "qwen3_moe":
            parts[f"{here}.mlp.linear_fc1.weight"] = gate_up(own, mlp, tp, tp_rank)
            parts[f"{here}.mlp.linear_fc2.weight"] = own[f"{mlp}.down_proj.weight"].chunk(tp, dim=1)[tp_rank]
            continue
        cut, experts = tp // layout.ep, range(8)[expert_part * 8 // layout.ep :][: 8 // layout.ep]
        names = [f"{mlp}.experts.{expert}" for expert in experts]
        parts[f"{here}.mlp.router_weight"] = own[f"{mlp}.gate.weight"]
        parts[f"{here}.mlp.gate_up_weight"] = torch.stack([gate_up(own, one, cut, tp_rank % cut) for one in names])
        down = [own[f"{one}.down_proj.weight"].chunk(cut, dim=1)[tp_rank % cut] for one in names]
        parts[f"{here}.mlp.down_weight"] = torch.stack(down)
    return parts


def qkv(own, name, kind, tp, rank):
    """Query heads 0 and 1, key head 0, value head 0, query heads 2 and 3, ..."""
    q, k, v = (own[f"{name}.{part}_proj.{kind}"] for part in "qkv")
    size, rows = len(k) // KEY_HEADS, []
    for key_head in range(rank * KEY_HEADS // tp, (rank + 1) * KEY_HEADS // tp):
        for head in (2 * key_head, 2 * key_head + 1):
            rows.append(q[head * size : (head + 1) * size])
        rows += [k[key_head * size : (key_head + 1) * size], v[key_head * size : (key_head + 1) * size]]
    return torch.cat(rows)


def gate_up(own, name, parts, part):
    return torch.cat([own[f"{name}.{which}_proj.weight"].chunk(parts)[part] for which in ("gate", "up")])


@pytest.fixture
def changed(models, tmp_path):
    """changed(config={...}, tensors=function): a copy of the tiny Llama with something else in it."""

    def make(config=None, tensors=lambda found: found):
        folder = models["llama"]
        found = {}
        for file in folder.glob("*.safetensors"):
            found |= load_file(file)
        save_file(tensors(found), tmp_path / "model.safetensors")
        own = json.loads((folder / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(own | (config or {})))
        return ModelSource("changed", str(tmp_path), "cpu")

    return make


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}, "is a GemmaForCausalLM; .* LlamaFor"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "sets attention_bias"),
        ({"mlp_bias": True}, "sets mlp_bias"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope type 'dynamic'"),
        (NINE_HEADS, r"tp is 2, .* 9 attention heads and 3 key/value heads.* --tp 1, 3$"),
        ({"intermediate_size": 97}, "97 intermediate features cannot be divided by 2"),
        ({"intermediate_size": 98}, r"weights of shape \[96, 64\] where its configuration needs \[98, 64\]"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_a_model_that_is_not_computed_is_refused_by_every_rank(groups, changed, config, says):
    with pytest.raises(InvalidInput, match=says):
        groups(Layout(tp=2)).call(rank_tasks.open_model, changed(config))


def test_a_tensor_too_many_or_too_few_is_refused_by_name(groups, changed):
    group = groups(Layout(tp=2))
    bias = {"model.layers.0.mlp.down_proj.bias": torch.zeros(64)}
    with pytest.raises(InvalidInput, match=r"has the tensor .*mlp.down_proj.bias', which"):
        group.call(rank_tasks.open_model, changed(tensors=lambda found: found | bias))
    less = "model.layers.1.self_attn.k_proj.weight"
    with pytest.raises(InvalidInput, match=f"lacks the tensor '{less}'"):
        group.call(rank_tasks.open_model, changed(tensors=lambda found: {k: v for k, v in found.items() if k != less}))


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"tp": 0}, "tp is 0; it must be at least 1"),
        ({"tp": 4, "ep": 3}, "ep is 3; .* tp 4 and dp 1 it must divide 4"),
        ({"tp": 2, "dp": 3, "ep": 4}, "ep is 4; .* multiple of 2 that divides 6"),
        ({"sequence_parallel": True}, "tp, which is 1"),
        ({"process_group": "mpi"}, "'mpi' is none of auto, gloo, nccl"),
    ],
    ids=str,
)
def test_a_layout_whose_numbers_do_not_fit_is_refused(numbers, says):
    with pytest.raises(InvalidInput, match=says):
        Layout(**numbers)


def test_experts_that_cannot_be_divided_are_refused(groups, models):
    source = ModelSource("qwen3_moe", str(models["qwen3_moe"]), "cpu")
    with pytest.raises(InvalidInput, match="ep is 3, but 'qwen3_moe' has 8 experts"):
        groups(Layout(tp=1)).call(rank_tasks.check, source, Layout(dp=3, ep=3))
