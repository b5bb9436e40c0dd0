"""Reinforcement learning: answers with a digit in them are rewarded, relative to their group (GRPO, arXiv:2402.03300).

`weaver run` it, or set TINKER_BASE_URL and TINKER_API_KEY; see `weaver serve`.
"""

import tinker

STEPS, GROUP = 8, 8
QUESTIONS = ("Tell me about the moon.", "Describe a tree.", "How do I bake bread?", "What is a river?")
SAMPLING = tinker.SamplingParams(max_tokens=24, temperature=1.0)

trainer = tinker.ServiceClient().create_lora_training_client("HuggingFaceTB/SmolLM2-135M-Instruct", rank=16).result()
tokenizer = trainer.get_tokenizer()


def prompt_tokens(question: str) -> list[int]:
    chat = [{"role": "user", "content": question}]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def reward(sequence: tinker.SampledSequence) -> float:
    return float(any(letter.isdigit() for letter in tokenizer.decode(sequence.tokens)))


def datum(prompt: list[int], sequence: tinker.SampledSequence, advantage: float) -> tinker.Datum:
    """Position i predicts token i + 1; only what was sampled has an advantage."""
    tokens, known = prompt + list(sequence.tokens), [0.0] * (len(prompt) - 1)
    inputs = {
        "target_tokens": tokens[1:],
        "logprobs": known + list(sequence.logprobs),
        "advantages": known + [advantage] * len(sequence.tokens),
    }
    return tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), inputs)


for step in range(STEPS):
    sampler = trainer.save_weights_and_get_sampling_client().result()
    prompts = [prompt_tokens(question) for question in QUESTIONS]
    asked = [sampler.sample(tinker.ModelInput.from_ints(prompt), GROUP, SAMPLING) for prompt in prompts]
    groups = [one.result().sequences for one in asked]
    rewards = [[reward(sequence) for sequence in group] for group in groups]
    data = [
        datum(prompt, sequence, earned - sum(of_group) / GROUP)
        for prompt, group, of_group in zip(prompts, groups, rewards, strict=True)
        for sequence, earned in zip(group, of_group, strict=True)
        if len(set(of_group)) > 1  # a group of equals teaches nothing
    ]
    print(f"step {step}: mean reward {sum(map(sum, rewards)) / (GROUP * len(QUESTIONS)):.2f}", flush=True)
    if data:
        passed = trainer.forward_backward(data, "importance_sampling")
        trainer.optim_step(tinker.AdamParams(learning_rate=5e-4)).result()
        passed.result()
