"""What type checkers and editors are told of the clients is what the clients do."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

import weaver
from weaver import types
from weaver.sampling_client import AsyncSamplingClient, SamplingClient
from weaver.training_client import AsyncTrainingClient, TrainingClient

from . import stubs
from .conftest import MODEL, datum

SCRIPT = Path(__file__).with_name("user_script.py")
SETTINGS = """
[mypy]
strict = true
follow_imports = silent
ignore_missing_imports = true
[mypy-torch.*,transformers.*,numpy.*,pydantic.*,sqlalchemy.*]
follow_imports = skip
"""
# Lines that are wrong, and what mypy calls the mistake.
MISTAKES = {
    "trainer.forward_backward([], 'cross_entropy', wait='no')": "call-overload",
    "trainer.forward_backward([], loss='cross_entropy')": "call-overload",
    "trainer.save_state(name=1)": "call-overload",
    "trainer.save_state().pth": "attr-defined",
    "trainer.save_state(wait=False).path": "attr-defined",
    "trainer.optim_step(types.AdamParams()).result()": "attr-defined",
    "service.create_model(base_model='model', rank=3)": "call-arg",
    "service.list_training_runs(limit='all')": "arg-type",
}
DATA = [datum([5, 6, 7]), datum([8, 9])]
PROMPT = types.ModelInput.from_ints([5, 6])


def read(folder, code):
    """What mypy says of `code`: line, kind, message."""
    (folder / "script.py").write_text(code)
    (folder / "mypy.ini").write_text(SETTINGS)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(folder / "cache"), "--show-error-codes", "script.py"],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(stubs.ROOT)},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.stdout, done.stderr
    return [
        (int(line), kind, told) for line, kind, told in re.findall(r"^script.py:(\d+): (\w+): (.*)$", done.stdout, re.M)
    ]


@pytest.mark.parametrize("module", stubs.PAIRS)
def test_a_stub_is_made_of_the_code(module):
    assert stubs.place(module).read_text() == stubs.stub(module), "run python tests/client/stubs.py"


def test_every_method_says_what_it_gives():
    found = [
        function.name
        for module, (_, *sources) in stubs.PAIRS.items()
        for source in sources
        for function in stubs.methods(stubs.HOMES.get(source, module), source)
    ]
    assert sorted(found) == sorted(stubs.VALUES)


@pytest.mark.timeout(600)
def test_mypy_finds_the_stubs_to_be_of_these_modules():
    modules = [f"weaver.{module}" for module in stubs.PAIRS]
    settings = ["--mypy-config-file", str(stubs.ROOT / "pyproject.toml")]
    command = [sys.executable, "-m", "mypy.stubtest", *modules, *settings]
    done = subprocess.run(command, cwd=stubs.ROOT, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_a_users_script_has_the_types_it_says(tmp_path):
    """And mistakes are found."""
    script = SCRIPT.read_text()
    begin = (
        "\n\ndef mistaken(service: ServiceClient) -> None:\n    trainer = service.create_model(base_model='model')\n"
    )
    wrong = "".join(f"    {line}\n" for line in MISTAKES)
    told = read(tmp_path, script + begin + wrong)
    first = (script + begin).count("\n") + 1
    revealed = {line: re.sub(r"\b(\w+\.)+", "", text).split('"')[1] for line, kind, text in told if "Revealed" in text}
    expected = {
        number: line.partition("  # ")[2]
        for number, line in enumerate(script.splitlines(), 1)
        if "reveal_type(" in line
    }
    assert revealed == expected
    errors = {(line, text.rpartition("[")[2][:-1]) for line, kind, text in told if kind == "error"}
    assert sorted(errors) == list(enumerate(MISTAKES.values(), first))


KNOWN = {
    "AsyncOperationHandle": weaver.AsyncOperationHandle,
    "AsyncSamplingClient": AsyncSamplingClient,
    "AsyncTrainingClient": AsyncTrainingClient,
    "OperationHandle": weaver.OperationHandle,
    "SamplingClient": SamplingClient,
    "TrainingClient": TrainingClient,
}


def is_of(value, told):
    """Whether a value is of the type that a stub tells."""
    kind = eval(told, {**vars(types), **KNOWN, "Any": Any, "Path": Path})
    holder = with_config(ConfigDict(arbitrary_types_allowed=True, strict=True))(TypedDict("Holder", {"it": kind}))
    TypeAdapter(holder).validate_python({"it": value})
    return True


WITHOUT_WAIT = [
    ("forward", lambda it, **more: it.forward(DATA, "cross_entropy", **more)),
    ("forward_backward", lambda it, **more: it.forward_backward(DATA, "cross_entropy", **more)),
    ("optim_step", lambda it, **more: it.optim_step(types.AdamParams(), **more)),
    ("save_weights_for_sampler", lambda it, **more: it.save_weights_for_sampler(**more)),
    ("save_weights_and_get_sampling_client", lambda it, **more: it.save_weights_and_get_sampling_client(**more)),
    ("save_state", lambda it, **more: it.save_state(**more)),
    ("export_weights", lambda it, **more: it.export_weights(**more)),
]
VALUE_ONLY = [
    ("list_checkpoints", lambda it: it.list_checkpoints()),
    ("log_metrics", lambda it: it.log_metrics({"reward": 1.0}, step=1)),
]
OF_SERVICES = [
    ("list_supported_models", lambda it: it.list_supported_models()),
    ("list_supported_model_details", lambda it: it.list_supported_models(detailed=True)),
    ("get_supported_model_config", lambda it: it.get_supported_model_config(MODEL)),
    ("list_training_runs", lambda it: it.list_training_runs()),
    ("list_models", lambda it: it.list_models()),
    ("list_organizations", lambda it: it.list_organizations()),
    ("list_projects", lambda it: it.list_projects()),
    ("resolve_scope", lambda it: it.resolve_scope()),
    ("get_scheduling_options", lambda it: it.get_scheduling_options()),
    ("list_deployments", lambda it: it.list_deployments()),
    ("ensure_session", lambda it: it.ensure_session()),
]


def test_values_and_handles_are_of_the_types_that_are_told(service, trainer):
    for name, call in WITHOUT_WAIT:
        assert is_of(call(trainer), stubs.VALUES[name]), name
        handle = call(trainer, wait=False)
        assert is_of(handle, "OperationHandle"), name
        handle.wait()
    checkpoint = trainer.save_state()
    for name in ("load_state", "terminate"):
        assert is_of(getattr(trainer, name)(*([checkpoint] if name == "load_state" else [])), stubs.VALUES[name])
    for name, call in VALUE_ONLY:
        assert is_of(call(trainer), stubs.VALUES[name]), name
    for name, call in OF_SERVICES:
        assert is_of(call(service), stubs.VALUES[name]), name
    assert is_of(trainer.export_weights(checkpoint=checkpoint), "WeightsArtifact")
    assert is_of(trainer.export_weights(checkpoint=checkpoint, wait=False), "WeightsArtifact")
    sampler = service.create_sampling_client(base_model=MODEL)
    for name, call in (
        ("sample", lambda: sampler.sample(prompt=PROMPT, sampling_params=types.SamplingParams(max_tokens=1))),
        ("compute_logprobs", lambda: sampler.compute_logprobs(prompt=PROMPT)),
    ):
        assert is_of(call(), stubs.VALUES[name]), name


def test_async_values_and_handles_are_too(where):
    async def ask():
        async with weaver.AsyncServiceClient(**where) as service:
            trainer = await service.create_model(base_model=MODEL, lora_config={"rank": 4})
            assert is_of(trainer, "AsyncTrainingClient")
            for name, call in WITHOUT_WAIT:
                assert is_of(await call(trainer), stubs.of_async(stubs.VALUES[name])), name
                handle = await call(trainer, wait=False)
                assert is_of(handle, "AsyncOperationHandle"), name
                await handle
            for name, call in OF_SERVICES:
                assert is_of(await call(service), stubs.VALUES[name]), name

    asyncio.run(ask())


def test_a_value_of_another_type_would_be_seen(trainer):
    with pytest.raises(ValueError, match="instance of Checkpoint"):
        is_of(trainer.list_checkpoints, "Checkpoint")
    with pytest.raises(ValueError, match="valid dictionary"):
        is_of("path", stubs.JSON)
