"""What can be known of a model and a layout before any process starts: checks that need no weights."""

from importlib.util import find_spec

import torch
from weaver_peft.merge import merge

from weaver.domain import ModelFacts, ModelSource
from weaver.errors import InvalidInput, MissingPackage
from weaver_megatron.architecture import check_layout, read_architecture
from weaver_megatron.layout import Layout


def layout_of(source: ModelSource) -> Layout:
    """Raises InvalidInput naming the number that does not fit the others."""
    return Layout(**dict(source.options))  # type: ignore[arg-type]


def describe(source: ModelSource) -> ModelFacts:
    """What the configuration says. Raises InvalidInput naming what of the model, the layout or this machine does not
    fit, MissingPackage without megatron-core, which only the processes import."""
    if find_spec("megatron") is None:
        raise MissingPackage("backend 'megatron' needs megatron-core: pip install 'weaver-train[megatron]'")
    layout, architecture = layout_of(source), read_architecture(source)
    check_layout(architecture, layout)
    _check_devices(source, layout)
    return architecture.facts


def carrier(source: ModelSource, layout: Layout) -> str:
    """What carries tensors between processes: nccl or gloo."""
    if layout.process_group != "auto":
        return layout.process_group
    return "nccl" if on_cuda(source) else "gloo"


def on_cuda(source: ModelSource) -> bool:
    return source.device != "cpu" and torch.cuda.is_available()


def _check_devices(source: ModelSource, layout: Layout) -> None:
    devices = torch.cuda.device_count() if on_cuda(source) else 0
    if carrier(source, layout) == "nccl" and devices < layout.world:
        raise InvalidInput(
            f"process_group nccl needs a CUDA device for each of the {layout.world} processes (tp {layout.tp} times dp "
            f"{layout.dp}), and there are {devices}; use fewer, or --process-group gloo, which lets them share devices"
        )


__all__ = ["carrier", "describe", "layout_of", "merge", "on_cuda"]
