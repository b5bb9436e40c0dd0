"""What is wrong with packages that pip has installed: messages name the packages with their versions, and what to do
about it, and doing that helps."""

import re
import sys
from pathlib import Path

import pytest
import tinker

sys.path.insert(0, str(Path(__file__).parent))

from package_environments import ECHO, run

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"

[project.entry-points.weaver]
{entry_point} = "{module}"

[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]
"""
YIELDS = """
from weaver.hookspecs import hookimpl
from weaver.loss import Loss

@hookimpl
def weaver_losses():
    yield Loss({loss!r}, print)
"""
PACKAGES = {
    "weaver-one": ("0.2", YIELDS.format(loss="same")),
    "weaver-two": ("1.0rc1", YIELDS.format(loss="same")),
    "weaver-three": ("1.1", YIELDS.format(loss="three")),
    "weaver-four": ("2.0", YIELDS.format(loss="four")),
    "weaver-five": ("3.0", YIELDS.format(loss="five")),
    "weaver-six": ("3.1", YIELDS.format(loss="six")),
    "weaver-misspelt": ("0.3", YIELDS.format(loss="a").replace("weaver_losses", "weaver_loses")),
    "weaver-argument": ("0.4", YIELDS.format(loss="a").replace("weaver_losses()", "weaver_losses(registry)")),
    "weaver-lame": ("0.5", "import no_such_package"),
    "weaver-raising": ("0.6", YIELDS.format(loss="a") + "    raise KeyError('oh')\n"),
}
ENTRY_POINTS = {"weaver-three": "mine", "weaver-four": "mine", "weaver-five": "plugin", "weaver-six": "plugin"}
MODULES = {"weaver-five": "plugin", "weaver-six": "plugin"}
REMEDY = r"Mend or uninstall it, or name it in WEAVER_DISABLE_PLUGINS\.\n$"
REFUSED = {
    ("weaver-one", "weaver-two"): (
        r"two plugins register the loss 'same': (weaver-one 0\.2 and weaver-two 1\.0rc1|weaver-two 1\.0rc1 and weaver-"
        r"one 0\.2)\. Uninstall one, or name one in WEAVER_DISABLE_PLUGINS\.",
        "weaver-two",
    ),
    ("weaver-three", "weaver-four"): (
        r"two packages have an entry point 'mine': (weaver-three 1\.1 and weaver-four 2\.0|weaver-four 2\.0 and weaver-"
        r"three 1\.1)\. Uninstall one, or name one in WEAVER_DISABLE_PLUGINS\.",
        "weaver-four",
    ),
    ("weaver-five", "weaver-six"): (
        r"two packages have an entry point 'plugin': weaver-\w+ 3\.. and weaver-\w+ 3\..\. Uninstall one, or",
        "weaver-six",
    ),
    ("weaver-misspelt",): (
        r"the plugin weaver-misspelt 0\.3 breaks the contract in weaver\.hookspecs: .*'weaver_loses'.* The hooks are "
        r"weaver_losses, .*" + REMEDY,
        "weaver-misspelt",
    ),
    ("weaver-argument",): (
        r"the plugin weaver-argument 0\.4 breaks the contract in weaver\.hookspecs: .*registry.*" + REMEDY,
        "weaver-argument",
    ),
    ("weaver-raising",): (r"weaver-raising 0\.6: weaver_losses raised KeyError: 'oh'\. " + REMEDY, "weaver-raising"),
}
"""By the packages that are installed: what is said, and whose disabling mends it."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The wheels of all of them, by name."""
    sources, wheels = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheels")
    for name, (version, source) in PACKAGES.items():
        folder, module = sources / name, MODULES.get(name, name.replace("-", "_"))
        folder.mkdir()
        (folder / f"{module}.py").write_text(source)
        entry_point = ENTRY_POINTS.get(name, module)
        project = PROJECT.format(name=name, version=version, module=module, entry_point=entry_point)
        (folder / "pyproject.toml").write_text(project)
    build = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps"]
    done = run(*build, "--no-build-isolation", "--wheel-dir", wheels, *sources.iterdir())
    assert done.returncode == 0, done.stderr
    return {wheel.name.split("-")[0].replace("_", "-"): wheel for wheel in wheels.iterdir()}


@pytest.fixture(scope="module")
def environment(new_environment):
    return new_environment()


@pytest.fixture
def install(environment, broken):
    """Installs some of them, and takes them away again."""
    installed = []

    def install(*names):
        environment.install(*(broken[name] for name in names))
        installed.extend(names)

    yield install
    environment.uninstall(*installed)


@pytest.mark.parametrize("names", REFUSED, ids=" and ".join)
def test_a_server_does_not_start_and_says_who_is_to_blame(environment, install, tmp_path, names):
    message, disabled = REFUSED[names]
    install(*names)
    refused = environment.run("weaver", "serve", "--port", "0", "--data-dir", tmp_path / "data", *ECHO)
    assert refused.returncode == 1
    assert re.search(f"^Error: {message}", refused.stderr, re.DOTALL), refused.stderr
    assert not (tmp_path / "data").exists()
    mended = environment.run("weaver", "plugins", WEAVER_DISABLE_PLUGINS=disabled)
    assert mended.returncode == 0, mended.stderr
    for name in names:
        assert (f"{name} " in mended.stdout) == (name != disabled)
    assert f"left out by WEAVER_DISABLE_PLUGINS: {disabled}" in mended.stdout


def test_a_package_that_cannot_be_imported_is_named_where_a_name_is_missed(environment, install, tmp_path):
    install("weaver-lame", "weaver-three")
    why = "ModuleNotFoundError: No module named 'no_such_package'"
    with environment.serve(*ECHO, data_dir=tmp_path / "data") as url:
        client = tinker.ServiceClient(base_url=url, api_key="tml-test").create_lora_training_client("m").result()
        datum = tinker.Datum(tinker.ModelInput.from_ints([5]), {"target_tokens": [7]})
        with pytest.raises(tinker.BadRequestError) as missed:
            client.forward_backward([datum], "lame").result()
    said = str(missed.value)
    assert "there is no loss 'lame'; there are: cispo," in said
    assert ", three, " in said
    assert ". The plugin weaver-lame 0.5 is installed but could not be imported: " + why in said
    strict = environment.run("weaver", "plugins", WEAVER_STRICT_PLUGINS="1")
    assert strict.returncode == 1
    assert f"the plugin weaver-lame 0.5 could not be imported: {why}. Mend or uninstall it" in strict.stderr
