"""What an operator can set, and the only place that reads the environment."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from weaver.backend import ModelSource


class Config(BaseModel):
    """Everything `weaver serve` and an in-process service run by. Unknown keys are refused.

    `gap_seconds`: how long a lane waits for a sequence number that never arrives (longer than the five minutes for
    which Tinker's SDK retries a submit). `result_seconds`: how long a result stays after it was first fetched.
    `unfetched_seconds`: how long one stays that nobody fetches. `lease_seconds`: how long a session lives after its
    last heartbeat or request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[ModelSource, ...]
    data_dir: Path
    backend: str = "peft"
    sampler: str = "embedded"
    api_keys: tuple[str, ...] = ()
    gap_seconds: float = Field(default=330.0, gt=0)
    result_seconds: float = Field(default=600.0, gt=0)
    unfetched_seconds: float = Field(default=86_400.0, gt=0)
    lease_seconds: float = Field(default=3600.0, gt=0)
    disabled_plugins: frozenset[str] = frozenset()


def default_data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where checkpoints and the database lie unless `--data-dir` says otherwise."""
    if chosen := environment.get("WEAVER_DATA_DIR"):
        return Path(chosen)
    return Path(environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "weaver"


def disabled_plugins(environment: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The plugins named in WEAVER_DISABLE_PLUGINS, a comma-separated list."""
    names = environment.get("WEAVER_DISABLE_PLUGINS", "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


def prepare_threads(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Choose how idle OpenMP threads wait; must run before torch is first imported.

    Spinning threads collapse as soon as a trainer, a sampler and a server share few cores (measured: 44 -> 1 tok/s on
    two). Passive waiting costs a little on an idle machine and nothing collapses. Whoever has set it decides.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
