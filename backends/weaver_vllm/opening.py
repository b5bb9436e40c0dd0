"""From a base model and options to a running sampler."""

import sys
from pathlib import Path
from typing import Any, Final

from weaver_peft.demo_model import demo_model_folder

from weaver.domain import ModelSource
from weaver_vllm.process import EngineProcess, Told
from weaver_vllm.sampler import VllmSampler

FIRST_RANK: Final = 32
"""What Tinker's clients ask for unless they say otherwise. Smaller ranks are padded to it, which costs little; for a
larger one the engine is opened anew."""


def open_sampler(source: ModelSource) -> VllmSampler:
    """Start the engine and wait for it. Raises what keeps it from starting, in words of `weaver serve`."""
    python, settings = str(source.options["vllm_python"]) or sys.executable, settings_of(source)

    def start(rank: int, told: Told) -> EngineProcess:
        return EngineProcess(python, {**settings, "max_lora_rank": rank}, told)

    return VllmSampler(start, FIRST_RANK)


def settings_of(source: ModelSource) -> dict[str, Any]:
    """What the engine's side is told."""
    given: tuple[str, ...] = source.options["vllm_arg"]  # type: ignore[assignment]
    return {
        "name": source.name,
        "location": _location(source.location),
        "device": source.device,
        "dtype": source.dtype,
        "arguments": dict(one.split("=", 1) for one in given),
    }


def _location(location: str) -> str:
    """What transformers and vLLM load: a folder's path, or a hub id as it is."""
    if location == "demo":
        return str(demo_model_folder())
    folder = Path(location).expanduser()
    return str(folder.resolve()) if folder.is_dir() else location
