"""Tensor-parallel training of LoRA adapters with megatron-core: large models over several ranks."""

import warnings
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import cast

from weaver.backend import Backend, BackendFactory, BackendOption, ModelFacts, ModelSource
from weaver.domain import Adapter, OptionValue
from weaver.errors import MissingPackage
from weaver.hookspecs import hookimpl

OPTIONS = (
    BackendOption("tp", 1, "processes that share every layer (tensor parallel)"),
    BackendOption("dp", 1, "groups of these that share the data (data parallel)"),
    BackendOption("ep", 1, "parts that the experts of a mixture are spread in (expert parallel)"),
    BackendOption(
        "sequence_parallel", False, "what lies between the layers' products is split by tokens (with --tp)", type="flag"
    ),
    BackendOption(
        "process_group",
        "auto",
        "what carries tensors between processes: auto is nccl on CUDA devices, gloo elsewhere",
        type="text",
        choices=("auto", "gloo", "nccl"),
    ),
    BackendOption("recompute", False, "activations inside layers are computed twice, not kept", type="flag"),
)
"""The fields of `weaver_megatron.layout.Layout`."""


def _describe(source: ModelSource) -> ModelFacts:
    return _heavy("opening").describe(source)


def _open_rank(source: ModelSource) -> Backend:
    # megatron-core says when it is imported that it goes without packages, and settings, that are not used here.
    for said in ("Transformer Engine", "Apex is not installed", "full scope is deprecated", "`torch.distributed"):
        warnings.filterwarnings("ignore", message=f".*{said}")
    return _heavy("process").open_rank(source)


def _processes(options: Mapping[str, OptionValue]) -> int:
    return cast(int, options["tp"]) * cast(int, options["dp"])


def _merge(source: ModelSource, adapter: Adapter, folder: Path) -> None:
    _heavy("opening").merge(source, adapter, folder)


def _heavy(module: str) -> ModuleType:
    """Import a module of this package that needs torch and megatron-core; listing plugins must not."""
    try:
        return import_module(f"weaver_megatron.{module}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in {"megatron", "torch", "transformers", "peft", "safetensors", "tokenizers"}:
            package = "megatron-core" if missing == "megatron" else missing
            raise MissingPackage(f"backend 'megatron' needs {package}: pip install 'weaver-train[megatron]'") from error
        raise


@hookimpl
def weaver_backends() -> Iterable[BackendFactory]:
    description = "megatron-core with LoRA adapters, tensor-parallel, a process for each rank"
    yield BackendFactory(
        "megatron", _describe, _open_rank, description, _merge, OPTIONS, _processes, sampling_masks=True
    )
