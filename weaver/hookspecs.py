"""The hooks a plugin can implement: THE file a plugin author reads.

A plugin is any installed package with an entry point in the group `weaver`:

    [project.entry-points.weaver]
    gspo2 = "weaver_gspo2"

The module it names implements one or more of the hooks below, marked with `hookimpl`.
"""

from collections.abc import Iterable

import pluggy

from weaver.backend import BackendFactory
from weaver.loss import Loss
from weaver.sampler import SamplerFactory

hookspec = pluggy.HookspecMarker("weaver")
hookimpl = pluggy.HookimplMarker("weaver")


@hookspec
def weaver_losses() -> Iterable[Loss]:  # type: ignore[empty-body]
    """Losses by name, usable at once as `forward_backward(..., loss_fn="name")` on every backend.

    @hookimpl
    def weaver_losses():
        yield Loss("reinforce", reinforce, inputs=(LossInput("advantages"),), description="REINFORCE")
    """


@hookspec
def weaver_backends() -> Iterable[BackendFactory]:  # type: ignore[empty-body]
    """Training backends by name, for `weaver serve --backend NAME`.

    @hookimpl
    def weaver_backends():
        yield BackendFactory("peft", describe=describe, open=open_backend, description="transformers + peft")
    """


@hookspec
def weaver_samplers() -> Iterable[SamplerFactory]:  # type: ignore[empty-body]
    """Samplers by name, for `weaver serve --sampler NAME`.

    @hookimpl
    def weaver_samplers():
        yield SamplerFactory("embedded", open=open_sampler, description="a KV-cache loop beside the trainer")
    """
