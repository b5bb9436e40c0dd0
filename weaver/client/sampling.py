"""The requests of a sampling session, and what its users read of the answers."""

from collections.abc import Callable
from typing import Final

from weaver.client.connection import Connection
from weaver.client.operations import Operation
from weaver.client.references import model_of
from weaver.client.transports.contract import Json
from weaver.types import LogprobsParams, ModelInput, PauseMode, SamplingParams, ScoreCenteringConfig, coerce_pause_mode

MOST_HEAD: Final = 128
TRANSPORTS: Final = ("inline", "ref")
FULL_FT: Final = "full_ft"
_ONLY_FULL: Final = "generation control is only supported for full fine-tuning models"

Decode = Callable[[list[int]], str]


class Sampling:
    """Requests about one sampling session."""

    def __init__(self, connection: Connection, session_id: str, model_id: str | None, model_path: str | None) -> None:
        self.connection, self.session_id = connection, session_id
        self._model_id = model_id or model_of(model_path)
        self._is_full = False

    async def sample(self, body: Json) -> Operation:
        return await self._accepted("samples", body)

    async def logprobs(self, prompt: ModelInput, params: LogprobsParams) -> Json:
        operation = await self._accepted("logprobs", {"prompt": prompt.to_payload(), **params.to_payload()})
        answer: Json = (await operation.result())["result"]
        return answer

    async def _accepted(self, route: str, body: Json) -> Operation:
        path = f"/sampling-sessions/{self.session_id}/{route}"
        return Operation(self.connection, await self.connection.request("POST", path, body=body, attempts=1))

    async def pause(self, mode: PauseMode | str) -> Json:
        body = {"mode": coerce_pause_mode(mode)}
        await self._check_full()
        return await self._control("pause-generation", body)

    async def go_on(self) -> Json:
        await self._check_full()
        return await self._control("continue-generation", None)

    async def _control(self, route: str, body: Json | None) -> Json:
        answer: Json = await self.connection.request("POST", f"/sampling-sessions/{self.session_id}/{route}", body=body)
        return answer

    async def _check_full(self) -> None:
        """Models trained with adapters share an engine, so none of them may stop it. Raises ValueError."""
        if self._is_full:
            return
        if self._model_id is None:
            raise ValueError(f"{_ONLY_FULL}, and this sampling client samples no model of its own")
        mode = (await self.connection.request("GET", f"/models/{self._model_id}")).get("training_mode")
        if mode != FULL_FT:
            raise ValueError(
                f"{_ONLY_FULL}, but model {self._model_id} has training_mode={mode!r}: "
                "models trained with adapters share one engine"
            )
        self._is_full = True

    async def base_model(self) -> str:
        answer = await self.connection.request("GET", f"/sampling-sessions/{self.session_id}")
        return str(answer["base_model"])


def sample_body(
    prompt: ModelInput,
    params: SamplingParams,
    num_samples: int,
    prompt_logprobs: bool,
    topk_prompt_logprobs: int,
    masks: bool,
    mask_transport: str,
    old_logprobs: bool,
    experts: bool,
) -> Json:
    """Raises ValueError and TypeError for what does not go together."""
    if not isinstance(prompt, ModelInput):
        raise TypeError("prompt must be ModelInput")
    if mask_transport not in TRANSPORTS:
        raise ValueError("sampling_mask_transport must be inline or ref")
    if mask_transport == "ref" and not masks:
        raise ValueError("sampling mask refs require return_sampling_mask=True")
    sampling = params.to_payload()
    body: Json = {
        "prompt": prompt.to_payload(),
        "sampling_params": sampling,
        "num_samples": num_samples,
        "prompt_logprobs": prompt_logprobs,
        "topk_prompt_logprobs": topk_prompt_logprobs,
    }
    if sampling.pop("score_centering", None) is not None and params.score_centering is not None:
        body["score_centering"] = _centering(params.score_centering)
        if (params.temperature, params.top_p, params.top_k) != (1, 1, -1):
            raise ValueError("score_centering requires temperature=1, top_p=1, top_k=-1")
        if masks or old_logprobs or experts:
            raise ValueError("score_centering goes with neither sampling masks, old logprobs nor router replay")
        if prompt_logprobs or topk_prompt_logprobs:
            raise ValueError("score_centering is decode-only; prompt logprobs must be disabled")
    flags = {
        "return_sampling_mask": masks,
        "sampling_mask_transport": mask_transport if mask_transport == "ref" else None,
        "return_old_logprob": old_logprobs,
        "return_moe_topk_indices": experts,
    }
    return body | {name: value for name, value in flags.items() if value}


def _centering(given: ScoreCenteringConfig) -> Json:
    head, transport = given.get("head_size"), given.get("transport", "inline")
    if set(given) - {"head_size", "transport"}:
        raise ValueError("score_centering accepts only head_size and transport")
    if isinstance(head, bool) or not isinstance(head, int) or not 1 <= head <= MOST_HEAD:
        raise ValueError(f"score_centering.head_size must be an integer in [1,{MOST_HEAD}]")
    if transport not in TRANSPORTS:
        raise ValueError("score_centering.transport must be inline or ref")
    return {"head_size": head, "transport": transport}


def sampled(answer: Json, decode: Decode) -> Json:
    """What `sample` gives: the answer, with its sequences, their texts and what else it tells on top.

    A sequence without tokens is left out unless it was cut short.
    """
    result = answer["result"]
    found = {**answer, "raw_result": result, "sequences": []}
    for sequence in result["sequences"]:
        if sequence["tokens"] or sequence.get("stop_reason") == "abort":
            text = sequence.get("text")
            found["sequences"].append({**sequence, "text": decode(sequence["tokens"]) if text is None else text})
    told = {name: result.get(name) for name in ("usage", "weight_version")}
    return found | {name: value for name, value in told.items() if value is not None}
