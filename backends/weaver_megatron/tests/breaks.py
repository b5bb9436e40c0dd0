"""Ways to break the product inside ranks."""

import torch
import torch.distributed as dist
from weaver_megatron import conversion, experts, gradients, linears, logprobs, model, rank
from weaver_peft.sampling_masks import Kept


def _wrong_gate_up(name, part, parts):
    """Rows of the gate and the other put together first, and cut then."""
    names = [f"{name}.{which}_proj.weight" for which in ("gate", "up")]
    return lambda one: torch.cat([one.whole(each) for each in names]).chunk(parts)[part]


def _wrong_qkv(name, kind, groups, ranks):
    """All query heads, then all key heads, then all value heads."""
    names = [f"{name}.{part}_proj.{kind}" for part in "qkv"]
    return lambda one: torch.cat([one.rows(each, ranks.tp_rank, ranks.tp) for each in names])


def _without_sum(tensor, group):
    """This rank's tokens of its own summand alone."""
    return tensor.chunk(dist.get_world_size(group))[dist.get_rank(group)]


def _own_weighted_sum(head, shifted, exponentials, kept):
    """Of this rank's part of the vocabulary alone."""
    return (shifted[:, : head.real] * exponentials[:, : head.real]).nan_to_num(0).sum(1)


def _drop_by_row(kept, logits, first=0):
    """Token ids taken for this rank's rows."""
    DROP_OTHERS(kept, logits)


DROP_OTHERS = Kept.drop_others
BREAKS = {
    "the sum of row-parallel updates": (linears, "sum_parts", lambda tensor, group: tensor),
    "the sum of low-rank gradients": (linears, "sum_gradients", lambda tensor, group: tensor),
    "the sum of what experts found": (experts, "sum_parts", lambda tensor, group: tensor),
    "the sum of gradients before experts": (experts, "sum_gradients", lambda tensor, group: tensor),
    "the sum of what experts of other data ranks found": (experts, "scatter_tokens", _without_sum),
    "the sum of exponentials": (logprobs, "summed", lambda tensor, group: tensor),
    "the sum of what entropies are made of": (logprobs, "_weighted_sum", _own_weighted_sum),
    "the rows of kept tokens": (Kept, "drop_others", _drop_by_row),
    "the highest logit of all ranks": (logprobs, "largest", lambda tensor, group: tensor),
    "the sum of embeddings": (model, "summed", lambda tensor, group: tensor),
    "the sums of gradients over tokens and data": (gradients, "_sum_together", lambda tensors, group: None),
    "the order of query, key and value heads": (linears, "interleaved", lambda parts, groups: torch.cat([*parts], 1)),
    "the rows of gate and up": (conversion, "_gate_up", _wrong_gate_up),
    "the interleaving of query, key and value rows": (conversion, "_qkv", _wrong_qkv),
    "the broadcast of a loss's gradient": (rank.dist, "broadcast", lambda *_, **__: None),
}


def break_product(state, what):
    """From now on in this process, until it is mended."""
    module, name, wrong = BREAKS[what]
    state["broken"] = module, name, getattr(module, name)
    setattr(module, name, wrong)


def mend_product(state):
    setattr(*state.pop("broken"))
