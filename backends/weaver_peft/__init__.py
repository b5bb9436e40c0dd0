"""Training on transformers with PEFT-format adapters, and the sampler that runs beside it on the same weights."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from weaver.backend import Backend, BackendFactory, ModelFacts, ModelSource
from weaver.domain import Adapter
from weaver.errors import MissingPackage
from weaver.hookspecs import hookimpl
from weaver.sampler import Sampler, SamplerFactory


def _describe(source: ModelSource) -> ModelFacts:
    return _heavy("base_model").describe(source)


def _open_backend(source: ModelSource) -> Backend:
    return _heavy("trainer").open_backend(source)


def _merge(source: ModelSource, adapter: Adapter, folder: Path) -> None:
    _heavy("merge").merge(source, adapter, folder)


def _open_sampler(source: ModelSource) -> Sampler:
    return _heavy("sampler").open_sampler(source)


def _heavy(module: str) -> ModuleType:
    """Import a module of this package that needs torch and transformers; listing plugins must not."""
    try:
        return import_module(f"weaver_peft.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in {"torch", "transformers", "peft", "safetensors", "tokenizers"}:
            raise MissingPackage(f"backend 'peft' needs {error.name}: pip install 'weaver-train[peft]'") from error
        raise


@hookimpl
def weaver_backends() -> Iterable[BackendFactory]:
    description = "transformers with LoRA adapters, on a CPU or one GPU"
    yield BackendFactory("peft", _describe, _open_backend, description, _merge, sampling_masks=True)


@hookimpl
def weaver_samplers() -> Iterable[SamplerFactory]:
    yield SamplerFactory("embedded", _open_sampler, "a KV-cache loop on the trainer's own weights")
