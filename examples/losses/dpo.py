"""Direct preference optimisation (arXiv:2305.18290): prefer the chosen answer by more than the model did at first.

    loss = mean over pairs of -log sigmoid(beta · ((c - c_ref) - (r - r_ref)))

c and r are the log probabilities of a pair's chosen and rejected answer, c_ref and r_ref those of the reference: a
sampling client of the weights before training, which stays as it is while training goes on. At first both are the same
model, and the loss is log 2.

`weaver run` it, or set TINKER_BASE_URL and TINKER_API_KEY; see `weaver serve`. Its argument is a model's name.
"""

import sys
from typing import Any

import tinker
import torch
from torch.nn.functional import logsigmoid

STEPS, BETA = 6, 0.1
PAIRS = (  # a prompt, the answer that is preferred, the other one
    ("What is the sky?", " Air, full of light.", " I cannot say."),
    ("What is a river?", " Water on its way to the sea.", " I do not know."),
    ("What is bread?", " Flour, water, salt and time.", " I am only a model."),
    ("What is a loom?", " A frame to weave cloth on.", " I have no idea."),
)


def datum(tokenizer: Any, prompt: str, answer: str) -> tinker.Datum:
    """Position i predicts token i + 1; weights are 1 on the answer's tokens."""
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, answer))
    weights = [0.0] * (len(before) - 1) + [1.0] * len(after)
    inputs = {"target_tokens": (before + after)[1:], "weights": weights}
    return tinker.Datum(tinker.ModelInput.from_ints((before + after)[:-1]), inputs)


def of_answers(data: list[tinker.Datum], logprobs: list[torch.Tensor]) -> torch.Tensor:
    """The log probability of every datum's answer."""
    return torch.stack([(one.loss_fn_inputs["weights"].to_torch() * lp).sum() for one, lp in zip(data, logprobs)])


def of_reference(reference: tinker.SamplingClient, data: list[tinker.Datum]) -> torch.Tensor:
    """The same of a sampling client, which tells of all tokens but the first how likely they are after those before."""
    last = [int(one.loss_fn_inputs["target_tokens"].data[-1]) for one in data]
    asked = [reference.compute_logprobs(one.model_input.append_int(end)) for one, end in zip(data, last)]
    return of_answers(data, [torch.tensor(one.result()[1:]) for one in asked])


def main(model: str = "HuggingFaceTB/SmolLM2-135M-Instruct") -> list[dict[str, float]]:
    trainer = tinker.ServiceClient().create_lora_training_client(model, rank=8, seed=0).result()
    tokenizer = trainer.get_tokenizer()
    data = [datum(tokenizer, prompt, answer) for prompt, *answers in PAIRS for answer in answers]
    sampler = trainer.save_weights_and_get_sampling_client().result()
    reference = of_reference(sampler, data)

    def dpo(data: list[tinker.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        rewards = BETA * (of_answers(data, logprobs) - reference)
        ahead = rewards[::2] - rewards[1::2]
        return -logsigmoid(ahead).mean(), {"margin": ahead.mean().item(), "chosen": rewards[::2].mean().item()}

    steps = []
    for step in range(STEPS):
        passed = trainer.forward_backward_custom(data, dpo)
        trainer.optim_step(tinker.AdamParams(learning_rate=3e-4)).result()
        now = passed.result().metrics
        steps.append(now)
        told = f"loss {now['loss:sum']:.4f}, margin {now['margin']:+.3f}, reward of the chosen {now['chosen']:+.3f}"
        print(f"step {step}: {told}", flush=True)
    moved = (of_reference(sampler, data) - reference).abs().max().item()
    print(f"the reference has moved by {moved:.1e}")
    return [*steps, {"moved": moved}]


if __name__ == "__main__":
    main(*sys.argv[1:])
