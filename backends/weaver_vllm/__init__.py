"""Sampling with vLLM, which runs in a process and, where it must, an environment of its own."""

from collections.abc import Iterable
from importlib import import_module

from weaver.domain import ModelSource
from weaver.hookspecs import hookimpl
from weaver.options import Option
from weaver.sampler import Sampler, SamplerFactory

OPTIONS = (
    Option("vllm_python", "", "the Python that has vLLM, without: the server's own", type="text"),
    Option("vllm_arg", (), "an engine argument of vLLM's, repeatable", type="pairs"),
    Option("vllm_url", "", "attach to vLLM servers that run already: http://a:8000,http://b:8000", type="text"),
    Option("vllm_lora_slots", 0, "adapters in each of those servers, 0: as many as it was started for", minimum=0),
)


def _open(source: ModelSource) -> Sampler:
    mode = "attached" if source.options["vllm_url"] else "opening"
    opened: Sampler = import_module(f"weaver_vllm.{mode}").open_sampler(source)
    return opened


@hookimpl
def weaver_samplers() -> Iterable[SamplerFactory]:
    yield SamplerFactory("vllm", _open, "vLLM in a process of its own, adapters as it has slots for", OPTIONS)
