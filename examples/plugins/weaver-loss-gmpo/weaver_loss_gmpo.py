"""The loss `gmpo`: Geometric-Mean Policy Optimization (Zhao et al. 2025, arXiv:2507.20673).

A sequence's importance ratio is the geometric mean of its tokens' ratios, each clipped before, so that a single token
far from the sampler's policy moves it little. The paper clips wider than PPO does: to e^-0.4 and e^0.4.

Shapes: T tokens of one datum, n of them in the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from weaver.errors import InvalidInput
from weaver.hookspecs import hookimpl
from weaver.loss import ConfigField, Loss, LossInput, LossOutput

if TYPE_CHECKING:
    from torch import Tensor


def gmpo(logprobs: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> LossOutput:
    """-A · (r_1 · ... · r_n)^(1/n): r_t = exp(lp - q), at most e^clip_high if A > 0, at least e^-clip_low if A < 0.

    That is the paper's min(r^s, clip(r)^s)^s with s = sign(A), for a sequence that counts once, whatever its length.
    """
    log_ratio_n, advantage = logprobs - inputs["logprobs"], inputs["advantage"]
    if "mask" in inputs:
        log_ratio_n = log_ratio_n[inputs["mask"] != 0]
    if not len(log_ratio_n):
        raise InvalidInput("mask is 0 everywhere, so the sequence has no ratio")
    if advantage > 0:
        kept_n = log_ratio_n.clamp(max=config["clip_high"])
    else:
        kept_n = log_ratio_n.clamp(min=-config["clip_low"])
    ratio = kept_n.mean().exp()
    clipped = (kept_n != log_ratio_n).double().mean()
    metrics = {"ratio:mean": float(ratio.detach()), "clipped_fraction:mean": float(clipped)}
    return LossOutput(-advantage * ratio, metrics)


@hookimpl
def weaver_losses() -> Iterable[Loss]:
    yield Loss(
        "gmpo",
        gmpo,
        inputs=(
            LossInput("logprobs", description="the log probability each target was sampled with"),
            LossInput("advantage", shape="scalar", description="of the whole sequence, of either sign"),
            LossInput("mask", "any", optional=True, description="not 0 where a target is of the answer; without: all"),
        ),
        config=(
            ConfigField("clip_low", 0.4, minimum=0.0, description="a token's log ratio is at least -this where A < 0"),
            ConfigField("clip_high", 0.4, minimum=0.0, description="a token's log ratio is at most this where A > 0"),
        ),
        description="-A · the geometric mean of a sequence's clipped ratios",
        source="Zhao et al. 2025, arXiv:2507.20673",
        target_ranks=(1,),
    )
