"""Where everything begins: a session, and the clients that belong to it."""

import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

from weaver import config
from weaver.compat.tinker import console, types
from weaver.compat.tinker.lib.deprecation import old, twin_of
from weaver.compat.tinker.lib.public_interfaces.api_future import (
    APIFuture,
    AwaitableConcurrentFuture,
    tell_of_blocking,
)
from weaver.compat.tinker.lib.public_interfaces.backcompat_sampling_client_future import (
    BackcompatSamplingClientFuture,
)
from weaver.compat.tinker.lib.public_interfaces.backcompat_training_client_future import (
    BackcompatTrainingClientFuture,
)
from weaver.compat.tinker.lib.public_interfaces.custom_loss import (
    LossHandle,
    PerDatumLossFn,
    encode_graph,
    trace_loss,
)
from weaver.compat.tinker.lib.public_interfaces.rest_client import RestClient
from weaver.compat.tinker.lib.public_interfaces.sampling_client import SamplingClient
from weaver.compat.tinker.lib.public_interfaces.training_client import TrainingClient
from weaver.compat.tinker.lib.retry_handler import RetryConfig
from weaver.compat.tinker.lib.session import Session
from weaver.compat.tinker.transports import choice
from weaver.compat.tinker.transports.contract import Call, Json
from weaver.compat.tinker.version import __version__

_INSTEAD = "RestClient() has this, and needs no ServiceClient"


