"""A server of ours to check, and a way to build one with a fault: by other plugins, or by a subclass."""

import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib import util
from pathlib import Path

import pytest

import tests.serving
from tests.tiny_models import write_llama, write_words
from weaver.backend import ModelSource
from weaver.config import Config
from weaver.conformance.lab import Lab
from weaver.registry import load_registry
from weaver.service import Service

MODEL = "tiny/llama"


def load(name):
    """Another file of this folder as the module `conformance_<name>`."""
    spec = util.spec_from_file_location(f"conformance_{name}", Path(__file__).with_name(f"{name}.py"))
    sys.modules[spec.name] = module = util.module_from_spec(spec)
    spec.loader.exec_module(module)


for _name in ("faults", "number_faults", "wire_faults"):
    load(_name)


def same(thing):
    return thing


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return write_words(write_llama(tmp_path_factory.mktemp("conformance") / "llama"))


@pytest.fixture(scope="session")
def serving(model_folder, tmp_path_factory):
    """Opens a server over HTTP, with another Service class or with one of its parts wrapped."""

    @contextmanager
    def serve(service_class=Service, wrap_backend=same, wrap_sampler=same, wrap_app=same):
        found = load_registry()
        backend, sampler = found.backend("peft"), found.sampler("embedded")
        registry = replace(
            found,
            backends={"peft": replace(backend, open=lambda source: wrap_backend(backend.open(source)))},
            samplers={"embedded": replace(sampler, open=lambda source: wrap_sampler(sampler.open(source)))},
        )
        source = ModelSource(MODEL, str(model_folder), "cpu")
        service = service_class(Config(models=(source,), data_dir=tmp_path_factory.mktemp("data")), registry)
        try:
            with tests.serving.serving(service, wrap=wrap_app) as address:
                yield address
        finally:
            service.close()

    return serve


@pytest.fixture(scope="module")
def url(serving):
    with serving() as address:
        yield address


class Switch:
    """A part of a server that runs: itself, or wrapped in a fault for a while."""

    def __init__(self):
        self._part, self._fault, self._now = None, same, None

    def take(self, part):
        """The part itself; a sampler is opened when it is first used."""
        self._part, self._now = part, self._fault(part)
        return self

    def wrap(self, fault):
        self._fault = fault
        if self._part is not None:
            self._now = fault(self._part)

    def __getattr__(self, name):
        return getattr(self._now, name)

    async def __call__(self, scope, receive, send):
        await self._now(scope, receive, send)


@pytest.fixture(scope="module")
def with_fault(serving):
    """A server that is given one fault after the other, for beginning takes a while; another Service is another one."""
    switches = {"wrap_backend": Switch(), "wrap_sampler": Switch(), "wrap_app": Switch()}

    @contextmanager
    def serve(**fault):
        if "service_class" in fault:
            with serving(**fault) as address:
                yield address
            return
        for name, wrap in fault.items():
            switches[name].wrap(wrap)
        try:
            yield shared
        finally:
            for name in fault:
                switches[name].wrap(same)

    with serving(**{name: switch.take for name, switch in switches.items()}) as shared:
        yield serve


@pytest.fixture(scope="module")
def rates(with_fault):
    """How large steps on the model must be, by the Lab's names: found once, on the server without a fault."""
    with with_fault() as url:
        lab = Lab(url, "tml-test", MODEL)
        return {name: getattr(lab, name) for name in ("rate", "sign_rate", "dimuon_rate")}
