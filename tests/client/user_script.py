"""What a user of Weaver's API writes, for type checkers: each line that ends in a comment has the type it says."""

from typing import reveal_type

from weaver import AsyncSamplingClient, AsyncServiceClient, AsyncTrainingClient, ServiceClient, types

DATA: list[types.Datum] = []
PROMPT = types.ModelInput.from_ints([1, 2])
ADAM = types.AdamParams(learning_rate=1e-3)


def blocking(wait: bool) -> None:
    service = ServiceClient()
    reveal_type(service.connect())  # None
    reveal_type(service.list_supported_models())  # list[str]
    reveal_type(service.list_supported_models(detailed=True))  # list[SupportedModel]
    reveal_type(service.list_supported_models(detailed=wait))  # list[str] | list[SupportedModel]
    reveal_type(service.delete_deployment("id"))  # Deployment
    reveal_type(service.delete_deployment("id", wait=False))  # OperationHandle
    reveal_type(service.download_weights("uri", "folder"))  # Path
    trainer = service.create_model(base_model="model")
    reveal_type(trainer)  # TrainingClient
    reveal_type(trainer.forward(DATA, "cross_entropy"))  # dict[str, Any]
    reveal_type(trainer.forward_backward(DATA, "cross_entropy", wait=False))  # OperationHandle
    reveal_type(trainer.optim_step(ADAM, wait=True))  # dict[str, Any]
    reveal_type(trainer.optim_step(ADAM, wait=wait))  # dict[str, Any] | OperationHandle
    reveal_type(trainer.save_weights_for_sampler(name="a"))  # str
    reveal_type(trainer.save_state())  # Checkpoint
    reveal_type(trainer.save_state(wait=wait))  # Checkpoint | OperationHandle
    reveal_type(trainer.load_state(trainer.save_state(), wait=False))  # OperationHandle
    reveal_type(trainer.list_checkpoints()[0].ttl_seconds)  # int | None
    reveal_type(trainer.export_weights())  # WeightsArtifact
    reveal_type(trainer.export_weights(wait=False))  # WeightsArtifact | OperationHandle
    reveal_type(trainer.deploy_checkpoint("path", name="a"))  # Deployment
    reveal_type(trainer.forward_backward_custom(DATA, lambda data, logprobs: (logprobs[0].sum(), {})))  # dict[str, Any]
    reveal_type(trainer.save_weights_and_get_sampling_client(wait=False))  # OperationHandle
    sampler = trainer.save_weights_and_get_sampling_client()
    reveal_type(sampler)  # SamplingClient
    reveal_type(sampler.sample(prompt=PROMPT))  # dict[str, Any]
    reveal_type(sampler.sample(prompt=PROMPT, wait=False))  # OperationHandle
    reveal_type(sampler.compute_logprobs(prompt=PROMPT))  # list[float | None]


async def awaited(wait: bool) -> None:
    async with AsyncServiceClient() as service:
        reveal_type(await service.list_deployments())  # list[Deployment]
        trainer = await service.create_model(base_model="model")
        reveal_type(trainer)  # AsyncTrainingClient
        reveal_type(await trainer.forward_backward(DATA, "cross_entropy"))  # dict[str, Any]
        reveal_type(await trainer.forward_backward(DATA, "cross_entropy", wait=False))  # AsyncOperationHandle
        reveal_type(await trainer.optim_step(ADAM, wait=wait))  # dict[str, Any] | AsyncOperationHandle
        reveal_type(await trainer.save_state())  # Checkpoint
        reveal_type(await trainer.save_weights_and_get_sampling_client())  # AsyncSamplingClient
        sampler = await service.create_sampling_client(base_model="model")
        reveal_type(await sampler.sample(prompt=PROMPT, wait=False))  # AsyncOperationHandle


async def named(trainer: AsyncTrainingClient, sampler: AsyncSamplingClient) -> None:
    reveal_type(await trainer.list_checkpoints())  # list[Checkpoint]
    reveal_type(await sampler.compute_logprobs(prompt=PROMPT))  # list[float | None]
