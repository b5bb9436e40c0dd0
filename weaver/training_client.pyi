"""Written by tests/client/stubs.py."""

from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, overload

import weaver.client.training_client as _clients
from weaver.client.training import Unset
from weaver.operations import AsyncOperationHandle, OperationHandle
from weaver.sampling_client import AsyncSamplingClient, SamplingClient
from weaver.types import AdamParams, Checkpoint, Datum, Deployment, SampleRef, SampleRefLength, WeightsArtifact

__all__ = ["AsyncTrainingClient", "TrainingClient"]

class AsyncTrainingClient(_clients.AsyncTrainingClient):
    @overload
    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: Literal[True] = True,
    ) -> Coroutine[Any, Any, dict[str, Any]]: ...
    @overload
    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: Literal[False],
    ) -> Coroutine[Any, Any, AsyncOperationHandle]: ...
    @overload
    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: bool = True,
    ) -> Coroutine[Any, Any, dict[str, Any] | AsyncOperationHandle]: ...
    @overload
    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        *,
        loss_fn_config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: Literal[True] = True,
    ) -> Coroutine[Any, Any, dict[str, Any]]: ...
    @overload
    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        *,
        loss_fn_config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: Literal[False],
    ) -> Coroutine[Any, Any, AsyncOperationHandle]: ...
    @overload
    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        *,
        loss_fn_config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: bool = True,
    ) -> Coroutine[Any, Any, dict[str, Any] | AsyncOperationHandle]: ...
    @overload
    def optim_step(self, params: AdamParams, *, wait: Literal[True] = True) -> Coroutine[Any, Any, dict[str, Any]]: ...
    @overload
    def optim_step(self, params: AdamParams, *, wait: Literal[False]) -> Coroutine[Any, Any, AsyncOperationHandle]: ...
    @overload
    def optim_step(
        self, params: AdamParams, *, wait: bool = True
    ) -> Coroutine[Any, Any, dict[str, Any] | AsyncOperationHandle]: ...
    @overload
    def save_weights_for_sampler(
        self, *, name: str | None = None, ttl_seconds: int | None = 3600, wait: Literal[True] = True
    ) -> Coroutine[Any, Any, str]: ...
    @overload
    def save_weights_for_sampler(
        self, *, name: str | None = None, ttl_seconds: int | None = 3600, wait: Literal[False]
    ) -> Coroutine[Any, Any, AsyncOperationHandle]: ...
    @overload
    def save_weights_for_sampler(
        self, *, name: str | None = None, ttl_seconds: int | None = 3600, wait: bool = True
    ) -> Coroutine[Any, Any, str | AsyncOperationHandle]: ...
    @overload
    def save_weights_and_get_sampling_client(
        self, *, name: str | None = None, ttl_seconds: int | None = 3600, wait: Literal[True] = True
    ) -> Coroutine[Any, Any, AsyncSamplingClient]: ...
    @overload
    def save_weights_and_get_sampling_client(
        self, *, name: str | None = None, ttl_seconds: int | None = 3600, wait: Literal[False]
    ) -> Coroutine[Any, Any, AsyncOperationHandle]: ...
    @overload
    def save_weights_and_get_sampling_client(
        self, *, name: str | None = None, ttl_seconds: int | None = 3600, wait: bool = True
    ) -> Coroutine[Any, Any, AsyncSamplingClient | AsyncOperationHandle]: ...
    @overload
    def save_state(
        self,
        *,
        name: str | None = None,
        checkpoint_type: str = "weight",
        ttl_seconds: int | Unset | None = ...,
        wait: Literal[True] = True,
    ) -> Coroutine[Any, Any, Checkpoint]: ...
    @overload
    def save_state(
        self,
        *,
        name: str | None = None,
        checkpoint_type: str = "weight",
        ttl_seconds: int | Unset | None = ...,
        wait: Literal[False],
    ) -> Coroutine[Any, Any, AsyncOperationHandle]: ...
    @overload
    def save_state(
        self,
        *,
        name: str | None = None,
        checkpoint_type: str = "weight",
        ttl_seconds: int | Unset | None = ...,
        wait: bool = True,
    ) -> Coroutine[Any, Any, Checkpoint | AsyncOperationHandle]: ...
    @overload
    def load_state(
        self, path: str | Checkpoint, *, wait: Literal[True] = True
    ) -> Coroutine[Any, Any, dict[str, Any]]: ...
    @overload
    def load_state(
        self, path: str | Checkpoint, *, wait: Literal[False]
    ) -> Coroutine[Any, Any, AsyncOperationHandle]: ...
    @overload
    def load_state(
        self, path: str | Checkpoint, *, wait: bool = True
    ) -> Coroutine[Any, Any, dict[str, Any] | AsyncOperationHandle]: ...
    @overload
    def load_state_with_optimizer(
        self, path: str | Checkpoint, *, wait: Literal[True] = True
    ) -> Coroutine[Any, Any, dict[str, Any]]: ...
    @overload
    def load_state_with_optimizer(
        self, path: str | Checkpoint, *, wait: Literal[False]
    ) -> Coroutine[Any, Any, AsyncOperationHandle]: ...
    @overload
    def load_state_with_optimizer(
        self, path: str | Checkpoint, *, wait: bool = True
    ) -> Coroutine[Any, Any, dict[str, Any] | AsyncOperationHandle]: ...
    def list_checkpoints(self) -> Coroutine[Any, Any, list[Checkpoint]]: ...
    def set_checkpoint_ttl(
        self, path: str | Checkpoint, ttl_seconds: int | None
    ) -> Coroutine[Any, Any, dict[str, Any]]: ...
    @overload
    def export_weights(
        self,
        *,
        checkpoint: str | Checkpoint | None = None,
        merge_adapter: bool = False,
        ttl_seconds: int | None = 604800,
        force: bool = False,
        wait: Literal[True] = True,
    ) -> Coroutine[Any, Any, WeightsArtifact]: ...
    @overload
    def export_weights(
        self,
        *,
        checkpoint: str | Checkpoint | None = None,
        merge_adapter: bool = False,
        ttl_seconds: int | None = 604800,
        force: bool = False,
        wait: Literal[False],
    ) -> Coroutine[Any, Any, WeightsArtifact | AsyncOperationHandle]: ...
    @overload
    def export_weights(
        self,
        *,
        checkpoint: str | Checkpoint | None = None,
        merge_adapter: bool = False,
        ttl_seconds: int | None = 604800,
        force: bool = False,
        wait: bool = True,
    ) -> Coroutine[Any, Any, WeightsArtifact | AsyncOperationHandle]: ...
    @overload
    def deploy_checkpoint(
        self,
        checkpoint: str | Checkpoint,
        *,
        name: str,
        gpu_type: str | None = None,
        replicas: int = 1,
        gpus_per_replica: int | None = None,
        overwrite: bool = False,
        wait: Literal[True] = True,
    ) -> Coroutine[Any, Any, Deployment]: ...
    @overload
    def deploy_checkpoint(
        self,
        checkpoint: str | Checkpoint,
        *,
        name: str,
        gpu_type: str | None = None,
        replicas: int = 1,
        gpus_per_replica: int | None = None,
        overwrite: bool = False,
        wait: Literal[False],
    ) -> Coroutine[Any, Any, AsyncOperationHandle]: ...
    @overload
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
    ) -> Coroutine[Any, Any, Deployment | AsyncOperationHandle]: ...
    def log_metrics(
        self,
        metrics: Mapping[str, float],
        *,
        step: int,
        occurred_at: datetime | None = None,
        labels: Mapping[str, Any] | None = None,
    ) -> Coroutine[Any, Any, None]: ...
    def resolve_sample_ref_lengths(self, refs: Sequence[SampleRef]) -> Coroutine[Any, Any, list[SampleRefLength]]: ...
    def terminate(self, instance_types: list[str] | None = None) -> Coroutine[Any, Any, dict[str, Any]]: ...

