"""Saved weights and the runs they come from."""

from datetime import datetime

from weaver.compat.tinker.types.base import Lenient
from weaver.compat.tinker.types.names import CheckpointType

_SCHEME = "tinker://"
_KINDS: dict[str, CheckpointType] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


class Checkpoint(Lenient):
    """One save: `checkpoint_id` is the end of its path, `expires_at` None means kept until deleted."""

    checkpoint_id: str
    checkpoint_type: CheckpointType
    time: datetime
    tinker_path: str
    size_bytes: int | None = None
    public: bool = False
    user_metadata: dict[str, str] | None = None
    expires_at: datetime | None = None


class ParsedCheckpointTinkerPath(Lenient):
    """A path `tinker://RUN/KIND/NAME` and what it says."""

    tinker_path: str
    training_run_id: str
    checkpoint_type: CheckpointType
    checkpoint_id: str

    @classmethod
    def from_tinker_path(cls, tinker_path: str) -> "ParsedCheckpointTinkerPath":
        """The parts of the path. Raises ValueError for any other form."""
        match tinker_path.removeprefix(_SCHEME).split("/"):
            case [run, kind, name] if tinker_path.startswith(_SCHEME) and kind in _KINDS:
                return cls(
                    tinker_path=tinker_path,
                    training_run_id=run,
                    checkpoint_type=_KINDS[kind],
                    checkpoint_id=f"{kind}/{name}",
                )
        raise ValueError(
            f"tinker_path is {tinker_path!r}; it has to be tinker://RUN/KIND/NAME with {_or(list(_KINDS))}"
        )


class Cursor(Lenient):
    """Which part of a list a page is."""

    offset: int
    limit: int
    total_count: int


class CheckpointsListResponse(Lenient):
    """Checkpoints, newest first."""

    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


class TrainingRun(Lenient):
    """A model that is or was trained, with its newest saves of both kinds."""

    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: bool
    corrupted: bool = False
    lora_rank: int | None = None
    last_request_time: datetime
    last_checkpoint: Checkpoint | None = None
    last_sampler_checkpoint: Checkpoint | None = None
    user_metadata: dict[str, str] | None = None


class TrainingRunsResponse(Lenient):
    """A page of runs."""

    training_runs: list[TrainingRun]
    cursor: Cursor


def _or(kinds: list[str]) -> str:
    return f"{', '.join(kinds[:-1])} or {kinds[-1]} as its kind"
