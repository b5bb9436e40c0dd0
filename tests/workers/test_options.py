"""Backends and samplers declare options; the command line has a flag for each, and refuses by name what one has not."""

import pytest
from click.testing import CliRunner

from weaver.backend import BackendFactory, BackendOption
from weaver.config import rank_environment
from weaver.errors import InvalidInput
from weaver.options import Option
from weaver.sampler import SamplerFactory
from weaver.server import cli
from weaver.server.cli import weaver

OPTIONS = (
    BackendOption("parts", 2, "into how many"),
    BackendOption("fast", False, "or not", "flag"),
    BackendOption("way", "auto", "how", "text", choices=("auto", "far")),
)


@pytest.fixture
def made():
    return BackendFactory("made", describe=None, open=None, options=OPTIONS)


def test_options_are_complete_and_of_their_kind(made):
    assert made.effective_options({}) == {"parts": 2, "fast": False, "way": "auto"}
    assert made.effective_options({"parts": "3", "fast": "true", "way": "far"}) == {
        "parts": 3, "fast": True, "way": "far",
    }  # fmt: skip
    assert made.effective_options({"fast": True})["fast"] is True


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("parts", "0", "the backend option parts is '0'; it takes a whole number from 1 on"),
        ("parts", "1.5", "the backend option parts is '1.5'; it takes a whole number from 1 on"),
        ("fast", "maybe", "the backend option fast is 'maybe'; it takes true or false"),
        ("way", "near", "the backend option way is 'near'; it takes one of auto, far"),
        ("prats", "2", "the backend 'made' has no option 'prats'; it has: parts, fast, way"),
    ],
)
def test_what_an_option_does_not_take_is_refused_by_name(made, name, given, said):
    with pytest.raises(InvalidInput) as refused:
        made.effective_options({name: given})
    assert str(refused.value) == said


def serve(*arguments):
    return CliRunner().invoke(weaver, ["serve", *arguments])


def test_every_installed_backends_options_are_flags(monkeypatch, tmp_path):
    configs = []
    monkeypatch.setattr(cli, "run_server", lambda config, *_: configs.append(config))
    given = ["--data-dir", str(tmp_path), "--backend", "echoes"]
    for arguments in ([], ["--ranks", "3", "--loud"], ["--backend-option", "ranks=3", "--backend-option", "loud=yes"]):
        assert serve(*given, *arguments).exit_code == 0
    assert [dict(config.backend_options) for config in configs] == [
        {}, {"ranks": "3", "loud": True}, {"ranks": "3", "loud": "yes"},
    ]  # fmt: skip
    shown = " ".join(serve("--help").output.split())
    assert "--ranks N Backend echoes: how many processes, 2 by default; Backend replicated: how many" in shown


def test_an_option_is_given_once_and_whole_and_to_a_backend_that_has_it(tmp_path):
    where = ["--data-dir", str(tmp_path)]
    assert "the backend option ranks is given twice" in serve("--ranks", "2", "--backend-option", "ranks=2").output
    assert "--backend-option 'ranks' must be NAME=VALUE" in serve("--backend-option", "ranks").output
    assert "the backend 'peft' has no option 'ranks'; it has: none" in serve(*where, "--ranks", "2").output


@pytest.fixture
def sampling():
    return SamplerFactory("made", None, options=(Option("place", "", type="text"), Option("given", (), type="pairs")))


def test_a_samplers_options_are_texts_and_pairs(sampling):
    assert sampling.effective_options({}) == {"place": "", "given": ()}
    found = sampling.effective_options({"place": "/a=b", "given": ("a=1", "b=x=y", "c=")})
    assert found == {"place": "/a=b", "given": ("a=1", "b=x=y", "c=")}
    assert sampling.effective_options({"given": "a=1"})["given"] == ("a=1",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"given": ("a",)}, "the sampler option given is 'a'; it takes KEY=VALUE"),
        ({"given": ("=1",)}, "the sampler option given is '=1'; it takes KEY=VALUE"),
        ({"given": ("a=1", "a=2")}, "the sampler option given gives a twice"),
        ({"given": 3}, "the sampler option given is 3; it takes KEY=VALUE, as often as needed"),
        ({"plaec": "x"}, "the sampler 'made' has no option 'plaec'; it has: place, given"),
    ],
)
def test_what_a_samplers_option_does_not_take_is_refused_by_name(sampling, given, said):
    with pytest.raises(InvalidInput) as refused:
        sampling.effective_options(given)
    assert str(refused.value) == said


def test_a_samplers_options_are_flags_too(monkeypatch, tmp_path):
    configs = []
    monkeypatch.setattr(cli, "run_server", lambda config, *_: configs.append(config))
    given = ["--data-dir", str(tmp_path), "--sampler", "vllm"]
    flags = ["--vllm-python", "/p", "--vllm-arg", "a=1", "--vllm-arg", "b=2"]
    named = ["--sampler-option", "vllm-python=/p", "--sampler-option", "vllm_arg=a=1", "--vllm-arg", "b=2"]
    for arguments in ([], flags, named):
        assert serve(*given, *arguments).exit_code == 0
    assert [dict(config.sampler_options) for config in configs] == [
        {}, {"vllm_python": "/p", "vllm_arg": ("a=1", "b=2")}, {"vllm_python": "/p", "vllm_arg": ("b=2", "a=1")},
    ]  # fmt: skip
    assert all(config.backend_options == {} for config in configs)
    assert "--vllm-arg KEY=VALUE" in " ".join(serve("--help").output.split())


def test_an_option_of_another_sampler_is_refused(tmp_path):
    said = serve("--data-dir", str(tmp_path), "--vllm-python", "/p").output
    assert "the sampler 'embedded' has no option 'vllm_python'; it has: none" in said
    assert (
        "the sampler option vllm_python is given twice"
        in serve("--vllm-python", "/p", "--sampler-option", "vllm_python=/q").output
    )


def test_a_process_finds_its_place_and_its_share_of_the_cores():
    found = rank_environment(1, 2, 4567, {"OMP_NUM_THREADS": "7", "HOME": "/h"})
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    assert place.items() <= found.items()
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("127.0.0.1", "4567")
    assert (found["OMP_NUM_THREADS"], found["HOME"]) == ("7", "/h")
    assert rank_environment(0, 1_000_000, 1, {})["OMP_NUM_THREADS"] == "1"
