"""Preferences as a loss: of two answers, the better one shall score higher (Bradley and Terry 1952, Biometrika 39).

    P(chosen beats rejected) = sigmoid(s_chosen - s_rejected)
    loss = mean over pairs of -log P        s the mean log probability of an answer's tokens

This is how reward models are trained (arXiv:2203.02155); the score here is the model's own opinion of an answer, as in
SimPO (arXiv:2405.14734), and a mean, so that length does not count. A pair is two data in a row; the loss couples them.

`weaver run` it, or set TINKER_BASE_URL and TINKER_API_KEY; see `weaver serve`. Its argument is a model's name.
"""

import sys
from typing import Any

import tinker
import torch
from torch.nn.functional import logsigmoid

STEPS = 6
PAIRS = (  # a prompt, the answer that is preferred, the other one
    ("Can you help me?", " Of course, gladly.", " No, go away."),
    ("I am late.", " No worries at all.", " You always are."),
    ("Is this right?", " Almost, well done!", " Wrong again."),
    ("Where is the station?", " Straight on, please.", " Find it yourself."),
)
UNSEEN = (("Do you have time?", " Yes, of course.", " Not for you."), ("I forgot.", " No worries.", " How stupid."))


def datum(tokenizer: Any, prompt: str, answer: str) -> tinker.Datum:
    """Position i predicts token i + 1; weights are 1 on the answer's tokens."""
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, answer))
    weights = [0.0] * (len(before) - 1) + [1.0] * len(after)
    inputs = {"target_tokens": (before + after)[1:], "weights": weights}
    return tinker.Datum(tinker.ModelInput.from_ints((before + after)[:-1]), inputs)


def pairs_of(tokenizer: Any, pairs: tuple[tuple[str, str, str], ...]) -> list[tinker.Datum]:
    """Chosen, rejected, chosen, rejected ..."""
    return [datum(tokenizer, prompt, answer) for prompt, *answers in pairs for answer in answers]


def margins(data: list[tinker.Datum], logprobs: list[torch.Tensor]) -> torch.Tensor:
    """By how much each pair's chosen answer scores higher."""
    weights = [one.loss_fn_inputs["weights"].to_torch() for one in data]
    scores = [(weight * lp).sum() / weight.sum() for weight, lp in zip(weights, logprobs)]
    return torch.stack(scores[::2]) - torch.stack(scores[1::2])


def bradley_terry(data: list[tinker.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    ahead = margins(data, logprobs)
    return -logsigmoid(ahead).mean(), {"margin": ahead.mean().item(), "right": (ahead > 0).float().mean().item()}


def main(model: str = "HuggingFaceTB/SmolLM2-135M-Instruct") -> list[dict[str, float]]:
    trainer = tinker.ServiceClient().create_lora_training_client(model, rank=8, seed=0).result()
    data, unseen = (pairs_of(trainer.get_tokenizer(), pairs) for pairs in (PAIRS, UNSEEN))
    steps = []
    for step in range(STEPS):
        passed = trainer.forward_backward_custom(data, bradley_terry)
        trainer.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
        now = passed.result().metrics
        steps.append(now)
        told = f"loss {now['loss:sum']:.3f}, margin {now['margin']:+.2f}, right in {now['right']:.0%} of pairs"
        print(f"step {step}: {told}", flush=True)
    outputs = trainer.forward(unseen, "cross_entropy").result().loss_fn_outputs
    ahead = margins(unseen, [one["logprobs"].to_torch() for one in outputs])
    print("unseen pairs: margins", *(f"{one:+.2f}" for one in ahead.tolist()))
    return steps


if __name__ == "__main__":
    main(*sys.argv[1:])
