"""A loss across sequences: make answers equally likely, whatever they were before.

    loss = mean over i of (m_i - mean of m)²        m_i the mean log probability of answer i's tokens

The gradient of one sequence depends on all others, so no loss that sees one datum at a time can say it, and the data of
one call belong together. It says nothing about how likely the answers become; add a cross entropy for that.

`weaver run` it, or set TINKER_BASE_URL and TINKER_API_KEY; see `weaver serve`. Its argument is a model's name.
"""

import sys
from typing import Any

import tinker
import torch

STEPS = 8
PROMPT = "My favourite colour is"
ANSWERS = (" blue.", " mauve.", " green.", " quokka.", " of no interest to you.")


def datum(tokenizer: Any, prompt: str, answer: str) -> tinker.Datum:
    """Position i predicts token i + 1; weights are 1 on the answer's tokens."""
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, answer))
    weights = [0.0] * (len(before) - 1) + [1.0] * len(after)
    inputs = {"target_tokens": (before + after)[1:], "weights": weights}
    return tinker.Datum(tinker.ModelInput.from_ints((before + after)[:-1]), inputs)


def variance(data: list[tinker.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    weights = [one.loss_fn_inputs["weights"].to_torch() for one in data]
    means = torch.stack([(weight * lp).sum() / weight.sum() for weight, lp in zip(weights, logprobs)])
    return means.var(unbiased=False), {"likeliest": means.max().item(), "unlikeliest": means.min().item()}


def main(model: str = "HuggingFaceTB/SmolLM2-135M-Instruct") -> list[float]:
    trainer = tinker.ServiceClient().create_lora_training_client(model, rank=8, seed=0).result()
    data = [datum(trainer.get_tokenizer(), PROMPT, answer) for answer in ANSWERS]
    losses = []
    for step in range(STEPS):
        passed = trainer.forward_backward_custom(data, variance)
        trainer.optim_step(tinker.AdamParams(learning_rate=3e-4)).result()
        metrics = passed.result().metrics
        losses.append(metrics["loss:sum"])
        spread = f"from {metrics['unlikeliest']:.2f} to {metrics['likeliest']:.2f} nats per token"
        print(f"step {step}: variance {losses[-1]:.4f}, {spread}", flush=True)
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