class TrainingClient(_clients.TrainingClient):
    @overload
    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: Literal[True] = True,
    ) -> dict[str, Any]: ...
    @overload
    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: Literal[False],
    ) -> OperationHandle: ...
    @overload
    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: bool = True,
    ) -> dict[str, Any] | OperationHandle: ...
    @overload
    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        *,
        loss_fn_config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: Literal[True] = True,
    ) -> dict[str, Any]: ...
    @overload
    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        *,
        loss_fn_config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: Literal[False],
    ) -> OperationHandle: ...
    @overload
    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        *,
        loss_fn_config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        router_replay: Any = None,
        wait: bool = True,
    ) -> dict[str, Any] | OperationHandle: ...
    @overload
    def optim_step(self, params: AdamParams, *, wait: Literal[True] = True) -> dict[str, Any]: ...
    @overload
    def optim_step(self, params: AdamParams, *, wait: Literal[False]) -> OperationHandle: ...
    @overload
    def optim_step(self, params: AdamParams, *, wait: bool = True) -> dict[str, Any] | OperationHandle: ...
    @overload
    def save_weights_for_sampler(
        self, *, name: str | None = None, ttl_seconds: int | None = 3600, wait: Literal[True] = True
    ) -> str: ...
    @overload
    def save_weights_for_sampler(
        self, *, name: str | None = None, ttl_seconds: int | None = 3600, wait: Literal[False]
    ) -> OperationHandle: ...
    @overload
    def save_weights_for_sampler(
        self, *, name: str | None = None, ttl_seconds: int | None = 3600, wait: bool = True
    ) -> str | OperationHandle: ...
    @overload
    def save_weights_and_get_sampling_client(
        self, *, name: str | None = None, ttl_seconds: int | None = 3600, wait: Literal[True] = True
    ) -> SamplingClient: ...
    @overload
    def save_weights_and_get_sampling_client(
        self, *, name: str | None = None, ttl_seconds: int | None = 3600, wait: Literal[False]
    ) -> OperationHandle: ...
    @overload
    def save_weights_and_get_sampling_client(
        self, *, name: str | None = None, ttl_seconds: int | None = 3600, wait: bool = True
    ) -> SamplingClient | OperationHandle: ...
    @overload
    def save_state(
        self,
        *,
        name: str | None = None,
        checkpoint_type: str = "weight",
        ttl_seconds: int | Unset | None = ...,
        wait: Literal[True] = True,
    ) -> Checkpoint: ...
    @overload
    def save_state(
        self,
        *,
        name: str | None = None,
        checkpoint_type: str = "weight",
        ttl_seconds: int | Unset | None = ...,
        wait: Literal[False],
    ) -> OperationHandle: ...
    @overload
    def save_state(
        self,
        *,
        name: str | None = None,
        checkpoint_type: str = "weight",
        ttl_seconds: int | Unset | None = ...,
        wait: bool = True,
    ) -> Checkpoint | OperationHandle: ...
    @overload
    def load_state(self, path: str | Checkpoint, *, wait: Literal[True] = True) -> dict[str, Any]: ...
    @overload
    def load_state(self, path: str | Checkpoint, *, wait: Literal[False]) -> OperationHandle: ...
    @overload
    def load_state(self, path: str | Checkpoint, *, wait: bool = True) -> dict[str, Any] | OperationHandle: ...
    @overload
    def load_state_with_optimizer(self, path: str | Checkpoint, *, wait: Literal[True] = True) -> dict[str, Any]: ...
    @overload
    def load_state_with_optimizer(self, path: str | Checkpoint, *, wait: Literal[False]) -> OperationHandle: ...
    @overload
    def load_state_with_optimizer(
        self, path: str | Checkpoint, *, wait: bool = True
    ) -> dict[str, Any] | OperationHandle: ...
    def list_checkpoints(self) -> list[Checkpoint]: ...
    def set_checkpoint_ttl(self, path: str | Checkpoint, ttl_seconds: int | None) -> dict[str, Any]: ...
    @overload
    def export_weights(
        self,
        *,
        checkpoint: str | Checkpoint | None = None,
        merge_adapter: bool = False,
        ttl_seconds: int | None = 604800,
        force: bool = False,
        wait: Literal[True] = True,
    ) -> WeightsArtifact: ...
    @overload
    def export_weights(
        self,
        *,
        checkpoint: str | Checkpoint | None = None,
        merge_adapter: bool = False,
        ttl_seconds: int | None = 604800,
        force: bool = False,
        wait: Literal[False],
    ) -> WeightsArtifact | OperationHandle: ...
    @overload
    def export_weights(
        self,
        *,
        checkpoint: str | Checkpoint | None = None,
        merge_adapter: bool = False,
        ttl_seconds: int | None = 604800,
        force: bool = False,
        wait: bool = True,
    ) -> WeightsArtifact | OperationHandle: ...
    @overload
    def deploy_checkpoint(
        self,
        checkpoint: str | Checkpoint,
        *,
        name: str,
        gpu_type: str | None = None,
        replicas: int = 1,
        gpus_per_replica: int | None = None,
        overwrite: bool = False,
        wait: Literal[True] = True,
    ) -> Deployment: ...
    @overload
    def deploy_checkpoint(
        self,
        checkpoint: str | Checkpoint,
        *,
        name: str,
        gpu_type: str | None = None,
        replicas: int = 1,
        gpus_per_replica: int | None = None,
        overwrite: bool = False,
        wait: Literal[False],
    ) -> OperationHandle: ...
    @overload
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
    ) -> Deployment | OperationHandle: ...
    def log_metrics(
        self,
        metrics: Mapping[str, float],
        *,
        step: int,
        occurred_at: datetime | None = None,
        labels: Mapping[str, Any] | None = None,
    ) -> None: ...
    def resolve_sample_ref_lengths(self, refs: Sequence[SampleRef]) -> list[SampleRefLength]: ...
    def terminate(self, instance_types: list[str] | None = None) -> dict[str, Any]: ...
