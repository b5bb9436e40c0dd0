"""The beginning of one process: its device, its place among the others, its part of the model."""

import os

import torch
import torch.distributed as dist

from weaver.backend import Backend
from weaver.domain import ModelSource
from weaver_megatron.opening import carrier, layout_of, on_cuda
from weaver_megatron.rank import RankBackend


def open_rank(source: ModelSource) -> Backend:
    """Every process calls it; RANK and the like in its environment say which it is. Layout and devices are checked."""
    layout = layout_of(source)
    if on_cuda(source):  # with gloo, several may share one
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group(carrier(source, layout))
    return RankBackend(source, layout)
