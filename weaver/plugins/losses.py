"""The losses weaver ships: each is a plugin like anybody's.

`lp` is the trainer's log probability of a target, `q` the sampler's (`logprobs`), `A` the advantage, r = exp(lp - q).
Everything is summed over tokens and targets; the input arrays have the shape of `target_tokens`, (T,) or (T, K).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from weaver.errors import InvalidInput
from weaver.hookspecs import hookimpl
from weaver.loss import ConfigField, Loss, LossInput
from weaver.plugins.custom_loss import custom, loss_of

if TYPE_CHECKING:
    from torch import Tensor

Inputs = Mapping[str, "Tensor"]
Config = Mapping[str, Any]

WEIGHTS = LossInput("weights", description="any signed or fractional number per target; never a mask, never normalised")
SAMPLED_LOGPROBS = LossInput("logprobs", description="the log probability each target was sampled with")
ADVANTAGES = LossInput("advantages", description="how much better than expected each target was")
POLICY_GRADIENT = (SAMPLED_LOGPROBS, ADVANTAGES)
IN_SEQUENCE = LossInput("sequence_ratio_mask", description="not 0 where a token counts in the sequence's ratio")
RECORDED = LossInput("logprobs", recorded=True, description="what the server recorded while it sampled the targets")


def cross_entropy(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-lp · weights."""
    return -(logprobs * inputs["weights"]).sum()


def importance_sampling(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-r · A."""
    return -(_ratio(logprobs, inputs) * inputs["advantages"]).sum()


def ppo(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-min(r · A, clamp(r) · A)."""
    ratio, advantages = _ratio(logprobs, inputs), inputs["advantages"]
    clipped = ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    return -(ratio * advantages).minimum(clipped * advantages).sum()


def cispo(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-stopgrad(clamp(r)) · lp · A."""
    ratio = _ratio(logprobs, inputs).detach().clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    return -(ratio * logprobs * inputs["advantages"]).sum()


def dro(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-(lp · A - beta / 2 · (lp - q)²)."""
    penalty = 0.5 * config["beta"] * (logprobs - inputs["logprobs"]).square()
    return -(logprobs * inputs["advantages"] - penalty).sum()


def gspo(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-min(s · A, clamp(s) · A): s = exp(mean of lp - q where the mask is not 0), with each token's own gradient."""
    in_sequence = inputs["sequence_ratio_mask"] != 0
    if not in_sequence.any():
        raise InvalidInput("sequence_ratio_mask is 0 everywhere, so the sequence has no ratio")
    log_ratio = (logprobs.detach() - inputs["logprobs"])[in_sequence].mean()
    ratio = (log_ratio + logprobs - logprobs.detach()).exp()
    clipped = ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    return -(ratio * inputs["advantages"]).minimum(clipped * inputs["advantages"]).sum()


def stable_reinforce(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-stopgrad(clamp(r)) · lp · A + kl_coeff / 2 · (lp - q)², over the tokens that were sampled."""
    sampled_logprobs = inputs["logprobs"]
    log_ratio = (logprobs - sampled_logprobs)[~sampled_logprobs.isnan()]
    lp, advantages = (array[~sampled_logprobs.isnan()] for array in (logprobs, inputs["advantages"]))
    ratio = log_ratio.detach().exp().clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    return (0.5 * config["kl_coeff"] * log_ratio.square() - ratio * lp * advantages).sum()


def _ratio(logprobs: Tensor, inputs: Inputs) -> Tensor:
    return (logprobs - inputs["logprobs"]).exp()


def _clip(low: float, high: float) -> tuple[ConfigField, ConfigField]:
    return (
        ConfigField("clip_low_threshold", low, minimum=0.0, description="the ratio's lower bound"),
        ConfigField("clip_high_threshold", high, minimum=0.0, description="the ratio's upper bound"),
    )


@hookimpl
def weaver_losses() -> Iterable[Loss]:
    """The losses of Tinker's API."""
    yield Loss("cross_entropy", cross_entropy, (WEIGHTS,), description="-lp · weights, for supervised learning")
    yield Loss(
        "importance_sampling",
        importance_sampling,
        POLICY_GRADIENT,
        description="-r · A: policy gradient, corrected for the sampler's distribution",
    )
    yield Loss(
        "ppo",
        ppo,
        POLICY_GRADIENT,
        _clip(0.8, 1.2),
        "-min(r · A, clamp(r) · A); the thresholds bound the ratio itself",
        "Schulman et al. 2017, arXiv:1707.06347",
    )
    yield Loss(
        "cispo",
        cispo,
        POLICY_GRADIENT,
        _clip(0.0, 4.0),
        "-stopgrad(clamp(r)) · lp · A",
        "MiniMax-M1, arXiv:2506.13585",
    )
    yield Loss(
        "dro",
        dro,
        POLICY_GRADIENT,
        (ConfigField("beta", minimum=0.0, description="strength of the pull towards the sampler; no default"),),
        "-(lp · A - beta / 2 · (lp - q)²)",
        "Richemond et al. 2024, arXiv:2405.19107",
    )
    yield Loss(
        "gspo",
        gspo,
        (*POLICY_GRADIENT, IN_SEQUENCE),
        _clip(0.8, 1.2),
        "-min(s · A, clamp(s) · A) with the sequence's mean ratio s; long sequences want thresholds far nearer to 1",
        "Zheng et al. 2025, arXiv:2507.18071 (GSPO-token)",
        target_ranks=(1,),
    )
    yield Loss(
        "stable_reinforce",
        stable_reinforce,
        (RECORDED, ADVANTAGES),
        (*_clip(0.0, 2.0), ConfigField("kl_coeff", 0.01, minimum=0.0, description="the pull towards the sampler")),
        "-stopgrad(clamp(r)) · lp · A + kl_coeff / 2 · (lp - q)², with the q that the server recorded",
        "defined in docs/protocol.md",
        target_ranks=(1,),
    )
    yield Loss("custom", custom, description="a function that a client traced, run from its graph", from_graph=loss_of)
