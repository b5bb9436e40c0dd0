"""A loss of your own, twice: as any function, which runs here, and traced, which the server runs.

    loss = Σ lp²        over an answer's tokens, lp the log probability of each

Its gradient is 2 · lp where cross entropy's is -1: the unlikelier a token, the harder it is pulled. The first way
computes logprobs, runs the function here, and sends its gradient back as the weights of a second pass; it takes any
Python. The other takes one pass; the function sees one datum at a time and may call torch and math only.

`weaver run` it, or set TINKER_BASE_URL and TINKER_API_KEY; see `weaver serve`. Its argument is a model's name.
"""

import sys
from typing import Any

import tinker

STEPS = 6
ANSWERS = (("What does a weaver do?", " Weaves threads to cloth."), ("What does a baker do?", " Bakes bread at dawn."))
Metrics = dict[str, Any]


def datum(tokenizer: Any, prompt: str, answer: str) -> tinker.Datum:
    """Position i predicts token i + 1; weights are 1 on the answer's tokens."""
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, answer))
    weights = [0.0] * (len(before) - 1) + [1.0] * len(after)
    inputs = {"target_tokens": (before + after)[1:], "weights": weights}
    return tinker.Datum(tinker.ModelInput.from_ints((before + after)[:-1]), inputs)


def traced(logprobs: Any, weights: Any) -> tuple[Any, Metrics]:
    """One datum's loss. What it reads are its parameters, by the names of `loss_fn_inputs`."""
    loss = (weights * logprobs**2).sum()
    return loss, {"custom/unlikeliest:mean": (weights * logprobs).min()}


def here(data: list[tinker.Datum], logprobs: list[Any]) -> tuple[Any, Metrics]:
    """The same for all data at once."""
    losses = [(one.loss_fn_inputs["weights"].to_torch() * lp**2).sum() for one, lp in zip(data, logprobs)]
    return sum(losses), {"largest": max(loss.item() for loss in losses)}


def main(model: str = "HuggingFaceTB/SmolLM2-135M-Instruct") -> dict[str, list[float]]:
    client = tinker.ServiceClient()
    on_server = client.create_custom_loss(traced, {"logprobs": 1, "weights": 1}).result()
    losses: dict[str, list[float]] = {}
    for where, loss in (("here", here), ("on the server", on_server)):
        trainer = client.create_lora_training_client(model, rank=8, seed=0).result()
        data = [datum(trainer.get_tokenizer(), *pair) for pair in ANSWERS]
        losses[where] = []
        for _ in range(STEPS):
            passed = trainer.forward_backward_custom(data, loss)
            trainer.optim_step(tinker.AdamParams(learning_rate=2e-3)).result()
            losses[where].append(passed.result().metrics["loss:sum"])
        print(f"{where:>13}:", *(f"{value:8.2f}" for value in losses[where]), flush=True)
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
