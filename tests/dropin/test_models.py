"""Which model a name stands for, where there is no server that says so."""

import os

import pytest

from weaver.config import DEMO_MODEL, in_process_config, model_aliases
from weaver.errors import InvalidInput


def aliases(environment, folder):
    found = {source.name: source.location for source in model_aliases(environment, folder)}
    found.pop(DEMO_MODEL, None)
    return found


def test_a_file_in_the_folder_or_above_it_is_read(tmp_path):
    (tmp_path / "weaver.toml").write_text('[models]\n"Qwen/Qwen3-8B" = "demo"\nsmall = "models/small"\n')
    (tmp_path / "models/small").mkdir(parents=True)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    expected = {"Qwen/Qwen3-8B": "demo", "small": str(tmp_path / "models/small")}
    assert aliases({}, tmp_path) == aliases({}, below) == expected


def test_the_environment_names_another_file_and_goes_over_it(tmp_path):
    (tmp_path / "weaver.toml").write_text("[models]\nno = 'demo'\n")
    (tmp_path / "other.toml").write_text("[models]\na = 'one'\nb = 'two'\n")
    environment = {"WEAVER_CONFIG": str(tmp_path / "other.toml"), "WEAVER_MODEL_ALIASES": "b=three, c = four,"}
    assert aliases(environment, tmp_path) == {"a": "one", "b": "three", "c": "four"}


def test_without_either_there_are_none(tmp_path):
    assert aliases({}, tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[models", "cannot be read"),
        ("[model]\na = 'b'\n", r"one table in it, \[models\]"),
        ("models = 3\n", "lines like"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path, text, why):
    (tmp_path / "weaver.toml").write_text(text)
    with pytest.raises(InvalidInput, match=why):
        model_aliases({}, tmp_path)
    with pytest.raises(InvalidInput, match="cannot be read"):
        model_aliases({"WEAVER_CONFIG": str(tmp_path / "nothing.toml")}, tmp_path)


@pytest.mark.parametrize("pair", ["a", "a=", "=b"])
def test_an_alias_that_is_none_is_told(tmp_path, pair):
    with pytest.raises(InvalidInput, match="NAME=HUB_ID_OR_FOLDER"):
        model_aliases({"WEAVER_MODEL_ALIASES": f"x=y,{pair}"}, tmp_path)


def test_the_demo_models_name_is_one_unless_something_else_is_said(tmp_path):
    assert DEMO_MODEL in {source.name for source in model_aliases({}, tmp_path)}
    sources = model_aliases({"WEAVER_MODEL_ALIASES": f"{DEMO_MODEL}=elsewhere"}, tmp_path)
    assert {source.name: source.location for source in sources}[DEMO_MODEL] == "elsewhere"


def test_a_process_loads_any_model_and_keeps_its_things_where_the_server_does(tmp_path):
    config = in_process_config(environment={**os.environ, "WEAVER_DATA_DIR": str(tmp_path)})
    assert config.any_model
    assert config.data_dir == tmp_path
    assert in_process_config(tmp_path / "x").data_dir == tmp_path / "x"
