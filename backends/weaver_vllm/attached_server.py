"""What a vLLM server says of itself when weaver attaches to it, and whether exact samples can come from it."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from weaver.domain import ModelSource
from weaver.errors import InvalidInput
from weaver_vllm.attached_wire import Answer

START: Final = (
    "VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=True python -m vllm.entrypoints.openai.api_server "
    "--model MODEL --enable-lora --max-loras 8 --max-lora-rank 32 --logprobs-mode processed_logprobs "
    "--max-logprobs -1 --generation-config vllm --enable-prompt-tokens-details"
)
"""How an operator starts a server that weaver can attach to."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What requests depend on: servers that serve one model must agree in all of it.

    `max_logprobs` -1 is the whole vocabulary. `adapters`: how many the engine keeps without dropping any by itself.
    """

    context_length: int
    max_logprobs: int
    has_tokenizer: bool
    on_cpu: bool
    adapters: int
    max_rank: int


@dataclass(frozen=True, slots=True)
class Attached:
    """A server as it was found. `model` is what it calls the base model; another `instance` is another process, which
    has none of the adapters that this one was given."""

    facts: ServerFacts
    model: str
    instance: str


class _Known(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class _Model(_Known):
    model: str
    max_model_len: int
    max_logprobs: int
    logprobs_mode: str
    generation_config: str
    override_generation_config: dict[str, Any]
    logits_processors: list[Any] | None
    skip_tokenizer_init: bool


class _Lora(_Known):
    max_lora_rank: int
    max_loras: int
    max_cpu_loras: int | None
    target_modules: list[str] | None


class _Parallel(_Known):
    api_processes: int

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "_Parallel":
        return cls(api_processes=told.get("_api_process_count", 1))


class _Device(_Known):
    device: str


class _Config(_Known):
    model: _Model
    lora: _Lora | None
    parallel: _Parallel
    device: _Device
    instance: str
    runtime_lora: bool


def attached(url: str, info: Mapping[str, Any], served: Mapping[str, Any], source: ModelSource) -> Attached:
    """What `/server_info` and `/v1/models` of the server say. Raises InvalidInput naming what keeps weaver from
    drawing exactly, and how to start the server instead."""
    config = _parsed(url, info)
    names = [str(card["id"]) for card in served["data"] if card.get("parent") is None]
    _check_model(url, config.model, names, source)
    _check_settings(url, config)
    assert config.lora is not None
    facts = ServerFacts(
        context_length=config.model.max_model_len,
        max_logprobs=config.model.max_logprobs,
        has_tokenizer=not config.model.skip_tokenizer_init,
        on_cpu=config.device.device.startswith("cpu"),
        adapters=config.lora.max_cpu_loras or config.lora.max_loras,
        max_rank=config.lora.max_lora_rank,
    )
    return Attached(facts, names[0], config.instance)


def _parsed(url: str, info: Mapping[str, Any]) -> _Config:
    told, environment = info.get("vllm_config", {}), info.get("vllm_env", {})
    try:
        return _Config(
            model=told["model_config"],
            lora=told["lora_config"],
            parallel=_Parallel.of(told["parallel_config"]),
            device=told["device_config"],
            instance=str(told["instance_id"]),
            runtime_lora=environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"],
        )
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise InvalidInput(
            f"the server at {url} tells its configuration in a form that weaver does not know ({error}); weaver was "
            "written for vLLM 0.32"
        ) from error


def _check_model(url: str, model: _Model, names: list[str], source: ModelSource) -> None:
    same = model.model == source.location or os.path.realpath(model.model) == os.path.realpath(source.location)
    if not names or not (same or source.name in names):
        raise InvalidInput(
            f"the vLLM server at {url} serves {model.model!r}, not {source.location!r}; where both are the same "
            f"weights, say so by starting it with --served-model-name {source.name!r}"
        )


def _check_settings(url: str, config: _Config) -> None:
    model = config.model
    wrong = {
        "it serves no adapters": (config.lora is None, "--enable-lora"),
        "it loads no adapters while it runs": (not config.runtime_lora, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        f"its logprobs are {model.logprobs_mode}, not those of the distribution that tokens are drawn from": (
            model.logprobs_mode != "processed_logprobs",
            "--logprobs-mode processed_logprobs",
        ),
        "it changes sampling by the model's generation config": (
            model.generation_config != "vllm" or bool(model.override_generation_config),
            "--generation-config vllm and without --override-generation-config",
        ),
        "it changes logits by processors of its own": (bool(model.logits_processors), "no --logits-processors"),
        "it would leave out parts of adapters without a word": (
            config.lora is not None and config.lora.target_modules is not None,
            "no --lora-target-modules",
        ),
        "each of its front processes knows other adapters": (
            config.parallel.api_processes > 1,
            "--api-server-count 1",
        ),
    }
    for what, (is_wrong, instead) in wrong.items():
        if is_wrong:
            raise InvalidInput(f"the vLLM server at {url} cannot be used: {what}. Start it with {instead}: {START}")


def check_probe(url: str, answer: Answer) -> None:
    """Of a call for one token with top_k 2 and two logprobs. Raises InvalidInput naming what the server leaves out."""
    if answer.cached is None:
        raise InvalidInput(
            f"the vLLM server at {url} does not say how much of a prompt was cached. Start it with "
            f"--enable-prompt-tokens-details: {START}"
        )
    total = sum(math.exp(logprob) for logprob in answer.choices[0].tops[0].values())
    if abs(total - 1) > 1e-2:
        raise InvalidInput(
            f"the vLLM server at {url} cannot be used: the logprobs of what can be drawn add up to {total:.3f}"
        )


def not_telling(url: str) -> InvalidInput:
    return InvalidInput(
        f"the vLLM server at {url} does not tell how it was started. Start it with VLLM_SERVER_DEV_MODE=1, in a "
        f"network where nobody else reaches it: {START}"
    )


def check_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """The addresses without a slash at the end. Raises InvalidInput for what is none, or there twice."""
    plain = tuple(url.rstrip("/") for url in urls)
    for url in plain:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InvalidInput(f"--vllm-url {url} is no address of a server; give one like http://host:8000")
        if plain.count(url) > 1:
            raise InvalidInput(f"--vllm-url {url} is given twice")
    return plain
