"""The built-in losses on one task, to write Capital Letters, each from the same adapter and the same samples.

lp is the log probability of a target in training, q what it was sampled with (`logprobs`), A how much better it was
than expected (`advantages`), r = exp(lp - q); s is r's geometric mean over a sequence. All are sums over tokens:

    cross_entropy        -lp · weights                            imitation; here of the tokens that earned something
    importance_sampling  -r · A                                   policy gradient (Williams 1992) off its own policy
    ppo                  -min(r · A, clamp(r) · A)                arXiv:1707.06347
    cispo                -stopgrad(clamp(r)) · lp · A             arXiv:2506.13585
    dro                  -(lp · A - beta / 2 · (lp - q)²)         arXiv:2405.19107
    gspo                 -min(s · A, clamp(s) · A)                arXiv:2507.18071
    stable_reinforce     its q is what the server recorded; weaver's formula is in docs/protocol.md

At first r = s = 1, and all but cross_entropy have one and the same gradient. They part when samples are used again.
Read the rewards, not the losses: with a stopgrad in it, as in cispo, a loss may rise while the model learns.

`weaver run` it, or set TINKER_BASE_URL and TINKER_API_KEY; see `weaver serve`. Its argument is a model's name.
"""

import sys
from typing import Any

import tinker

UPDATES, GROUP, TOKENS = 3, 4, 8
PROMPTS = ("HEADLINE:", "Written by", "Dear", "Chapter One:")
POLICY = ("logprobs", "advantages")
LOSSES: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {  # what each reads, and its configuration
    "cross_entropy": (("weights",), {}),
    "importance_sampling": (POLICY, {}),
    "ppo": (POLICY, {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}),
    "cispo": (POLICY, {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}),
    "dro": (POLICY, {"beta": 0.05}),
    "gspo": ((*POLICY, "sequence_ratio_mask"), {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}),
    "stable_reinforce": (("advantages",), {"kl_coeff": 0.01}),
}
Rollout = tuple[list[int], list[float], tinker.SampledSequence, list[float]]  # prompt, its logprobs, drawn, rewards


def rollouts(sampler: tinker.SamplingClient, tokenizer: Any, seed: int) -> tuple[list[Rollout], float]:
    """What was drawn, and its mean reward: a token with a capital letter earns 1. `stop=[]` is never to stop early."""
    params, drawn = tinker.SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=seed, stop=[]), []
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in PROMPTS]
    asked = [sampler.sample(tinker.ModelInput.from_ints(prompt), GROUP, params, True) for prompt in prompts]
    for prompt, told in zip(prompts, (one.result() for one in asked)):
        for one in told.sequences:
            earned = [float(any(map(str.isupper, tokenizer.decode([token])))) for token in one.tokens]
            drawn.append((prompt, told.prompt_logprobs[1:], one, earned))
    return drawn, sum(sum(earned) for *_, earned in drawn) / (TOKENS * len(drawn))


def datum(rollout: Rollout, mean: float, reads: tuple[str, ...]) -> tinker.Datum:
    """Position i predicts token i + 1. Nothing is asked of the prompt; but dro pulls at it, so its q has to be true."""
    prompt, q, drawn, earned = rollout
    tokens, name, known = prompt + list(drawn.tokens), drawn.sequence_id, [0.0] * len(q)
    inputs = {"weights": known + earned, "advantages": known + [one - mean for one in earned]}
    inputs |= {"logprobs": q + list(drawn.logprobs), "sequence_ratio_mask": known + [1.0] * TOKENS}
    given = {"target_tokens": tokens[1:], **{key: inputs[key] for key in reads}}
    of_prompt, sampled = tinker.PromptProvenanceSpan, tinker.SampledProvenanceSpan  # for stable_reinforce
    return tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), given).with_provenance(
        [of_prompt(sequence_id=name, length=len(prompt)), sampled(sequence_id=name, length=TOKENS - 1)],
        [of_prompt(sequence_id=name, offset=1, length=len(q)), sampled(sequence_id=name, length=TOKENS)],
    )


def main(model: str = "HuggingFaceTB/SmolLM2-135M-Instruct") -> dict[str, list[float]]:
    """Each loss's losses, then the mean reward before and after."""
    client, told = tinker.ServiceClient(), {}
    trainers = {name: client.create_lora_training_client(model, rank=8, seed=0).result() for name in LOSSES}
    first = trainers["cross_entropy"]
    sampler, tokenizer = first.save_weights_and_get_sampling_client(record_stability_info=True), first.get_tokenizer()
    drawn, before = rollouts(sampler.result(), tokenizer, seed=1)
    for name, trainer in trainers.items():
        reads, config = LOSSES[name]
        data, losses = [datum(each, before, reads) for each in drawn], []
        for _ in range(UPDATES):
            passed = trainer.forward_backward(data, name, config)
            trainer.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
            losses.append(passed.result().metrics["loss:sum"])
        _, after = rollouts(trainer.save_weights_and_get_sampling_client().result(), tokenizer, seed=2)
        told[name] = [*losses, before, after]
        shown = " -> ".join(f"{loss:8.2f}" for loss in losses)
        print(f"{name:>19}  loss {shown}   capitals {before:.0%} -> {after:.0%}   {config or ''}", flush=True)
    return told


if __name__ == "__main__":
    main(*sys.argv[1:])
