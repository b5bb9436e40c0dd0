"""Clients that sample from fixed weights."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from weaver.client.faces import Awaited, Blocking, Face
from weaver.client.operations import Operation
from weaver.client.sampling import Sampling, sample_body, sampled
from weaver.client.tokenizers import tokenizer_of
from weaver.client.transports.contract import Json
from weaver.compat.tinker.lib import background
from weaver.types import LogprobsParams, ModelInput, PauseMode, SamplingParams


class SamplingMethods(Face):
    """What both sampling clients do. New weights want a new client."""

    def __init__(
        self,
        *,
        service: Any,
        sampling_session_id: str,
        base_model: str | None = None,
        model_path: str | None = None,
        model_id: str | None = None,
        tokenizer_path: str | None = None,
    ) -> None:
        self._connection, self._http = service._connection, service._http
        self._sampling = Sampling(self._connection, sampling_session_id, model_id, model_path)
        self.sampling_session_id = sampling_session_id
        self.base_model = base_model
        self.model_path = model_path
        self.model_id = model_id
        self.tokenizer_path = tokenizer_path

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
    ) -> Any:
        """Draw completions: {"sequences": [{"tokens", "text", "logprobs", "stop_reason"}, ...], "raw_result": ...}.

        With `return_sampling_mask` each sequence has `sampling_masks`: for each token the ids it was drawn among, none
        where that was the whole vocabulary. A handle's result, without `wait`, is what the service answered:
        {"result": {"sequences": ...}}.
        """
        body = sample_body(
            prompt,
            sampling_params or SamplingParams(),
            num_samples,
            include_prompt_logprobs,
            topk_prompt_logprobs,
            return_sampling_mask,
            sampling_mask_transport,
            return_old_logprob,
            return_moe_topk_indices,
        )
        work = self._sampling.sample(body)
        if not wait:
            return self._operation(work, False, is_sample=True)

        async def drawn() -> Json:
            operation: Operation = await work
            return await self._read(await operation.result())

        return self._answer(drawn(), is_sample=True)

    async def _read(self, answer: Json) -> Json:
        """With texts; where the service tells none, its tokenizer is needed."""
        if all(sequence.get("text") is not None for sequence in answer["result"]["sequences"]):
            return sampled(answer, lambda tokens: "")
        self.base_model = self.base_model or await self._sampling.base_model()
        path, base_model = self.tokenizer_path, self.base_model
        tokenizer = await background.in_thread(lambda: tokenizer_of(path, base_model))
        return sampled(answer, lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=False)))

    def compute_logprobs(self, *, prompt: ModelInput, logprobs_params: LogprobsParams | None = None) -> Any:
        """One logprob for each token of the prompt; None for the first, which nothing comes before."""
        params = logprobs_params or LogprobsParams()
        if not isinstance(prompt, ModelInput):
            raise TypeError("prompt must be ModelInput")

        async def found() -> Any:
            result = await self._sampling.logprobs(prompt, params)
            logprobs = result["prompt_logprobs"]
            if not params.return_rollout_token_expert:
                return logprobs
            data = result.get("return_rollout_token_expert_data")
            return {"logprobs": logprobs, "return_rollout_token_expert_data": data}

        return self._answer(found(), is_sample=True)

    def pause_generation(self, *, mode: PauseMode | str = PauseMode.ABORT) -> Any:
        """Stop the engine that samples this model, all of whose weights are trained."""
        return self._answer(self._sampling.pause(mode))

    def continue_generation(self) -> Any:
        """Let the engine go on."""
        return self._answer(self._sampling.go_on())


class SamplingClient(SamplingMethods, Blocking):
    """Samples from fixed weights; methods return when they are done."""

    @contextmanager
    def paused(self, *, mode: PauseMode | str = PauseMode.ABORT) -> Iterator[Json]:
        """Stop the engine for as long as the block takes, whatever becomes of it."""
        answer = self.pause_generation(mode=mode)
        try:
            yield answer
        finally:
            self.continue_generation()


class AsyncSamplingClient(SamplingMethods, Awaited):
    """Samples from fixed weights; methods are to be awaited."""

    @asynccontextmanager
    async def paused(self, *, mode: PauseMode | str = PauseMode.ABORT) -> AsyncIterator[Json]:
        """Stop the engine for as long as the block takes, whatever becomes of it."""
        answer = await self.pause_generation(mode=mode)
        try:
            yield answer
        finally:
            await self.continue_generation()
