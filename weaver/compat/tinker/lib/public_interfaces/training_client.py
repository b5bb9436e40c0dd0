"""Training one model."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from weaver.compat.tinker import console, types
from weaver.compat.tinker.lib import tokenizers
from weaver.compat.tinker.lib.client_side_loss import CustomLossFnV1, check_loss_type_input, forward_data
from weaver.compat.tinker.lib.deprecation import old, twin_of
from weaver.compat.tinker.lib.operations import Operations
from weaver.compat.tinker.lib.public_interfaces.api_future import APIFuture
from weaver.compat.tinker.lib.public_interfaces.backcompat_sampling_client_future import (
    BackcompatSamplingClientFuture,
)
from weaver.compat.tinker.lib.public_interfaces.custom_loss import LossHandle, check_loss_inputs
from weaver.compat.tinker.lib.public_interfaces.sampling_client import SamplingClient
from weaver.compat.tinker.lib.retry_handler import RetryConfig
from weaver.compat.tinker.lib.session import Session
from weaver.compat.tinker.transports.contract import Json, Pass
from weaver.compat.tinker.types.optimizer import OptimParamsBase

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizer

_LOAD = "load_state changes a client in place; use ServiceClient.create_training_client_from_state(...) instead"


class TrainingClient:
    """Operations on one model. They happen in the order in which the methods are called, whatever thread calls them,
    and each method returns at once: submit what follows before waiting for results."""

    def __init__(
        self, holder: Session, model_seq_id: int, model_id: types.ModelID, *, info: types.GetInfoResponse
    ) -> None:
        self.holder = holder
        self.model_id = model_id
        self._info = info
        self._operations = Operations(holder, str(model_id))

    def get_console_url(self) -> str:
        """Where the vendor's web site would show this run; a service of one's own has no such site."""
        return console.training_run_url(self.model_id)

    def forward(
        self,
        data: list[types.Datum],
        loss_fn: types.LossFnType,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Compute the loss of every datum and change nothing."""
        return self._operations.run_pass(Pass(data, loss_fn, loss_fn_config or {}, forward_only=True))

    @twin_of("TrainingClient.forward")
    async def forward_async(
        self,
        data: list[types.Datum],
        loss_fn: types.LossFnType,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]:
        return self.forward(data, loss_fn, loss_fn_config)

    def forward_backward(
        self,
        data: list[types.Datum],
        loss_fn: types.LossFnType,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Compute the loss of every datum, summed, and add its gradient to what has accumulated since the last step."""
        return self._operations.run_pass(Pass(data, loss_fn, loss_fn_config or {}, forward_only=False))

    @twin_of("TrainingClient.forward_backward")
    async def forward_backward_async(
        self,
        data: list[types.Datum],
        loss_fn: types.LossFnType,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]:
        return self.forward_backward(data, loss_fn, loss_fn_config)

    def forward_backward_custom(
        self,
        data: list[types.Datum],
        loss_fn: CustomLossFnV1 | LossHandle,
        *,
        loss_type_input: Literal["logprobs"] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """`forward_backward` with a loss of one's own: a function of all data and their logprobs, which runs here
        between two passes, or one that `create_custom_loss` made, which runs in the service.

        When the function fails, this and every later operation of the client fails.
        """
        check_loss_type_input(loss_type_input)
        if isinstance(loss_fn, LossHandle):
            self._check_handle(loss_fn)
            check_loss_inputs(loss_fn, data)
            if loss_fn.loss_id is not None:
                return self.forward_backward(data, "custom", {"loss_id": loss_fn.loss_id})
        asked = Pass(forward_data(data), "cross_entropy", {}, forward_only=True)
        return self._operations.run_custom(list(data), loss_fn, asked)

    @twin_of("TrainingClient.forward_backward_custom")
    async def forward_backward_custom_async(
        self,
        data: list[types.Datum],
        loss_fn: CustomLossFnV1 | LossHandle,
        *,
        loss_type_input: Literal["logprobs"] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]:
        return self.forward_backward_custom(data, loss_fn, loss_type_input=loss_type_input)

    def optim_step(
        self, optim_params: types.OptimParams | None = None, *, adam_params: types.AdamParams | None = None
    ) -> APIFuture[types.OptimStepResponse]:
        """Apply the accumulated gradients once, with these parameters, and clear them."""
        if optim_params is not None and adam_params is not None:
            raise ValueError("give optim_params or adam_params, its older name, not both")
        params = adam_params if optim_params is None else optim_params
        if isinstance(params, types.AdamParams):
            body: Json = {"adam_params": params.model_dump()}
        elif isinstance(params, OptimParamsBase):
            body = {"optimizer_params": params.model_dump()}
        else:
            raise TypeError(f"optim_params is a {type(params).__name__}; give AdamParams or DimuonParams")
        return self._operations.run("/optim_step", body, types.OptimStepResponse.model_validate)

    @twin_of("TrainingClient.optim_step")
    async def optim_step_async(
        self, optim_params: types.OptimParams | None = None, *, adam_params: types.AdamParams | None = None
    ) -> APIFuture[types.OptimStepResponse]:
        return self.optim_step(optim_params, adam_params=adam_params)

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[types.SaveWeightsResponse]:
        """Keep weights and optimizer state, to train on from them later."""
        body = {"path": name, "ttl_seconds": ttl_seconds, "overwrite": overwrite, "user_metadata": user_metadata}
        return self._operations.run("/save_weights", body, types.SaveWeightsResponse.model_validate)

    @twin_of("TrainingClient.save_state")
    async def save_state_async(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[types.SaveWeightsResponse]:
        return self.save_state(name, ttl_seconds=ttl_seconds, overwrite=overwrite, user_metadata=user_metadata)

    @old(_LOAD)
    def load_state(self, path: str, weights_access_token: str | None = None) -> APIFuture[types.LoadWeightsResponse]:
        """Replace the weights, and forget what the optimizer knows."""
        return self._load(path, weights_access_token, optimizer=False)

    @old(_LOAD)
    async def load_state_async(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[types.LoadWeightsResponse]:
        return self._load(path, weights_access_token, optimizer=False)

    @old(_LOAD)
    def load_state_with_optimizer(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[types.LoadWeightsResponse]:
        """Replace the weights and what the optimizer knows."""
        return self._load(path, weights_access_token, optimizer=True)

    @old(_LOAD)
    async def load_state_with_optimizer_async(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[types.LoadWeightsResponse]:
        return self._load(path, weights_access_token, optimizer=True)

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None, user_metadata: dict[str, str] | None = None
    ) -> APIFuture[types.SaveWeightsForSamplerResponse]:
        """Keep the weights of this moment for sampling, under a path."""
        body = {"path": name, "kind": "snapshot", "ttl_seconds": ttl_seconds, "user_metadata": user_metadata}
        parse = types.SaveWeightsForSamplerResponse.model_validate
        return self._operations.run("/save_weights_for_sampler", body, parse)

    @twin_of("TrainingClient.save_weights_for_sampler")
    async def save_weights_for_sampler_async(
        self, name: str, ttl_seconds: int | None = None, user_metadata: dict[str, str] | None = None
    ) -> APIFuture[types.SaveWeightsForSamplerResponse]:
        return self.save_weights_for_sampler(name, ttl_seconds=ttl_seconds, user_metadata=user_metadata)

    def save_weights_external(
        self, name: str, ttl_seconds: int | None = None, age_encryption_recipients: list[str] | None = None
    ) -> APIFuture[types.SaveWeightsExternalResponse]:
        """Keep the weights in PEFT's format, for use elsewhere."""
        recipients = age_encryption_recipients
        body = {"path": name, "ttl_seconds": ttl_seconds, "age_encryption_recipients": recipients}
        parse = types.SaveWeightsExternalResponse.model_validate
        return self._operations.run("/save_weights_external", body, parse)

    @twin_of("TrainingClient.save_weights_external")
    async def save_weights_external_async(
        self, name: str, ttl_seconds: int | None = None, age_encryption_recipients: list[str] | None = None
    ) -> APIFuture[types.SaveWeightsExternalResponse]:
        recipients = age_encryption_recipients
        return self.save_weights_external(name, ttl_seconds=ttl_seconds, age_encryption_recipients=recipients)

    def get_info(self) -> types.GetInfoResponse:
        """What the model was made with; asked for once, when the client was created."""
        return self._info

    @twin_of("TrainingClient.get_info")
    async def get_info_async(self) -> types.GetInfoResponse:
        return self._info

    def get_tokenizer(self) -> "PreTrainedTokenizer":
        """The tokenizer that belongs to the base model."""
        data = self._info.model_data
        assert data.model_name is not None
        return tokenizers.load(data.tokenizer_id or data.model_name)

    def create_sampling_client(
        self, model_path: str, retry_config: RetryConfig | None = None, record_stability_info: bool = False
    ) -> BackcompatSamplingClientFuture:
        """A client that samples from what `save_weights_for_sampler` kept."""
        return BackcompatSamplingClientFuture(
            SamplingClient.create(
                self.holder,
                model_path=model_path,
                retry_config=retry_config,
                record_stability_info=record_stability_info,
            )
        )

    @twin_of("TrainingClient.create_sampling_client")
    async def create_sampling_client_async(
        self, model_path: str, retry_config: RetryConfig | None = None, record_stability_info: bool = False
    ) -> SamplingClient:
        return await self.create_sampling_client(model_path, retry_config, record_stability_info)

    def save_weights_and_get_sampling_client(
        self,
        name: str | None = None,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
        kind: types.SamplingClientKind = "snapshot",
    ) -> BackcompatSamplingClientFuture:
        """A client that samples from the weights of this moment; with `kind` "inflight" those of later saves too.

        `name` is not used any more: a snapshot that shall be kept has `save_weights_for_sampler`.
        """
        if name is not None:
            warnings.warn(
                "the name of save_weights_and_get_sampling_client has no effect and will go: leave it out, or use "
                "save_weights_for_sampler and create_sampling_client for a snapshot that shall be kept",
                DeprecationWarning,
                stacklevel=2,
            )
        number = self._operations.reserve()
        return BackcompatSamplingClientFuture(
            self.holder.run(self._save_and_sample(number, kind, retry_config, record_stability_info))
        )

    @twin_of("TrainingClient.save_weights_and_get_sampling_client")
    async def save_weights_and_get_sampling_client_async(
        self,
        name: str | None = None,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
        kind: types.SamplingClientKind = "snapshot",
    ) -> SamplingClient:
        return await self.save_weights_and_get_sampling_client(name, retry_config, record_stability_info, kind)

    def get_telemetry(self) -> None:
        """Nothing is reported to anybody."""

    def _load(
        self, path: str, weights_access_token: str | None, *, optimizer: bool
    ) -> APIFuture[types.LoadWeightsResponse]:
        body = {"path": path, "optimizer": optimizer, "weights_access_token": weights_access_token}
        return self._operations.run("/load_weights", body, types.LoadWeightsResponse.model_validate)

    def _check_handle(self, handle: LossHandle) -> None:
        session_id = self.holder.get_session_id()
        if handle.session_id != session_id:
            raise ValueError(
                f"the loss {handle.name!r} belongs to the session {handle.session_id}, this client to {session_id}: "
                "create it with the ServiceClient that this client comes from"
            )

    async def _save_and_sample(
        self, number: int, kind: str, retry_config: RetryConfig | None, record_stability_info: bool
    ) -> SamplingClient:
        body = {"sampling_session_seq_id": self.holder.next_sampler(), "kind": kind}
        saved: Json = await self._operations.in_turn("/save_weights_for_sampler", body, dict, number)
        assert self._info.model_data.model_name is not None
        return SamplingClient(
            self.holder,
            sampling_session_id=saved["sampling_session_id"],
            base_model=self._info.model_data.model_name,
            retry_config=retry_config,
            record_stability_info=record_stability_info,
        )
