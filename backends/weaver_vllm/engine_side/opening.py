"""Opens vLLM on a base model, set up so that what it computes is what weaver's samplers compute."""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Final

import psutil
import torch
import vllm
from transformers import AutoConfig, GenerationConfig
from vllm import LLMEngine
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform

from .errors import Refused
from .worker import WorkerExtension

KNOWN: Final = "0.32"
"""The version whose inner parts `worker` and `cpu_lora` replace."""
DEVICES: Final = ("cpu", "cuda")
SLOTS: Final = 8
"""Adapters that are in use at once, unless `max_loras` says otherwise."""
SET_BY_WEAVER: Final = (
    "model", "tokenizer", "skip_tokenizer_init", "dtype", "enable_lora", "max_lora_rank", "max_cpu_loras", "lora_dtype",
    "logprobs_mode", "max_logprobs", "worker_extension_cls", "enable_prefix_caching", "generation_config",
    "lora_target_modules", "runner", "convert", "seed", "disable_log_stats",
)  # fmt: skip
_MOST_CACHE_ON_CPU: Final = 4 << 30


@dataclass(frozen=True, slots=True)
class Opened:
    """A running engine, and what of it the loop must know."""

    engine: LLMEngine
    slots: int
    max_lora_rank: int
    vocabulary_size: int
    context_length: int
    end_tokens: tuple[int, ...]
    layers: dict[str, tuple[int, int]]
    is_whole: bool  # not in parts on several devices


def open_engine(settings: dict[str, Any]) -> Opened:
    """Loads the model: seconds or minutes. Raises Refused naming what of the settings does not fit."""
    _check_version()
    _check_device(settings["device"])
    location = settings["location"]
    arguments = _arguments(settings)
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    engine.collective_rpc("weaver_install")
    config = engine.vllm_config
    return Opened(
        engine,
        config.lora_config.max_loras,
        config.lora_config.max_lora_rank,
        config.model_config.get_vocab_size(),
        config.model_config.max_model_len,
        _end_tokens(location),
        engine.collective_rpc("weaver_layers")[0],
        config.parallel_config.world_size == 1,
    )


def _check_version() -> None:
    if not vllm.__version__.startswith(f"{KNOWN}."):
        raise Refused(
            f"the sampler 'vllm' knows vLLM {KNOWN}, whose inner parts it replaces, and {sys.executable} has "
            f"{vllm.__version__}: pip install 'vllm=={KNOWN}.*' there, or name another with --vllm-python"
        )


def _check_device(wanted: str) -> None:
    found = current_platform.device_type
    if found not in DEVICES:
        raise Refused(f"the vLLM of {sys.executable} computes on {found}; the sampler 'vllm' knows {DEVICES}")
    if wanted not in ("auto", found):
        raise Refused(f"--device {wanted} was asked for, and the vLLM of {sys.executable} computes on {found}")


def _arguments(settings: dict[str, Any]) -> dict[str, Any]:
    given = {name: _value(text) for name, text in settings["arguments"].items()}
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in given:
        if name in SET_BY_WEAVER:
            raise Refused(f"--vllm-arg {name}: weaver sets it, so that the results are what its samplers promise")
        if name not in known:
            raise Refused(f"--vllm-arg {name}: vLLM {vllm.__version__} has no such engine argument")
    return {
        "max_loras": SLOTS,
        "max_model_len": -1,  # the model's, or what fits into the cache: longer requests are refused by name
        "use_tqdm_on_load": False,
        **_for_device(),
        **given,
        "model": settings["location"],
        "skip_tokenizer_init": True,
        "dtype": _dtype(settings["location"], settings["dtype"]),
        "enable_lora": True,
        "max_lora_rank": settings["max_lora_rank"],
        "max_cpu_loras": given.get("max_loras", SLOTS),
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": -1,
        "enable_prefix_caching": True,
        "generation_config": "vllm",
        "worker_extension_cls": f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
        "seed": int.from_bytes(os.urandom(4), "big") >> 1,  # what has no seed is drawn anew, also after a restart
        "disable_log_stats": True,
    }


def _value(text: str) -> Any:
    """What was written as JSON, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _for_device() -> dict[str, Any]:
    """Of memory what a trainer beside it leaves: a quarter of the machine's that is free, or half of the device's.

    On CPUs prompts share blocks of 32 tokens, the fewest that its attention works well with (vLLM's own 128 leave most
    prompts of samples that are drawn together without a share), and nothing is compiled.
    """
    if current_platform.is_cpu():
        memory = min(_MOST_CACHE_ON_CPU, psutil.virtual_memory().available // 4)
        return {"kv_cache_memory_bytes": memory, "block_size": 32, "enforce_eager": True}
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": round(free / total / 2, 3)}


def _dtype(location: str, wanted: str) -> str:
    """The checkpoint's own for "auto": vLLM's would narrow float32."""
    if wanted != "auto":
        return wanted
    found = AutoConfig.from_pretrained(location).dtype
    if found is None:
        raise Refused(f"the configuration in {location!r} names no dtype; give --dtype float32 or bfloat16")
    return str(found).removeprefix("torch.")


def _end_tokens(location: str) -> tuple[int, ...]:
    try:
        found = GenerationConfig.from_pretrained(location).eos_token_id
    except OSError:
        found = None
    found = AutoConfig.from_pretrained(location).eos_token_id if found is None else found
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list | tuple) else (found,)
