"""Sampling from one set of weights."""

import base64
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from weaver.compat.tinker import types
from weaver.compat.tinker.lib import samples, tokenizers
from weaver.compat.tinker.lib.deprecation import twin_of
from weaver.compat.tinker.lib.public_interfaces.api_future import (
    APIFuture,
    AwaitableConcurrentFuture,
    SampleFuture,
)
from weaver.compat.tinker.lib.retry_handler import RetryConfig
from weaver.compat.tinker.lib.session import Session
from weaver.compat.tinker.transports import choice
from weaver.compat.tinker.transports.contract import Call, Json, SampleAsk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizer


@dataclass(frozen=True)
class SamplerState:
    """What another process needs to sample from the same weights."""

    session_id: str
    sampling_session_id: str
    where: Json
    base_model: str
    record_stability_info: bool = False


class SamplingClient:
    """Draws continuations, any number at once. A client can be pickled: another process then samples from the same."""

    def __init__(
        self,
        holder: Session,
        *,
        sampling_session_id: str,
        base_model: str,
        shadow: bool = False,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
    ) -> None:
        self.holder = holder
        self._sampling_session_id = sampling_session_id
        self._base_model = base_model
        self._record_stability_info = record_stability_info
        self._numbers = samples.Numbers(holder, sampling_session_id, is_clone=shadow)
        self._retries = samples.Retries(retry_config or RetryConfig())

    @staticmethod
    def create(
        holder: Session,
        *,
        model_path: str | None = None,
        base_model: str | None = None,
        sampling_session_id: str | None = None,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
    ) -> "AwaitableConcurrentFuture[SamplingClient]":
        """Open a sampling session, unless there is one already, and ask what it samples from."""

        async def created() -> SamplingClient:
            sampler_id, name = sampling_session_id, base_model
            if sampler_id is None:
                sampler_id = await _open_sampler(holder, model_path, base_model)
            if name is None:
                call = Call("GET", "/samplers/{sampler}", {"sampler": sampler_id})
                name = types.GetSamplerResponse.model_validate(await holder.call(call)).base_model
            return SamplingClient(
                holder,
                sampling_session_id=sampler_id,
                base_model=name,
                retry_config=retry_config,
                record_stability_info=record_stability_info,
            )

        return holder.run(created())

    def sample(
        self,
        prompt: types.ModelInput,
        num_samples: int,
        sampling_params: types.SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: types.TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> APIFuture[types.SampleResponse]:
        """Draw `num_samples` continuations of the prompt, and tell what else is asked about the prompt."""
        ask = SampleAsk(
            prompt,
            num_samples,
            sampling_params,
            include_prompt_logprobs,
            topk_prompt_logprobs,
            topk_sample_logprobs,
            target_prompt_logprobs,
            prompt_alt_tokens_k,
            prompt_logprobs_last_n,
            self._record_stability_info,
        )
        samples.check(ask)
        return SampleFuture(self.holder.run(self._sample(ask), is_sample=True).future())

    @twin_of("SamplingClient.sample")
    async def sample_async(
        self,
        prompt: types.ModelInput,
        num_samples: int,
        sampling_params: types.SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: types.TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> types.SampleResponse:
        return await self.sample(
            prompt,
            num_samples,
            sampling_params,
            include_prompt_logprobs,
            topk_prompt_logprobs,
            topk_sample_logprobs,
            target_prompt_logprobs,
            prompt_alt_tokens_k,
            prompt_logprobs_last_n,
        )

    def compute_logprobs(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> APIFuture[list[float | None]]:
        """The logprob of each token of the prompt; None for the first, which nothing predicts."""
        ask = SampleAsk(
            prompt,
            1,
            types.SamplingParams(max_tokens=1),
            prompt_logprobs=True,
            prompt_logprobs_last_n=prompt_logprobs_last_n,
            record_stability_info=self._record_stability_info,
        )
        samples.check(ask)

        async def computed() -> list[float | None]:
            logprobs = (await self._sample(ask)).prompt_logprobs
            assert logprobs is not None
            return logprobs

        return SampleFuture(self.holder.run(computed(), is_sample=True).future())

    @twin_of("SamplingClient.compute_logprobs")
    async def compute_logprobs_async(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> list[float | None]:
        return await self.compute_logprobs(prompt, prompt_logprobs_last_n)

    def get_tokenizer(self) -> "PreTrainedTokenizer":
        """The tokenizer that belongs to the base model."""
        location = self.holder.run(self.holder.transport.tokenizer(self._base_model)).result()
        return tokenizers.load(location or tokenizers.hub_name(self._base_model))

    def get_base_model(self) -> str:
        """The name of the base model."""
        return self._base_model

    @twin_of("SamplingClient.get_base_model")
    async def get_base_model_async(self) -> str:
        return self._base_model

    def get_telemetry(self) -> None:
        """Nothing is reported to anybody."""

    def on_queue_state_change(self, queue_state: Any, queue_state_reason: str | None) -> None:
        """Called by the vendor's SDK when a sampler is paused; here transports log it themselves."""

    def get_sampler_handle(self) -> str:
        """Text from which another process makes a client of the same sampler. It holds no credentials."""
        payload = json.dumps(self._state().__dict__, separators=(",", ":"))
        return base64.urlsafe_b64encode(payload.encode()).decode()

    @staticmethod
    def from_sampler_handle(handle: str, *, api_key: str | None = None) -> "SamplingClient":
        """A client of the sampler that the handle tells of, with this process's own key or the given one."""
        return _restore(SamplerState(**json.loads(base64.urlsafe_b64decode(handle))), api_key)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._state(), choice.key_of(self.holder.transport))

    def _state(self) -> SamplerState:
        return SamplerState(
            self.holder.get_session_id(),
            self._sampling_session_id,
            self.holder.transport.where,
            self._base_model,
            self._record_stability_info,
        )

    async def _sample(self, ask: SampleAsk) -> types.SampleResponse:
        transport = self.holder.transport

        async def once() -> types.SampleResponse:
            number = await self._numbers.next()
            promise = await transport.sample(self._sampling_session_id, number, ask)
            response = await transport.sample_result(promise)
            return replace(response, sequences=samples.named(response.sequences, promise.sequence_ids))

        return await self._retries.run(once)


async def _open_sampler(holder: Session, model_path: str | None, base_model: str | None) -> str:
    body = {
        "session_id": await holder.ready(),
        "sampling_session_seq_id": holder.next_sampler(),
        "model_path": model_path,
        "base_model": base_model,
    }
    given = {name: value for name, value in body.items() if value is not None}
    answer = await holder.call(Call("POST", "/create_sampling_session", body=given))
    return str(answer["sampling_session_id"])


def _restore(state: SamplerState, api_key: str | None) -> SamplingClient:
    holder = Session(choice.transport_at(state.where, api_key), session_id=state.session_id)
    return SamplingClient(
        holder,
        sampling_session_id=state.sampling_session_id,
        base_model=state.base_model,
        shadow=True,
        record_stability_info=state.record_stability_info,
    )
