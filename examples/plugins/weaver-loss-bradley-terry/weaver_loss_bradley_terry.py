"""The loss `bradley_terry`: which of two answers is preferred, and no rewards (Bradley and Terry 1952).

A pair needs both of its data at once, so this loss sees the whole batch. Data may come in any order: the input `pair`
says which belong together. With `reference` it is DPO's loss (Rafailov et al. 2023, arXiv:2305.18290).

Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from weaver.errors import InvalidInput
from weaver.hookspecs import hookimpl
from weaver.loss import ConfigField, Loss, LossInput, LossOutput, OutputField

if TYPE_CHECKING:
    from torch import Tensor

Inputs = Mapping[str, "Tensor"]


def bradley_terry(logprobs: Sequence[Tensor], inputs: Sequence[Inputs], config: Mapping[str, float]) -> LossOutput:
    """The sum over pairs of -log sigmoid(beta · (score of the preferred answer - score of the other))."""
    scores = [_score(lp, one) for lp, one in zip(logprobs, inputs, strict=True)]
    pairs = _pairs(inputs)
    margins_P = config["beta"] * torch.stack([scores[better] - scores[worse] for better, worse in pairs])
    told_P = margins_P.detach()
    metrics = {
        "pairs:sum": len(pairs),
        "margin:mean": float(told_P.mean()),
        "accuracy:mean": float((told_P > 0).double().mean()),
    }
    return LossOutput(-torch.nn.functional.logsigmoid(margins_P).sum(), metrics, {"score": scores})


def _score(logprobs: Tensor, one: Inputs) -> Tensor:
    weighted = logprobs * one["weights"] if "weights" in one else logprobs
    return weighted.sum() - one["reference"] if "reference" in one else weighted.sum()


def _pairs(inputs: Sequence[Inputs]) -> list[tuple[int, int]]:
    """Of each pair, in the order in which they begin, where its preferred answer and the other one are."""
    members: dict[int, dict[bool, int]] = {}
    for index, one in enumerate(inputs):
        pair, preferred = int(one["pair"]), int(one["preferred"])
        if preferred not in (0, 1):
            raise InvalidInput(f"data[{index}].loss_fn_inputs['preferred'] is {preferred}; it must be 1 or 0")
        first = members.setdefault(pair, {}).setdefault(bool(preferred), index)
        if first != index:
            raise InvalidInput(
                f"data[{first}] and data[{index}] are both the answer of pair {pair} with preferred = {preferred}; "
                "give each pair a number of its own"
            )
    for pair, found in members.items():
        if len(found) == 1:
            [index] = found.values()
            raise InvalidInput(f"data[{index}] is alone in pair {pair}; send both answers in one call")
        if ("reference" in inputs[found[True]]) != ("reference" in inputs[found[False]]):
            raise InvalidInput(f"one answer of pair {pair} has a 'reference' and the other has none")
    return [(found[True], found[False]) for found in members.values()]


@hookimpl
def weaver_losses() -> Iterable[Loss]:
    yield Loss(
        "bradley_terry",
        bradley_terry,
        inputs=(
            LossInput("pair", "int64", "scalar", "any number; the two answers of a pair have the same"),
            LossInput("preferred", "int64", "scalar", "1 for the preferred answer, 0 for the other"),
            LossInput("weights", description="how much each target counts in the score; without: 1", optional=True),
            LossInput("reference", shape="scalar", description="taken off the score, for DPO", optional=True),
        ),
        config=(ConfigField("beta", 0.1, minimum=0.0, description="how much a difference of scores means"),),
        description="-log sigmoid(beta · difference of two answers' log probabilities), in any order",
        source="Bradley and Terry 1952; with references Rafailov et al. 2023, arXiv:2305.18290",
        target_ranks=(1,),
        outputs=(OutputField("score", "scalar", "the weighted log probability, less the reference"),),
        batch=True,
    )
