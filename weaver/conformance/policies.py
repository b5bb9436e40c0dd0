"""Losses that need more than a logprob and an advantage per token: a sequence, a recording, a traced function."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tinker

from weaver.conformance.checks import Skipped, require
from weaver.conformance.lab import A, B, Lab, Session, look, run, waited
from weaver.conformance.recipes import Array, Pass, passes, plain

GROUP = "gradient semantics"

PROMPT = A.tokens
RATIO = 1.5
DRAWN = 6
PULL = 0.1
REWARD = 3.0


def _gspo(lab: Lab, **thresholds: float) -> Array:
    """The masked tokens' ratios differ and have the geometric mean 1.5; the others' would say the opposite."""
    count = len(A.tokens)
    mask = (np.arange(count) >= 3).astype(float)
    spread = np.where(np.arange(count) % 2 == 0, 0.3, -0.3) * mask
    log_ratios = np.where(mask, np.log(RATIO) + spread - spread.sum() / mask.sum(), -1.0)
    lp = lab.start[:count]
    example = A.reading(logprobs=lp - log_ratios, advantages=A.weights, sequence_ratio_mask=mask)
    return lab.after(Pass((example,), "gspo", tuple(thresholds.items())), plain(lab.rate))


def gspo_weighs_by_the_sequences_ratio(lab: Lab) -> None:
    """All tokens share the mean ratio of those in the mask; with their own ratios it would be another method."""
    found = _gspo(lab, clip_low_threshold=0.5, clip_high_threshold=2.0)
    expected = lab.after(passes(A.weighted(RATIO)), plain(lab.rate))
    lab.same(found, expected, "gspo at a mean ratio of 1.5, against 1.5 w")


def gspo_clips_the_sequences_ratio(lab: Lab) -> None:
    """Beyond the thresholds a sequence trains nothing, whatever the ratios of its tokens are."""
    clipped = _gspo(lab, clip_low_threshold=0.8, clip_high_threshold=1.2)
    lab.unchanged(clipped, lab.start, "gspo at a mean ratio of 1.5 with clip_high_threshold 1.2")


def stable_reinforce_on_policy_is_the_policy_gradient(lab: Lab) -> None:
    """It reads what the server recorded while it sampled; on those weights and without a pull, every ratio is one."""
    with lab.session() as session:
        model = session.model()
        sampler = waited(model.save_weights_and_get_sampling_client(record_stability_info=True))
        params = tinker.SamplingParams(max_tokens=DRAWN, stop=[])
        drawn = waited(sampler.sample(tinker.ModelInput.from_ints(list(PROMPT)), 2, params)).sequences
        named = [_episode(one, sent=False) for one in drawn]
        found = _trained(lab, session, named, "stable_reinforce", {"kl_coeff": 0.0})
        expected = _trained(lab, session, [_episode(one, sent=True) for one in drawn], "importance_sampling", None)
    lab.same(found, expected, "stable_reinforce with kl_coeff 0, against importance_sampling")


def _episode(drawn: tinker.SampledSequence, *, sent: bool) -> tinker.Datum:
    """The datum of a draw: with its logprobs sent along, or with the name of the sequence they were recorded of."""
    before, count = len(PROMPT) - 1, len(drawn.tokens)
    tokens = [*PROMPT, *drawn.tokens]
    inputs: dict[str, Any] = {"target_tokens": tokens[1:], "advantages": [0.0] * before + [REWARD] * count}
    if sent:
        inputs["logprobs"] = [0.0] * before + [float(one) for one in drawn.logprobs or ()]
    datum = tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)
    if sent:
        return datum
    name = drawn.sequence_id
    prompt = [
        tinker.PromptProvenanceSpan(sequence_id=name, offset=skipped, length=len(PROMPT) - skipped)
        for skipped in (0, 1)
    ]
    sampled = [tinker.SampledProvenanceSpan(sequence_id=name, length=length) for length in (count - 1, count)]
    return datum.with_provenance(model_input=[prompt[0], sampled[0]], loss_fn_inputs=[prompt[1], sampled[1]])


def _trained(lab: Lab, session: Session, data: Sequence[tinker.Datum], loss: str, config: Any) -> Array:
    model = session.model()
    waited(model.forward_backward(list(data), loss, config))  # type: ignore[arg-type]
    run(model, [plain(lab.rate)])
    return look(model)


def _pulled(logprobs: Any, weights: Any) -> Any:
    """Cross-entropy with a pull towards logprobs of zero: its gradient is no constant."""
    pull = (logprobs * logprobs).sum()
    return PULL * pull - (logprobs * weights).sum(), {"custom/pull:sum": pull}


def a_custom_loss_on_the_server_is_the_clients(lab: Lab) -> None:
    """A function that the server runs must train as it does where the client runs it, and saves a pass."""
    data = [example.datum() for example in (A, B)]
    with lab.session() as session:
        handle = _on_the_server(session)
        model = session.model()
        output = waited(model.forward_backward_custom(data, handle))
        run(model, [plain(lab.rate)])
        found = look(model)
        model = session.model()
        local = waited(model.forward_backward_custom(data, _on_the_client))
        run(model, [plain(lab.rate)])
        expected = look(model)
    lab.same(found, expected, "a custom loss run by the server, against the client's own way")
    for name in ("loss:sum", "custom/pull:sum"):
        one, other = output.metrics.get(name), local.metrics[name]
        require(
            one is not None and abs(one - other) <= 0.01 * abs(other), f"{name} is {one}, on the client's way {other}"
        )


def _on_the_server(session: Session) -> tinker.LossHandle:
    try:
        handle = waited(session.client.create_custom_loss(_pulled, {"logprobs": 1, "weights": 1}))
    except ImportError as error:
        raise Skipped(f"the SDK traces functions with torch, which is not installed here: {error}") from error
    if handle.loss_id is None:
        raise Skipped("the server's client config leaves custom losses to the client (custom_loss_server_side)")
    return handle


def _on_the_client(data: list[tinker.Datum], logprobs: list[Any]) -> Any:
    found = [
        _pulled(lp, lp.new_tensor(datum.loss_fn_inputs["weights"].to_numpy()))
        for datum, lp in zip(data, logprobs, strict=True)
    ]
    pull = sum(metrics["custom/pull:sum"].item() for _, metrics in found)
    return sum(loss for loss, _ in found), {"custom/pull:sum": pull}


CHECKS = (
    gspo_weighs_by_the_sequences_ratio,
    gspo_clips_the_sequences_ratio,
    stable_reinforce_on_policy_is_the_policy_gradient,
    a_custom_loss_on_the_server_is_the_clients,
)
