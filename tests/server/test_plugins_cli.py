"""`weaver plugins` in a process of its own, with packages as pip leaves them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

YIELDS = """
from weaver.hookspecs import hookimpl
from weaver.loss import ConfigField, Loss, LossInput, OutputField

@hookimpl
def weaver_losses():
    yield Loss(
        {name!r}, print, (LossInput("pairs", "int64", "scalar", "which is better", optional=True),),
        (ConfigField("form", type="text", choices=("a", "b")), ConfigField("times", 2, 1, 5, type="int")),
        "a loss for tests", "nobody 2026", batch=True, outputs=(OutputField("margin", "scalar"),),
    )
"""


@pytest.fixture
def site(tmp_path):
    """A folder of installed packages; calling it installs one more."""

    def install(package, source, version="1.0", entry_point=None):
        module = package.replace("-", "_")
        metadata = tmp_path / f"{module}-{version}.dist-info"
        metadata.mkdir()
        (tmp_path / f"{module}.py").write_text(source)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[weaver]\n{entry_point or module} = {module}\n")

    install.folder = tmp_path
    return install


def weaver(*arguments, site=None, **environment):
    path = {} if site is None else {"PYTHONPATH": str(site.folder)}
    command = [sys.executable, "-m", "weaver.server.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | path | environment, check=False
    )


def test_the_table_has_packages_versions_hooks_names_and_what_failed(site):
    site("weaver-mine", YIELDS.format(name="mine"), "0.4")
    site("weaver-broken", "import no_such_package")
    table = weaver("plugins", site=site).stdout
    rows = {" ".join(line.split()) for line in table.splitlines()}
    assert "weaver-mine 0.4 weaver_losses mine" in rows
    assert "weaver-train 0.1.0 weaver_samplers embedded" in rows
    assert "weaver-train 0.1.0 weaver_checkpoint_stores file, s3, gs, memory" in rows
    failed = "could not be imported: weaver-broken 1.0: ModuleNotFoundError: No module named 'no_such_package'"
    assert failed in rows


def test_a_plugin_that_is_left_out_is_told_of(site):
    site("weaver-mine", YIELDS.format(name="mine"))
    for name in ("weaver_mine", "weaver-mine", "weaver-mine 1.0"):
        told = weaver("plugins", site=site, WEAVER_DISABLE_PLUGINS=name).stdout
        assert f"left out by WEAVER_DISABLE_PLUGINS: {name}" in told
        assert "weaver_losses     mine" not in told
        assert "weaver-mine   1.0" not in told


def test_a_strict_server_does_not_start_with_a_plugin_that_cannot_be_imported(site, tmp_path):
    site("weaver-broken", "raise OSError('libcuda.so')")
    serve = ("serve", "--model", "m=echo:", "--backend", "echo", "--sampler", "echo", "--data-dir", tmp_path / "data")
    refused = weaver(*serve, site=site, WEAVER_STRICT_PLUGINS="1")
    assert refused.returncode == 1
    assert "the plugin weaver-broken 1.0 could not be imported: OSError: libcuda.so." in refused.stderr
    assert "WEAVER_DISABLE_PLUGINS" in refused.stderr
    assert weaver("plugins", site=site, WEAVER_STRICT_PLUGINS="yes").stderr.strip().endswith("set it to 1 or 0")


def test_a_loss_is_shown_as_its_record_says(site):
    site("weaver-mine", YIELDS.format(name="mine"), "0.4")
    assert weaver("plugins", "show", "mine", site=site).stdout.splitlines() == [
        "loss mine: a loss for tests",
        "  plugin: weaver-mine 0.4",
        "  source: nobody 2026",
        "  sees: the whole batch",
        "  targets: (T,) or (T, K)",
        "  input pairs: int64, one per sequence, optional -- which is better",
        "  config form: text, a | b, must be given",
        "  config times: int, 1 to 5, default 2",
        "  output margin: float32, one per sequence",
    ]
    echo = weaver("plugins", "show", "echo").stdout
    assert echo.splitlines()[:2] == ["backend echo: a toy without torch", "  plugin: weaver.plugins.echo"]
    unknown = weaver("plugins", "show", "mine")
    assert unknown.returncode == 1
    assert "there is no record 'mine'; there are: cispo, cross_entropy" in unknown.stderr


def test_a_new_loss_is_a_package_whose_tests_pass_at_once(tmp_path):
    """Written, installed by pip, tested, and there in `weaver plugins`."""
    package, site = tmp_path / "new", tmp_path / "site"
    written = weaver("plugins", "new", "loss", "my_first", package)
    assert written.returncode == 0, written.stderr
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site, package]
    subprocess.run(pip, check=True, timeout=120, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(site)}
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package)]
    done = subprocess.run(pytest_run, capture_output=True, text=True, timeout=120, env=environment, cwd=package)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    shown = weaver("plugins", "show", "my_first", PYTHONPATH=str(site)).stdout
    assert "plugin: weaver-my-first 0.1.0" in shown
    lines = [line for line in (package / "weaver_my_first.py").read_text().splitlines() if line.strip()]
    assert len(lines) < 25


@pytest.mark.parametrize(
    ("name", "message"), [("My", "must be lower-case"), ("class", "must be lower-case"), ("a-b", "")]
)
def test_a_name_that_python_cannot_import_is_refused(tmp_path, name, message):
    refused = weaver("plugins", "new", "loss", name, tmp_path / "new")
    assert refused.returncode == 1
    assert message in refused.stderr
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    refused = weaver("plugins", "new", "loss", "first", tmp_path)
    assert refused.returncode == 1
    assert "is there already and not empty; nothing was written" in refused.stderr
    assert [file.name for file in Path(tmp_path).iterdir()] == ["mine.txt"]
