"""Supervised fine-tuning by Weaver's own API: in this process, or on the server that WEAVER_BASE_URL names."""

from weaver import ServiceClient, types

with ServiceClient() as service:
    trainer = service.create_model(base_model="HuggingFaceTB/SmolLM2-135M-Instruct", lora_config={"rank": 16})
    tokenizer = trainer.get_tokenizer()

    prompt = tokenizer.encode("What does a weaver do?")
    answer = tokenizer.encode(" It turns many threads into one cloth.")
    tokens = prompt + answer
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
    datum = types.Datum(types.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": weights})

    for step in range(10):
        passed = trainer.forward_backward([datum], "cross_entropy")
        trainer.optim_step(types.AdamParams(learning_rate=1e-3))
        print(f"step {step}: {passed['result']['metrics']['loss'] / len(answer):.3f} nats per token")

    sampler = trainer.save_weights_and_get_sampling_client(name="threads")
    greedy = types.SamplingParams(max_tokens=16, temperature=0.0)
    print(sampler.sample(prompt=types.ModelInput.from_ints(prompt), sampling_params=greedy)["sequences"][0]["text"])