class ServiceClient:
    """Trains and samples in this process, or with `base_url` (else TINKER_BASE_URL) on a server. As a context manager
    it finishes its session at the end of the block."""

    def __init__(
        self,
        user_metadata: dict[str, str] | None = None,
        project_id: str | None = None,
        *,
        display_name: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        default_headers_overrides: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            ignored = ", ".join(sorted(kwargs))
            warnings.warn(f"ServiceClient does not read these arguments: {ignored}", FutureWarning, stacklevel=2)
        self._project_id = project_id or config.client_setting("TINKER_PROJECT_ID")
        self._details = {
            "tags": config.client_tags(),
            "user_metadata": user_metadata or {},
            "sdk_version": __version__,
            "project_id": self._project_id,
            "display_name": display_name,
        }
        self._address = (base_url, api_key, dict(default_headers_overrides or {}))
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._rest: Session | None = None
        self._closed = False

    def __enter__(self) -> Self:
        self._refuse_closed()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.close("success").result()
        else:
            self.close("errored" if issubclass(exc_type, Exception) else "interrupted").result()

    @property
    def holder(self) -> Session:
        """What the clients of this one share."""
        with self._lock:
            self._refuse_closed()
            if self._session is None:
                details = {name: value for name, value in self._details.items() if value is not None}
                self._session = Session(choice.transport(*self._address), details)
            return self._session

    def get_console_url(self) -> str:
        """Where the vendor's web site would show this session; a service of one's own has no such site."""
        session_id = None if self._session is None else self._session.known_session_id
        return console.session_url(session_id or "").rstrip("/")

    @old(f"ServiceClient.get_server_capabilities() is deprecated: {_INSTEAD}")
    def get_server_capabilities(self) -> types.GetServerCapabilitiesResponse:
        asked = self._rest_client().get_server_capabilities()
        tell_of_blocking(asked, "ServiceClient.get_server_capabilities")
        return asked.result()

    @old(f"ServiceClient.get_server_capabilities_async() is deprecated: {_INSTEAD}")
    async def get_server_capabilities_async(self) -> types.GetServerCapabilitiesResponse:
        return await self._rest_client().get_server_capabilities()

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
        optimizer: types.OptimizerConfig | None = None,
    ) -> BackcompatTrainingClientFuture:
        """A new low-rank adapter on a base model. The same `seed` makes the same one."""
        assert train_mlp or train_attn or train_unembed, "train_mlp, train_attn and train_unembed are all False"
        lora = types.LoraConfig(
            rank=rank, seed=seed, train_mlp=train_mlp, train_attn=train_attn, train_unembed=train_unembed
        )
        body = {
            "base_model": base_model,
            "lora_config": lora.model_dump(exclude_none=True),
            "user_metadata": user_metadata,
            "optimizer_config": (optimizer or types.AdamOptimizerConfig()).model_dump(exclude_none=True),
        }
        return self._create("/create_model", body)

    @twin_of("ServiceClient.create_lora_training_client")
    async def create_lora_training_client_async(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
        optimizer: types.OptimizerConfig | None = None,
    ) -> TrainingClient:
        return await self.create_lora_training_client(
            base_model, rank, seed, train_mlp, train_attn, train_unembed, user_metadata, optimizer
        )

    def copy_weights(
        self, path: str, *, ttl_seconds: int | None = None, weights_access_token: str | None = None
    ) -> APIFuture[str]:
        """Copy a checkpoint into this client's project; the copy's path."""
        return self._rest_client().copy_weights(
            path,
            destination_project_id=self._project_id,
            ttl_seconds=ttl_seconds,
            weights_access_token=weights_access_token,
        )

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
        optimizer: types.OptimizerConfig | None = None,
    ) -> BackcompatTrainingClientFuture:
        """A new model with the weights that `save_state` kept, and an optimizer that knows nothing yet."""
        body = {
            "path": path,
            "base_model": base_model,
            "user_metadata": user_metadata,
            "weights_access_token": weights_access_token,
            "optimizer": False,
            "optimizer_config": None if optimizer is None else optimizer.model_dump(exclude_none=True),
        }
        return self._create("/load_weights", body)

    @twin_of("ServiceClient.create_training_client_from_state")
    async def create_training_client_from_state_async(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
        optimizer: types.OptimizerConfig | None = None,
    ) -> TrainingClient:
        return await self.create_training_client_from_state(
            path, base_model, user_metadata, weights_access_token, optimizer
        )

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> BackcompatTrainingClientFuture:
        """Go on where `save_state` was called: weights, and what the optimizer knew."""
        body = {
            "path": path,
            "base_model": base_model,
            "user_metadata": user_metadata,
            "weights_access_token": weights_access_token,
            "optimizer": True,
        }
        return self._create("/load_weights", body)

    @twin_of("ServiceClient.create_training_client_from_state_with_optimizer")
    async def create_training_client_from_state_with_optimizer_async(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> TrainingClient:
        return await self.create_training_client_from_state_with_optimizer(
            path, base_model, user_metadata, weights_access_token
        )

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
    ) -> BackcompatSamplingClientFuture:
        """Sample from what `save_weights_for_sampler` kept, or from a base model as it is."""
        if model_path is None and base_model is None:
            raise ValueError("Either model_path or base_model must be provided")
        return BackcompatSamplingClientFuture(
            SamplingClient.create(
                self.holder,
                model_path=model_path,
                base_model=base_model,
                retry_config=retry_config,
                record_stability_info=record_stability_info,
            )
        )

    def create_custom_loss(
        self, fn: PerDatumLossFn, input_ranks: Mapping[str, types.CustomLossInputRank]
    ) -> APIFuture[LossHandle]:
        """Trace a loss, for the service to evaluate. `input_ranks` has the rank of every parameter: 0, 1 or 2."""
        holder = self.holder
        handle = trace_loss(fn, input_ranks, holder.get_session_id())
        number = holder.next_loss()

        async def created() -> LossHandle:
            if not holder.transport.traces_losses:
                return handle
            body = {
                "session_id": handle.session_id,
                "custom_loss_seq_id": number,
                "name": handle.name,
                "inputs": [one.model_dump() for one in handle.inputs],
                "graph": encode_graph(handle).model_dump(),
            }
            promise = await holder.transport.submit(Call("POST", "/create_custom_loss", body=body))
            made = types.CreateCustomLossResponse.model_validate(await holder.transport.result(promise))
            return replace(handle, loss_id=made.loss_id)

        return holder.run(created())

    @twin_of("ServiceClient.create_sampling_client")
    async def create_sampling_client_async(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
    ) -> SamplingClient:
        return await self.create_sampling_client(model_path, base_model, retry_config, record_stability_info)

    @old(f"ServiceClient.create_rest_client() is deprecated: {_INSTEAD}")
    def create_rest_client(self) -> RestClient:
        return self._rest_client()

    def close(
        self, status: Literal["success", "errored", "interrupted"], detail: str | None = None
    ) -> AwaitableConcurrentFuture[None]:
        """Finish the session: what was asked for still happens, and nothing more is taken. Again does nothing."""
        with self._lock:
            first, self._closed = not self._closed, True
        if not first or self._session is None:
            if self._rest is not None:
                self._rest.closed = True
            return _nothing()
        if self._rest is not None:
            self._rest.closed = True
        return self._session.run(self._session.close(status, detail))

    def get_telemetry(self) -> None:
        """Nothing is reported to anybody."""

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RuntimeError("ServiceClient is closed")

    def _rest_client(self) -> RestClient:
        with self._lock:
            self._refuse_closed()
            if self._rest is None:
                self._rest = Session(choice.transport(*self._address))
            return RestClient(self._rest)

    def _create(self, endpoint: str, body: Json) -> BackcompatTrainingClientFuture:
        holder = self.holder
        number = holder.next_model()
        given = {name: value for name, value in body.items() if value is not None}

        async def created() -> TrainingClient:
            session_id = await holder.ready()
            asked = {"session_id": session_id, "model_seq_id": number, **given}
            promise = await holder.transport.submit(Call("POST", endpoint, body=asked))
            answer = await holder.transport.result(promise)
            model_id = str(answer.get("model_id") or f"{session_id}:train:{number}")
            info = await holder.call(Call("POST", "/get_info", body={"model_id": model_id}))
            return TrainingClient(holder, number, model_id, info=types.GetInfoResponse.model_validate(info))

        return BackcompatTrainingClientFuture(holder.run(created()))


def _nothing() -> AwaitableConcurrentFuture[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return AwaitableConcurrentFuture(done)
