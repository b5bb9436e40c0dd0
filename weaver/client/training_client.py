"""Clients that train one model."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from weaver.client.custom_loss import surrogate
from weaver.client.errors import WeaverAPIError
from weaver.client.faces import Awaited, Blocking, Face
from weaver.client.operations import Operation
from weaver.client.references import deployment_body
from weaver.client.service import with_guidance
from weaver.client.tokenizers import tokenizer_of
from weaver.client.training import SAMPLER_TTL, UNSET, Training, Unset
from weaver.client.transports.contract import Json
from weaver.types import AdamParams, Checkpoint, Datum, Deployment, SampleRef, WeightsArtifact

if TYPE_CHECKING:
    from weaver.client.custom_loss import CustomLoss

EXPORT_TTL: Final = 604_800
"""Exported weights are kept for a week unless their user says otherwise."""


class TrainingMethods(Face):
    """What both training clients do. `model_id` is also the run's name."""

    def __init__(
        self,
        *,
        service: Any,
        model_id: str,
        base_model: str,
        session_id: str,
        tokenizer_path: str | None = None,
        debug_info: dict[str, Any] | None = None,
    ) -> None:
        self._service, self._connection, self._http = service, service._connection, service._http
        self._training = Training(self._connection, model_id, session_id)
        self.model_id = model_id
        self.base_model = base_model
        self.session_id = session_id
        self.tokenizer_path = tokenizer_path
        self.debug_info = debug_info

    @property
    def training_run_id(self) -> str:
        """The model's id by its other name."""
        return self.model_id

    @cached_property
    def tokenizer(self) -> Any:
        """The model's, from where the service says or from the hub."""
        return tokenizer_of(self.tokenizer_path, self.base_model)

    def get_tokenizer(self) -> Any:
        """The model's `tokenizer`."""
        return self.tokenizer

    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: bool = True,
    ) -> Any:
        """A loss's values without gradients: {"result": {"loss_fn_outputs": [...], "metrics": {...}}}."""
        work = self._training.run_pass("forward", data, loss_fn, loss_fn_config, metadata, router_replay)
        return self._operation(work, wait)

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        *,
        loss_fn_config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: bool = True,
    ) -> Any:
        """Like `forward`, and the gradients are added to those since the last step."""
        work = self._training.run_pass("forward_backward", data, loss_fn, loss_fn_config, metadata, router_replay)
        return self._operation(work, wait)

    def optim_step(self, params: AdamParams, *, wait: bool = True) -> Any:
        """Move the weights by the gradients there are, and forget these: {"metrics": {...}}."""
        return self._operation(self._training.optim_step(params), wait)

    def save_weights_for_sampler(
        self, *, name: str | None = None, ttl_seconds: int | None = SAMPLER_TTL, wait: bool = True
    ) -> Any:
        """Save the weights to sample from; returns their path. They are kept for an hour unless told otherwise."""
        return self._operation(self._training.export_sampler(name, ttl_seconds), wait, _model_path)

    def save_weights_and_get_sampling_client(
        self, *, name: str | None = None, ttl_seconds: int | None = SAMPLER_TTL, wait: bool = True
    ) -> Any:
        """Save the weights and sample from them."""
        if not wait:
            return self.save_weights_for_sampler(name=name, ttl_seconds=ttl_seconds, wait=False)

        async def client() -> Any:
            operation: Operation = await self._training.export_sampler(name, ttl_seconds)
            answer = await operation.result()
            return await self._service._sampling_client(
                self.base_model, _model_path(answer), self.model_id, answer.get("sampling_session_id"), tokenizer
            )

        tokenizer = self.tokenizer_path
        return self._answer(client())

    def save_state(
        self,
        *,
        name: str | None = None,
        checkpoint_type: str = "weight",
        ttl_seconds: int | Unset | None = UNSET,
        wait: bool = True,
    ) -> Any:
        """Save a Checkpoint of type weight, weight_and_optimizer or sampling. Only sampling ones expire by default."""
        return self._operation(self._training.save_state(name, checkpoint_type, ttl_seconds), wait, _checkpoint)

    def load_state(self, path: str | Checkpoint, *, wait: bool = True) -> Any:
        """Take the weights of a checkpoint; the optimizer begins anew."""
        return self._operation(self._training.load(path, optimizer=False), wait)

    def load_state_with_optimizer(self, path: str | Checkpoint, *, wait: bool = True) -> Any:
        """Take the weights and the optimizer's state of a checkpoint of type weight_and_optimizer."""
        return self._operation(self._training.load(path, optimizer=True), wait)

    def list_checkpoints(self) -> Any:
        """All checkpoints of this model."""
        return self._answer(self._training.checkpoints())

    def set_checkpoint_ttl(self, path: str | Checkpoint, ttl_seconds: int | None) -> Any:
        """Let a checkpoint expire in so many seconds from now; None: never."""
        return self._answer(self._training.set_ttl(path, ttl_seconds))

    def export_weights(
        self,
        *,
        checkpoint: str | Checkpoint | None = None,
        merge_adapter: bool = False,
        ttl_seconds: int | None = EXPORT_TTL,
        force: bool = False,
        wait: bool = True,
    ) -> Any:
        """Make a WeightsArtifact of a checkpoint, or of the weights as they are: a PEFT adapter, or a whole model.

        One that is there already is not made again, unless by `force`; without `wait` it is returned at once.
        """

        async def artifact() -> Any:
            made = await self._training.export(
                checkpoint, merge_adapter=merge_adapter, ttl_seconds=ttl_seconds, force=force
            )
            if isinstance(made, Operation) and not wait:
                return self._handles._of(self._http, made)
            return WeightsArtifact.from_payload(await made.result() if isinstance(made, Operation) else made)

        return self._answer(artifact())

    def deploy_checkpoint(
        self,
        checkpoint: str | Checkpoint,
        *,
        name: str,
        gpu_type: str | None = None,
        replicas: int = 1,
        gpus_per_replica: int | None = None,
        overwrite: bool = False,
        wait: bool = True,
    ) -> Any:
        """Give a checkpoint a model name of its own at the OpenAI-compatible endpoint; returns the Deployment."""
        body = deployment_body(name, gpu_type, replicas, gpus_per_replica, overwrite)
        return self._operation(self._deployed(checkpoint, body), wait, Deployment.from_payload)

    async def _deployed(self, checkpoint: str | Checkpoint, body: Json) -> Operation:
        try:
            return await self._training.deploy(checkpoint, body)
        except WeaverAPIError as error:
            raise with_guidance(error) from error

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        *,
        step: int,
        occurred_at: datetime | None = None,
        labels: Mapping[str, Any] | None = None,
    ) -> Any:
        """Keep numbers of the user's own with the run: rewards, evaluations."""
        return self._answer(self._training.log_metrics(metrics, step, occurred_at, labels))

    def resolve_sample_ref_lengths(self, refs: Sequence[SampleRef]) -> Any:
        """How many tokens this model reads of samples that the service keeps."""
        asked = list(refs)
        if not all(isinstance(ref, SampleRef) for ref in asked):
            raise TypeError("refs must contain only SampleRef values")
        return self._answer(self._training.lengths(asked))

    def terminate(self, instance_types: list[str] | None = None) -> Any:
        """Give back what the model takes: its trainer, its inference, or both."""
        return self._service.terminate_model(self.model_id, instance_types)


