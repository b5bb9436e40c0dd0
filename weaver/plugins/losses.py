"""The losses weaver ships: each is a plugin like anybody's.

`lp` is the trainer's log probability of a target, `q` the sampler's (`logprobs`), `A` the advantage, r = exp(lp - q),
`m` the mask (1 where there is none), `H` the entropy of a token's whole distribution. Everything is summed over tokens
and targets; the input arrays have the shape of `target_tokens`, (T,) or (T, K). `lp` and `H` are of the distribution at
the temperature asked for, and where a datum has a sampling mask, over the tokens that it names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from weaver.errors import InvalidInput
from weaver.hookspecs import hookimpl
from weaver.loss import ENTROPY, ENTROPY_COEFF, TEMPERATURE, ConfigField, Loss, LossInput, LossOutput
from weaver.plugins.custom_loss import custom, loss_of

if TYPE_CHECKING:
    from torch import Tensor

Inputs = Mapping[str, "Tensor"]
Config = Mapping[str, Any]

WEIGHTS = LossInput("weights", description="any signed or fractional number per target; never a mask, never normalised")
SAMPLED_LOGPROBS = LossInput("logprobs", description="the log probability each target was sampled with")
ADVANTAGES = LossInput("advantages", description="how much better than expected each target was")
POLICY_GRADIENT = (SAMPLED_LOGPROBS, ADVANTAGES)
MASK = LossInput("loss_mask", optional=True, description="what each target's term, and its entropy, is multiplied by")
MASKED_POLICY_GRADIENT = (*POLICY_GRADIENT, MASK)
IN_SEQUENCE = LossInput("sequence_ratio_mask", description="not 0 where a token counts in the sequence's ratio")
RECORDED = LossInput("logprobs", recorded=True, description="what the server recorded while it sampled the targets")
WEIGHTED = (
    LossInput("weights", description="what each target's term, and its entropy, is multiplied by"),
    LossInput("importance_weights", description="how much each target counts, like an advantage"),
)
SURROGATE_WEIGHTS = LossInput("surrogate_weights", description="the gradient of a client's own loss by each logprob")
WEIGHT_BOUND = ConfigField(
    "clip_ratio", above=0.0, optional=True, description="the largest size of an entry of importance_weights"
)
CARRIED_WEIGHTS = LossInput("weights", dtype="any", optional=True, description="may be carried along; is not read")


def cross_entropy(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-lp · weights. A sum, as in Tinker's API: to have a mean over the weights, divide them by their sum."""
    return -(logprobs * inputs["weights"]).sum()


