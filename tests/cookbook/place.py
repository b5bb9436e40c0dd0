"""Where a release's recipes run: its Python, a server's data, and the workbench folders, all made anew."""

import os
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import data
from cases import BASE, CHAT
from untied import write_untied

ROOT = Path(__file__).parents[2]

DEMO, UNTIED = "demo", "untied"
"""What stands for a name: the demo model, or a copy of it whose output layer is no longer tied to its embedding."""

WORKBENCHES: Mapping[str, tuple[str, tuple[str, ...], Callable[[Path], None]]] = {
    "recipes": (DEMO, (CHAT, BASE), data.write_for_recipes),
    "fixed-batches": (DEMO, (CHAT, BASE), data.write_for_fixed_batches),
    "upstream": (DEMO, ("Qwen/Qwen3.5-9B-Base", "Qwen/Qwen3.5-9B", "Qwen/Qwen3.5-4B"), data.write_for_upstream),
    "upstream-untied": (UNTIED, ("Qwen/Qwen3.5-4B",), data.write_for_upstream_weights),
}

SHIM = """#!/bin/sh
# Upstream's tests run `uv run python -m MODULE ...`: the same module, by the command that is being tried.
shift 2
exec $COOKBOOK_PYTHON "$@"
"""


@dataclass(frozen=True)
class Place:
    """`folder` is emptied when the place is made: caches of datasets would hand out yesterday's rows."""

    release: str
    folder: Path

    @property
    def venv(self) -> Path:
        return ROOT / ".venvs" / f"cookbook-{self.release}"

    @property
    def python(self) -> str:
        return str(self.venv / "bin/python")

    @property
    def weaver(self) -> list[str]:
        return [self.python, "-m", "weaver.server.cli"]

    @property
    def sdist(self) -> Path:
        return self.venv / "sdist"

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def workbench(self, name: str) -> Path:
        return self.folder / "workbench" / name

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in (self.data_dir, self.runs, self.folder / "bin", self.folder / "logs"):
            folder.mkdir(parents=True)
        shim = self.folder / "bin/uv"
        shim.write_text(SHIM)
        shim.chmod(0o755)

    def environment(self, workbench: str, **more: str) -> dict[str, str]:
        """Without a network, and with nothing of the caller's that points elsewhere."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("TINKER_", "HF_", "WEAVER_"))}
        return kept | {
            "PATH": f"{self.folder / 'bin'}:{self.venv / 'bin'}:{os.environ['PATH']}",
            "TINKER_API_KEY": "tml-cookbook",
            "TINKER_TELEMETRY": "0",
            "TINKER_COOKBOOK_RUNS_DIR": str(self.runs),
            "HF_HOME": str(self.folder / "hf" / workbench),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_WAIT_POLICY": "PASSIVE",
            **more,
        }

    def write_workbench(self, name: str) -> list[str]:
        """The folder as `weaver workbench` writes it, and the datasets; the `--model` values it says to serve."""
        model, names, write_data = WORKBENCHES[name]
        location = model if model == DEMO else str(write_untied(self.folder.parent / UNTIED))
        models = self.add_aliases(name, [f"{alias}={location}" for alias in names])
        write_data(self.workbench(name))
        return models

    def add_aliases(self, workbench: str, aliases: Sequence[str]) -> list[str]:
        options = [word for alias in aliases for word in ("--alias", alias)]
        command = ["workbench", str(self.workbench(workbench)), *options]
        [line] = [line for line in self._weaver_says(command).splitlines() if line.startswith("  weaver serve ")]
        words = shlex.split(line)
        return [value for option, value in pairwise(words) if option == "--model"]

    def merge(self, state_path: str, name: str) -> Path:
        """A saved adapter merged into the demo model: a folder that can be served as a base model itself."""
        out = self.folder / "merged" / name
        out.parent.mkdir(exist_ok=True)
        shutil.rmtree(out, ignore_errors=True)
        options = ["--model", f"{CHAT}=demo", "--data-dir", str(self.data_dir)]
        self._weaver_says(["adapter", "merge", state_path, str(out), *options])
        return out

    def _weaver_says(self, command: Sequence[str]) -> str:
        done = subprocess.run(
            [*self.weaver, *command],
            cwd=self.folder,
            env=self.environment("none"),
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode != 0:
            raise RuntimeError(f"weaver {command[0]} failed: {done.stderr}")
        return done.stdout

    def _rows(self, question: str) -> list[tuple[object, ...]]:
        file = self.data_dir / "weaver.sqlite"
        if not file.is_file():
            return []
        connection = sqlite3.connect(file, timeout=60)
        try:
            return connection.execute(question).fetchall()
        finally:
            connection.close()

    def trained_tokens(self) -> int:
        [[count]] = self._rows("SELECT coalesce(sum(quantity), 0) FROM usage WHERE kind = 'trained'") or [[0]]
        return int(str(count))

    def kept_checkpoints(self) -> set[str]:
        return {str(path) for (path,) in self._rows("SELECT path FROM checkpoints")}
