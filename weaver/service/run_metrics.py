"""What applications measure while they train: lines of JSON, one file for each session."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class RunMetrics:
    """Every method may be called from any thread. Session ids are the service's own, so they are names of files."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "metrics"
        self._lock = threading.Lock()

    def add(self, session_id: str, points: Sequence[Mapping[str, Any]]) -> None:
        lines = "".join(f"{json.dumps(dict(point))}\n" for point in points)
        with self._lock:
            self._folder.mkdir(exist_ok=True)
            with (self._folder / f"{session_id}.jsonl").open("a") as file:
                file.write(lines)

    def of(self, session_id: str) -> Sequence[Mapping[str, Any]]:
        """In the order they were added."""
        file = self._folder / f"{session_id}.jsonl"
        with self._lock:
            text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]