def importance_sampling(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor | LossOutput:
    """-r · A · m, as in Tinker's API and as NexRL sends it; or, of a datum with `weights` and `importance_weights`,
    -lp · clip(importance_weights) · weights, as Weaver's documentation names them; less entropy_coeff · H · m, or
    · weights.

    `clip_ratio` bounds the size of an importance weight, so that neither sign makes a large update.
    """
    if "importance_weights" in inputs:
        weights, importance = inputs["weights"], inputs["importance_weights"]
        if "clip_ratio" in config:
            importance = importance.clamp(-config["clip_ratio"], config["clip_ratio"])
        return _total(-logprobs * importance * weights, weights, inputs, config)
    if "clip_ratio" in config:
        raise InvalidInput(
            "loss_fn_config['clip_ratio'] bounds 'importance_weights', and the datum has 'logprobs' and 'advantages'. "
            "To bound the ratio use the loss 'truncated_importance_sampling' or 'ppo_clip'"
        )
    return _masked(-_ratio(logprobs, inputs) * inputs["advantages"], inputs, config)


def truncated_importance_sampling(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor | LossOutput:
    """-min(r, truncation_bound) · A · m, with the gradient -min(r, truncation_bound) · A · m · d lp: a ratio above the
    bound counts as the bound, and its token still learns; less entropy_coeff · H · m."""
    ratio = _ratio(logprobs.detach(), inputs).clamp(max=config["truncation_bound"])
    ratio = ratio * (logprobs - logprobs.detach()).exp()
    return _masked(-ratio * inputs["advantages"], inputs, config)


def ppo(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-min(r · A, clamp(r) · A)."""
    return _clipped(logprobs, inputs, config["clip_low_threshold"], config["clip_high_threshold"]).sum()


def ppo_clip(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor | LossOutput:
    """-min(r · A, clamp(r, 1 - clip_ratio_low, 1 + clip_ratio_high) · A) · m less entropy_coeff · H · m: the loss `ppo`
    with bounds told by how far they are from 1. `clip_ratio` is both, where one is not given."""
    low, high = (config.get(name, config["clip_ratio"]) for name in ("clip_ratio_low", "clip_ratio_high"))
    return _masked(_clipped(logprobs, inputs, 1 - low, 1 + high), inputs, config)


def forward_logprob(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-lp, to have something to report: what counts are the logprobs that come back."""
    return -logprobs.sum()


def surrogate(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """+lp · surrogate_weights: its gradient by the weights of the model is that of a client's own loss L, when
    surrogate_weights are dL / d lp. Nothing else that a datum holds is read: L has been through it already."""
    return (logprobs * inputs["surrogate_weights"]).sum()


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


def _clipped(logprobs: Tensor, inputs: Inputs, low: float, high: float) -> Tensor:
    ratio, advantages = _ratio(logprobs, inputs), inputs["advantages"]
    return -(ratio * advantages).minimum(ratio.clamp(low, high) * advantages)


def _masked(terms: Tensor, inputs: Inputs, config: Config) -> Tensor | LossOutput:
    """The sum of a policy gradient's terms, each times its mask."""
    mask = inputs.get("loss_mask")
    return _total(terms if mask is None else terms * mask, mask, inputs, config)


def _total(terms: Tensor, mask: Tensor | None, inputs: Inputs, config: Config) -> Tensor | LossOutput:
    """The sum of the terms less entropy_coeff · H · m, where the config asks for it; and what H was, over the mask."""
    if ENTROPY not in inputs:
        return terms.sum()
    if terms.ndim > 1:
        raise InvalidInput("loss_fn_config['entropy_coeff'] needs target_tokens of shape (T,): one target per token")
    entropy = inputs[ENTROPY]
    masked = entropy if mask is None else entropy * mask
    total, count = float(masked.detach().sum()), len(entropy) if mask is None else float(mask.sum())
    metrics = {"entropy:sum": total} | ({"entropy:mean": total / count} if count else {})
    return LossOutput(terms.sum() - config["entropy_coeff"] * masked.sum(), metrics)


def _clip(low: float, high: float) -> tuple[ConfigField, ConfigField]:
    return (
        ConfigField("clip_low_threshold", low, minimum=0.0, description="the ratio's lower bound"),
        ConfigField("clip_high_threshold", high, minimum=0.0, description="the ratio's upper bound"),
    )


def _from_one(name: str, default: float | None, side: str) -> ConfigField:
    return ConfigField(name, default, 0.0, description=f"how far from 1 {side}", optional=default is None)


@hookimpl
def weaver_losses() -> Iterable[Loss]:
    """The losses of Tinker's API, and those that only Weaver's has."""
    yield Loss(
        "cross_entropy",
        cross_entropy,
        (WEIGHTS,),
        (TEMPERATURE,),
        "-lp · weights, for supervised learning",
        sampling_masks=True,
    )
    yield from _policy_gradients()
    yield from _of_sequences()
    yield Loss("custom", custom, description="a function that a client traced, run from its graph", from_graph=loss_of)
    yield from _weaver()


def _policy_gradients() -> Iterable[Loss]:
    yield Loss(
        "importance_sampling",
        importance_sampling,
        (*MASKED_POLICY_GRADIENT, *WEIGHTED),
        (TEMPERATURE, ENTROPY_COEFF, WEIGHT_BOUND),
        "-r · A · m: policy gradient, corrected for the sampler's distribution; or -lp · importance_weights · weights",
        "defined in docs/protocol.md",
        spellings=(_names(MASKED_POLICY_GRADIENT), _names(WEIGHTED)),
        sampling_masks=True,
    )
    yield Loss(
        "ppo",
        ppo,
        POLICY_GRADIENT,
        (*_clip(0.8, 1.2), TEMPERATURE),
        "-min(r · A, clamp(r) · A); the thresholds bound the ratio itself",
        "Schulman et al. 2017, arXiv:1707.06347",
        sampling_masks=True,
    )
    yield Loss(
        "cispo",
        cispo,
        POLICY_GRADIENT,
        (*_clip(0.0, 4.0), TEMPERATURE),
        "-stopgrad(clamp(r)) · lp · A",
        "MiniMax-M1, arXiv:2506.13585",
        sampling_masks=True,
    )
    yield Loss(
        "dro",
        dro,
        POLICY_GRADIENT,
        (
            ConfigField("beta", minimum=0.0, description="strength of the pull towards the sampler; no default"),
            TEMPERATURE,
        ),
        "-(lp · A - beta / 2 · (lp - q)²)",
        "Richemond et al. 2024, arXiv:2405.19107",
        sampling_masks=True,
    )


def _of_sequences() -> Iterable[Loss]:
    """What needs more of a sequence than each token's own numbers."""
    yield Loss(
        "gspo",
        gspo,
        (*POLICY_GRADIENT, IN_SEQUENCE),
        (*_clip(0.8, 1.2), TEMPERATURE),
        "-min(s · A, clamp(s) · A) with the sequence's mean ratio s; long sequences want thresholds far nearer to 1",
        "Zheng et al. 2025, arXiv:2507.18071 (GSPO-token)",
        target_ranks=(1,),
        sampling_masks=True,
    )
    yield Loss(
        "stable_reinforce",
        stable_reinforce,
        (RECORDED, ADVANTAGES),
        (
            *_clip(0.0, 2.0),
            ConfigField("kl_coeff", 0.01, minimum=0.0, description="the pull towards the sampler"),
            TEMPERATURE,
        ),
        "-stopgrad(clamp(r)) · lp · A + kl_coeff / 2 · (lp - q)², with the q that the server recorded",
        "defined in docs/protocol.md",
        target_ranks=(1,),
        sampling_masks=True,
    )


def _weaver() -> Iterable[Loss]:
    yield Loss(
        "truncated_importance_sampling",
        truncated_importance_sampling,
        MASKED_POLICY_GRADIENT,
        (
            ConfigField("truncation_bound", 2.0, above=0.0, description="the ratio's upper bound"),
            TEMPERATURE,
            ENTROPY_COEFF,
        ),
        "-min(r, truncation_bound) · A · m: as importance_sampling, but no token counts for more than the bound",
        "defined in docs/protocol.md, after Yao et al. 2025 (truncated importance sampling)",
        sampling_masks=True,
    )
    yield Loss(
        "ppo_clip",
        ppo_clip,
        MASKED_POLICY_GRADIENT,
        (
            _from_one("clip_ratio", 0.2, "the ratio's bounds are"),
            _from_one("clip_ratio_low", None, "the lower one is, where it is not clip_ratio"),
            _from_one("clip_ratio_high", None, "the upper one is, where it is not clip_ratio"),
            TEMPERATURE,
            ENTROPY_COEFF,
        ),
        "-min(r · A, clamp(r) · A) · m; the config says how far the ratio's bounds are from 1",
        "Schulman et al. 2017, arXiv:1707.06347",
        sampling_masks=True,
    )
    yield Loss(
        "forward_logprob",
        forward_logprob,
        (CARRIED_WEIGHTS,),
        (TEMPERATURE,),
        "the targets' logprobs, without a gradient; what else a datum holds is carried along unread",
        carries_others=True,
        forward_only=True,
        sampling_masks=True,
    )
    yield Loss(
        "surrogate",
        surrogate,
        (SURROGATE_WEIGHTS, CARRIED_WEIGHTS),
        (TEMPERATURE,),
        "+lp · surrogate_weights, the gradient of a client's own loss; what else a datum holds is carried along unread",
        carries_others=True,
        sampling_masks=True,
    )


def _names(inputs: Iterable[LossInput]) -> tuple[str, ...]:
    return tuple(one.name for one in inputs)
