"""A user's script as it is written against the vendor's SDK: pyright reads it with that SDK's types and with ours."""

import asyncio
from collections.abc import Mapping

import numpy as np
import tinker
import torch
from tinker import types
from tinker.lib.public_interfaces import APIFuture
from tinker.lib.public_interfaces.rest_client import RestClient
from tinker.types import LossFnType
from tinker.types.tensor_data import TensorData


def supervised(tokens: list[int], weights: list[float]) -> tinker.Datum:
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
            "weights": TensorData.from_numpy(np.array(weights[1:], np.float32)),
        },
    )


def train(service: tinker.ServiceClient, base_model: str, data: list[tinker.Datum]) -> tinker.TrainingClient:
    client = service.create_lora_training_client(base_model=base_model, rank=16, seed=0, train_unembed=False).result()
    loss: LossFnType = "cross_entropy"
    for _ in range(3):
        passed: APIFuture[tinker.ForwardBackwardOutput] = client.forward_backward(data, loss)
        stepped = client.optim_step(tinker.AdamParams(learning_rate=1e-4, beta2=0.99))
        output: tinker.ForwardBackwardOutput = passed.result()
        logprobs: list[float] = [part for row in output.loss_fn_outputs for part in row["logprobs"].tolist()]
        metrics: dict[str, float] | None = stepped.result().metrics
        print(output.metrics["loss:sum"], sum(logprobs), metrics)
    saved: str = client.save_state("state", ttl_seconds=3600).result().path
    print(saved, client.get_info().model_data.model_name)
    return client


def variance(data: list[tinker.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    means = torch.stack([row.mean() for row in logprobs])
    return means.var(), {"rows": float(len(data))}


def reward(tokens: list[int]) -> float:
    return 1.0 if 7 in tokens else 0.0


async def rollout(sampler: tinker.SamplingClient, prompt: tinker.ModelInput) -> list[tinker.Datum]:
    params = tinker.SamplingParams(max_tokens=8, temperature=1.0, stop=[0])
    answer: tinker.SampleResponse = await sampler.sample(
        prompt=prompt, num_samples=4, sampling_params=params, topk_prompt_logprobs=2, include_prompt_logprobs=True
    )
    rewards = [reward(sequence.tokens) for sequence in answer.sequences]
    made: list[tinker.Datum] = []
    for sequence, gained in zip(answer.sequences, rewards, strict=True):
        if sequence.logprobs is None:
            continue
        reason: tinker.StopReason = sequence.stop_reason
        advantage = gained - sum(rewards) / len(rewards)
        asked = prompt.length - 1
        made.append(
            tinker.Datum(
                model_input=prompt.append(tinker.EncodedTextChunk(tokens=sequence.tokens[:-1])),
                loss_fn_inputs={
                    "target_tokens": TensorData([0] * asked + sequence.tokens, "int64"),
                    "logprobs": TensorData([0.0] * asked + sequence.logprobs, "float32"),
                    "advantages": TensorData.from_torch(torch.full((asked + len(sequence.tokens),), advantage)),
                },
            ).with_provenance(
                model_input=[tinker.PromptProvenanceSpan(sequence_id=sequence.sequence_id, length=prompt.length)],
                loss_fn_inputs=[tinker.SampledProvenanceSpan(sequence_id=sequence.sequence_id, length=len(rewards))],
            )
        )
        print(reason)
    return made


async def reinforce(client: tinker.TrainingClient, prompts: list[tinker.ModelInput]) -> None:
    for _ in range(2):
        sampler = await client.save_weights_and_get_sampling_client()
        groups = await asyncio.gather(*[rollout(sampler, prompt) for prompt in prompts])
        data = [datum for group in groups for datum in group]
        config: Mapping[str, float] = {"clip_low_threshold": 0.8}
        passed = client.forward_backward(data, "ppo", loss_fn_config=config)
        stepped = client.optim_step(tinker.AdamParams())
        print((await passed).metrics, (await stepped).metrics)
    logprobs: list[float | None] = await sampler_of(client).compute_logprobs(prompts[0])
    print(logprobs)


def sampler_of(client: tinker.TrainingClient) -> tinker.SamplingClient:
    path = client.save_weights_for_sampler("sampler").result().path
    return client.create_sampling_client(path).result()


def look_around(rest: RestClient, path: str) -> None:
    run: types.TrainingRun = rest.get_training_run_by_tinker_path(path).result()
    page: types.TrainingRunsResponse = rest.list_training_runs(limit=5).result()
    newest: tinker.Checkpoint | None = run.last_checkpoint
    print([each.training_run_id for each in page.training_runs], newest.size_bytes if newest else 0)
    for checkpoint in rest.list_user_checkpoints().result().checkpoints:
        if checkpoint.checkpoint_type == "sampler":
            rest.delete_checkpoint_from_tinker_path(checkpoint.tinker_path).result()
    parsed = tinker.ParsedCheckpointTinkerPath.from_tinker_path(path)
    kind: tinker.CheckpointType = parsed.checkpoint_type
    print(kind, rest.get_server_capabilities().result().supported_models[0].model_name)


def main() -> None:
    if not tinker.auth.tinker_has_credentials():
        raise SystemExit("set TINKER_API_KEY")
    try:
        with tinker.ServiceClient(user_metadata={"made": "by hand"}) as service:
            client = train(service, "Qwen/Qwen3-8B", [supervised([1, 2, 3], [0, 1, 1])])
            custom = client.forward_backward_custom([supervised([1, 2, 3], [0, 1, 1])], variance).result()
            print(custom.metrics)
            asyncio.run(reinforce(client, [tinker.ModelInput.from_ints([1, 2])]))
            look_around(tinker.RestClient(), client.save_state("end").result().path)
    except tinker.BadRequestError as error:
        print(error.status_code, error.message, error.response.headers)
    except tinker.RequestFailedError as error:
        if error.category == types.RequestErrorCategory.User:
            print(error.request_id)
    except tinker.APIConnectionError as error:
        print(error.request.url)


if __name__ == "__main__":
    main()
