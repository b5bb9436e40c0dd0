"""The hooks a plugin can implement: THE file a plugin author reads.

A plugin is any installed package with an entry point in the group `weaver`:

    [project.entry-points.weaver]
    gspo2 = "weaver_gspo2"

The module it names implements one or more of the hooks below, marked with `hookimpl`. Each example is a whole module.
"""

from collections.abc import Iterable

import pluggy

from weaver.backend import BackendFactory
from weaver.loss import Loss
from weaver.operators import Authenticator, CheckpointStore, Observer
from weaver.sampler import SamplerFactory

hookspec = pluggy.HookspecMarker("weaver")
hookimpl = pluggy.HookimplMarker("weaver")


@hookspec
def weaver_losses() -> Iterable[Loss]:  # type: ignore[empty-body]
    """Losses by name, usable at once as `forward_backward(..., loss_fn="name")` on every backend.

    from weaver.hookspecs import hookimpl
    from weaver.loss import ConfigField, Loss, LossInput

    def reinforce(logprobs, inputs, config):
        return -config["scale"] * (logprobs * inputs["advantages"]).sum()

    @hookimpl
    def weaver_losses():
        scale = ConfigField("scale", 1.0, minimum=0.0, description="multiplies the loss")
        yield Loss("my_reinforce", reinforce, (LossInput("advantages"),), (scale,), "REINFORCE", "Williams 1992")
    """


@hookspec
def weaver_backends() -> Iterable[BackendFactory]:  # type: ignore[empty-body]
    """Training backends by name, for `weaver serve --backend NAME`.

    from weaver.backend import BackendFactory
    from weaver.hookspecs import hookimpl
    from weaver.plugins.echo import EchoBackend, describe

    class Quiet(EchoBackend):
        def optim_step(self, model_id, params):
            return {"grad_norm": super().optim_step(model_id, params)["grad_norm"]}

    @hookimpl
    def weaver_backends():
        yield BackendFactory("quiet", describe=describe, open=Quiet, description="tells of a step its norm only")
    """


@hookspec
def weaver_samplers() -> Iterable[SamplerFactory]:  # type: ignore[empty-body]
    """Samplers by name, for `weaver serve --sampler NAME`.

    from weaver.hookspecs import hookimpl
    from weaver.plugins.echo import EchoSampler
    from weaver.sampler import SamplerFactory

    @hookimpl
    def weaver_samplers():
        yield SamplerFactory("parrot", open=EchoSampler, description="says the prompt over and over")
    """


@hookspec
def weaver_checkpoint_stores() -> Iterable[CheckpointStore]:  # type: ignore[empty-body]
    """Where checkpoints are kept, by URL scheme, for `weaver serve --checkpoint-store SCHEME://...`.

    import shutil
    from pathlib import Path

    from weaver.hookspecs import hookimpl
    from weaver.operators import CheckpointStore

    class Folder:
        def __init__(self, url):
            self.root = Path(url.partition("://")[2])

        def put(self, name, folder):
            beside = self.root / f"{name}.new"
            shutil.copytree(folder, beside)
            beside.rename(self.root / name)

        def get(self, name, folder):
            shutil.copytree(self.root / name, folder, dirs_exist_ok=True)

        def delete(self, name):
            shutil.rmtree(self.root / name, ignore_errors=True)

    @hookimpl
    def weaver_checkpoint_stores():
        yield CheckpointStore("disk", open=Folder, description="another folder of this machine")
    """


@hookspec
def weaver_authenticators() -> Iterable[Authenticator]:  # type: ignore[empty-body]
    """Who may come in, beside `--api-key`: all installed ones are asked, and each must agree.

    from weaver.errors import NotAuthenticated
    from weaver.hookspecs import hookimpl
    from weaver.operators import Authenticator

    def authenticate(headers):
        user = headers.get("x-forwarded-user")
        if user is None:
            raise NotAuthenticated("come through the proxy, which says who you are in X-Forwarded-User")
        return user

    @hookimpl
    def weaver_authenticators():
        yield Authenticator("proxy", authenticate, "whom the proxy has let in")
    """


@hookspec
def weaver_observers() -> Iterable[Observer]:  # type: ignore[empty-body]
    """Told of every operation that has settled, on a thread of their own.

    from weaver.hookspecs import hookimpl
    from weaver.operators import Observer

    def observe(settled):
        with open("/tmp/weaver.log", "a") as log:
            print(settled.ended - settled.began, settled.kind, settled.source, settled.error, file=log)

    @hookimpl
    def weaver_observers():
        yield Observer("log", observe, "one line for each operation")
    """