class TrainingClient(TrainingMethods, Blocking):
    """Trains one model; methods return when they are done, or at once with a handle where `wait` is False."""

    def forward_backward_custom(
        self, data: Sequence[Datum], loss_fn: "CustomLoss", *, loss_fn_config: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Add the gradients of a loss of your own: `loss_fn(data, logprobs)` returns a scalar and metrics.

        `logprobs` are tensors, one for each datum. The function is called on this thread. Returns its loss and metrics.
        """
        first = self.forward(data, "forward_logprob", loss_fn_config=loss_fn_config)
        found = surrogate(data, loss_fn, first)
        self.forward_backward(found.data, "surrogate", loss_fn_config=loss_fn_config)
        return found.answer


class AsyncTrainingClient(TrainingMethods, Awaited):
    """Trains one model; methods are to be awaited."""

    async def forward_backward_custom(
        self, data: Sequence[Datum], loss_fn: "CustomLoss", *, loss_fn_config: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """As of `TrainingClient`; the function is called on the caller's loop."""
        first = await self.forward(data, "forward_logprob", loss_fn_config=loss_fn_config)
        found = surrogate(data, loss_fn, first)
        await self.forward_backward(found.data, "surrogate", loss_fn_config=loss_fn_config)
        return found.answer


def _model_path(answer: Json) -> str:
    path = answer.get("model_path") or answer.get("path")
    if not path:
        raise RuntimeError("Export response missing model path")
    return str(path)


def _checkpoint(answer: Json) -> Checkpoint:
    found = Checkpoint.from_payload(answer)
    if not found.id or not found.path:
        raise RuntimeError("Save completed but the server returned no checkpoint metadata")
    return found
