"""Tinker's answers about runs, checkpoints and sessions. Times are ISO 8601 in UTC."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from weaver.compat.tinker.rest_requests import FINISHED, OWNER
from weaver.engine.mismatch import Mismatch
from weaver.service.records import CheckpointInfo, Holdings, Page, RunInfo, SessionInfo

Json = dict[str, Any]

_TYPES: Final = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}


def time_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def training_run(info: RunInfo) -> Json:
    return {
        "training_run_id": info.model_id,
        "base_model": info.base_model,
        "model_owner": OWNER,
        "is_lora": True,
        "corrupted": False,
        "lora_rank": info.lora.rank,
        "last_request_time": time_text(info.last_request),
        "last_checkpoint": _optional(info.last_checkpoint),
        "last_sampler_checkpoint": _optional(info.last_sampler_checkpoint),
        "user_metadata": dict(info.user_metadata),
        **({} if info.mismatch is None else {"sampler_mismatch": _mismatch(info.mismatch)}),
    }


def _mismatch(found: Mismatch) -> Json:
    """No field of Tinker's: its SDK passes over it. In nats."""
    counts = {"sequences": found.sequences, "tokens": found.tokens}
    return {"mean": found.mean, "max": found.maximum, **counts}


def training_runs(page: Page[RunInfo]) -> Json:
    return {"training_runs": [training_run(one) for one in page.items], "cursor": _cursor(page)}


def checkpoint(info: CheckpointInfo) -> Json:
    return {
        "checkpoint_id": f"{info.kind}/{info.name}",
        "checkpoint_type": _TYPES[info.kind],
        "time": time_text(info.created),
        "tinker_path": info.path,
        "size_bytes": info.size_bytes,
        "public": info.public,
        "user_metadata": dict(info.user_metadata),
        "expires_at": None if info.expires is None else time_text(info.expires),
    }


def checkpoints(infos: Iterable[CheckpointInfo]) -> Json:
    return {"checkpoints": [checkpoint(one) for one in infos], "cursor": None}


def checkpoints_page(page: Page[CheckpointInfo]) -> Json:
    return {"checkpoints": [checkpoint(one) for one in page.items], "cursor": _cursor(page)}


def sessions(page: Page[SessionInfo]) -> Json:
    return {"sessions": [one.session_id for one in page.items], "cursor": _cursor(page)}


def session(info: SessionInfo, runs: Iterable[str], samplers: Iterable[str]) -> Json:
    return {
        "training_run_ids": list(runs),
        "sampler_ids": list(samplers),
        "user_metadata": dict(info.user_metadata),
        "display_name": info.display_name,
    }


def found_sessions(infos: Sequence[SessionInfo], holdings: Mapping[str, Holdings], *, more: bool) -> Json:
    last = infos[-1] if more else None
    return {
        "sessions": [_summary(one, holdings[one.session_id]) for one in infos],
        "next_cursor": None
        if last is None
        else {"last_created_at": time_text(last.created), "last_session_id": last.session_id},
    }


def _summary(info: SessionInfo, holdings: Holdings) -> Json:
    return {
        "session_id": info.session_id,
        "created_at": time_text(info.created),
        "owner": OWNER,
        "project_id": info.project_id or "",
        "status": _status(info),
        "checkpoints_count": holdings.count,
        "checkpoint_storage_bytes": holdings.size_bytes,
        "display_name": info.display_name,
        "user_metadata": dict(info.user_metadata),
    }


def _status(info: SessionInfo) -> Json | None:
    """None for a session that nobody finished and nobody keeps alive."""
    if info.ended is None:
        return {"type": "active"}
    if info.ended in FINISHED:
        return {"type": "client_finished", "reason": {"type": info.ended}, "detail": info.ended_detail}
    return None


def _optional(info: CheckpointInfo | None) -> Json | None:
    return None if info is None else checkpoint(info)


def _cursor(page: Page[Any]) -> Json:
    return {"offset": page.offset, "limit": page.limit, "total_count": page.total}
