"""Supervised fine-tuning: one question, one answer. `weaver run` it, or set TINKER_BASE_URL; see `weaver serve`."""

import tinker

trainer = tinker.ServiceClient().create_lora_training_client("HuggingFaceTB/SmolLM2-135M-Instruct", rank=16).result()
tokenizer = trainer.get_tokenizer()

question = [{"role": "user", "content": "What does a weaver do?"}]
prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
answer = tokenizer.encode("A weaver turns many threads into one cloth.<|im_end|>")
tokens = prompt + answer
weights = [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
datum = tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": weights})

for step in range(10):
    passed = trainer.forward_backward([datum], "cross_entropy")
    trainer.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
    print(f"step {step}: {passed.result().metrics['loss:sum'] / len(answer):.3f} nats per token")

sampler = trainer.save_weights_and_get_sampling_client().result()
greedy = tinker.SamplingParams(max_tokens=32, temperature=0.0)
sampled = sampler.sample(tinker.ModelInput.from_ints(prompt), 1, greedy).result()
print(tokenizer.decode(sampled.sequences[0].tokens, skip_special_tokens=True))
