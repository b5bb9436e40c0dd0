"""Written by tests/client/stubs.py."""

from collections.abc import Coroutine
from typing import Any, Literal, overload

import weaver.client.sampling_client as _clients
from weaver.operations import AsyncOperationHandle, OperationHandle
from weaver.types import LogprobsParams, ModelInput, PauseMode, SamplingParams

__all__ = ["AsyncSamplingClient", "SamplingClient"]

class AsyncSamplingClient(_clients.AsyncSamplingClient):
    @overload
    def sample(
        self,
        *,
        prompt: ModelInput,
        sampling_params: SamplingParams | None = None,
        num_samples: int = 1,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        return_sampling_mask: bool = False,
        sampling_mask_transport: str = "inline",
        return_old_logprob: bool = False,
        return_moe_topk_indices: bool = False,
        wait: Literal[True] = True,
    ) -> Coroutine[Any, Any, dict[str, Any]]: ...
    @overload
    def sample(
        self,
        *,
        prompt: ModelInput,
        sampling_params: SamplingParams | None = None,
        num_samples: int = 1,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        return_sampling_mask: bool = False,
        sampling_mask_transport: str = "inline",
        return_old_logprob: bool = False,
        return_moe_topk_indices: bool = False,
        wait: Literal[False],
    ) -> Coroutine[Any, Any, AsyncOperationHandle]: ...
    @overload
    def sample(
        self,
        *,
        prompt: ModelInput,
        sampling_params: SamplingParams | None = None,
        num_samples: int = 1,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        return_sampling_mask: bool = False,
        sampling_mask_transport: str = "inline",
        return_old_logprob: bool = False,
        return_moe_topk_indices: bool = False,
        wait: bool = True,
    ) -> Coroutine[Any, Any, dict[str, Any] | AsyncOperationHandle]: ...
    @overload
    def compute_logprobs(
        self, *, prompt: ModelInput, logprobs_params: None = None
    ) -> Coroutine[Any, Any, list[float | None]]: ...
    @overload
    def compute_logprobs(
        self, *, prompt: ModelInput, logprobs_params: LogprobsParams | None = None
    ) -> Coroutine[Any, Any, list[float | None] | dict[str, Any]]: ...
    def pause_generation(self, *, mode: PauseMode | str = PauseMode.ABORT) -> Coroutine[Any, Any, dict[str, Any]]: ...
    def continue_generation(self) -> Coroutine[Any, Any, dict[str, Any]]: ...

class SamplingClient(_clients.SamplingClient):
    @overload
    def sample(
        self,
        *,
        prompt: ModelInput,
        sampling_params: SamplingParams | None = None,
        num_samples: int = 1,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        return_sampling_mask: bool = False,
        sampling_mask_transport: str = "inline",
        return_old_logprob: bool = False,
        return_moe_topk_indices: bool = False,
        wait: Literal[True] = True,
    ) -> dict[str, Any]: ...
    @overload
    def sample(
        self,
        *,
        prompt: ModelInput,
        sampling_params: SamplingParams | None = None,
        num_samples: int = 1,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        return_sampling_mask: bool = False,
        sampling_mask_transport: str = "inline",
        return_old_logprob: bool = False,
        return_moe_topk_indices: bool = False,
        wait: Literal[False],
    ) -> OperationHandle: ...
    @overload
    def sample(
        self,
        *,
        prompt: ModelInput,
        sampling_params: SamplingParams | None = None,
        num_samples: int = 1,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        return_sampling_mask: bool = False,
        sampling_mask_transport: str = "inline",
        return_old_logprob: bool = False,
        return_moe_topk_indices: bool = False,
        wait: bool = True,
    ) -> dict[str, Any] | OperationHandle: ...
    @overload
    def compute_logprobs(self, *, prompt: ModelInput, logprobs_params: None = None) -> list[float | None]: ...
    @overload
    def compute_logprobs(
        self, *, prompt: ModelInput, logprobs_params: LogprobsParams | None = None
    ) -> list[float | None] | dict[str, Any]: ...
    def pause_generation(self, *, mode: PauseMode | str = PauseMode.ABORT) -> dict[str, Any]: ...
    def continue_generation(self) -> dict[str, Any]: ...
