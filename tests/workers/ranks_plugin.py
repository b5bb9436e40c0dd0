"""A plugin for tests: the backend peft in several processes that meet in collectives, and losses that fail in one."""

import functools
import os
import signal
import threading
from pathlib import Path

from weaver.backend import BackendFactory, BackendOption
from weaver.errors import InvalidInput
from weaver.hookspecs import hookimpl
from weaver.loss import ConfigField, Loss, LossInput
from weaver.plugins import echo

RANK = int(os.environ.get("RANK", "0"))
UNFIT_RANK, ENDLESS_RANK = 13, 15
"""LoRA ranks that the second process raises at, and that no process comes back from."""


class Echoes(echo.EchoBackend):
    """Starts in no time; at one LoRA rank it never comes back."""

    def create_model(self, model_id, lora):
        if lora.rank == ENDLESS_RANK:
            (Path(os.environ["WEAVER_TEST_DEATHS"]) / f"rank {RANK} waits").touch()
            threading.Event().wait()
        super().create_model(model_id, lora)


class Replicated:
    """The same computation everywhere; every call begins and ends with all processes at one place."""

    def __init__(self, source):
        import torch.distributed
        from weaver_peft.trainer import open_backend

        if source.options["ranks"] > 4:
            raise InvalidInput(f"ranks is {source.options['ranks']}; the model has 4 heads")
        self.inner = open_backend(source)
        self.torch = torch
        torch.distributed.init_process_group("gloo")

    def meet(self):
        one = self.torch.ones(1)
        self.torch.distributed.all_reduce(one)
        assert one.item() == self.torch.distributed.get_world_size()

    def create_model(self, model_id, lora):
        if lora.rank == UNFIT_RANK and RANK == 1:
            raise RuntimeError("no room here")
        self.meet()
        self.inner.create_model(model_id, lora)

    def forward_backward(self, passes):
        self.meet()
        outcomes = self.inner.forward_backward(passes)
        self.meet()
        return outcomes

    def optim_step(self, model_id, params):
        self.meet()
        metrics = self.inner.optim_step(model_id, params)
        self.meet()
        return metrics

    def __getattr__(self, name):
        return getattr(self.inner, name)


def weighted(logprobs, inputs, config):
    return -(logprobs * inputs["weights"]).sum()


def deadly(logprobs, inputs, config, rank=1):
    """Kills a rank `times` times, as the files in the folder that the environment names count them."""
    deaths = Path(os.environ["WEAVER_TEST_DEATHS"])
    if rank == RANK and len(list(deaths.iterdir())) < config["times"]:
        (deaths / str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return weighted(logprobs, inputs, config)


def partial(logprobs, inputs, config):
    if RANK == 1:
        raise InvalidInput("rank 1 cannot")
    return weighted(logprobs, inputs, config)


@hookimpl
def weaver_losses():
    weights, times = (LossInput("weights"),), (ConfigField("times", 1, type="int"),)
    yield Loss("weighted", weighted, weights)
    yield Loss("deadly", deadly, weights, times)
    yield Loss("deadly_first", functools.partial(deadly, rank=0), weights, times)
    yield Loss("partial", partial, weights)


@hookimpl
def weaver_backends():
    options = (BackendOption("ranks", 2, "how many processes"), BackendOption("loud", False, "nothing", "flag"))
    yield BackendFactory("echoes", echo.describe, Echoes, options=options, processes=lambda given: given["ranks"])
    yield BackendFactory(
        "replicated", echo.describe, Replicated, options=options, processes=lambda given: given["ranks"]
    )
