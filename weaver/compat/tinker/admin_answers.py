"""Tinker's answers about what was used and done. Nothing costs anything on a machine of one's own: prices are 0."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from weaver.compat.tinker.rest_answers import time_text
from weaver.compat.tinker.rest_requests import OWNER
from weaver.service.meter import CACHED_PROMPT, CHECKPOINT, HOUR, Report, Span, Usage
from weaver.service.records import Holdings
from weaver.store import Row

Json = dict[str, Any]

EVENT_PREFIXES: Final[Mapping[str, str]] = {
    "all": "",
    "checkpoints": "checkpoint_",
    "projects": "project_",
    "teams": "team_",
    "organizations": "organization_",
}
_GIGABYTE: Final = 1e9
_MICROSECOND: Final = 1e6


def usage(report: Report) -> Json:
    return {
        "data": [_usage_event(one) for one in report.usage if one.quantity],
        "sessions": {key: {"user_metadata": dict(value)} for key, value in report.user_metadata.items()},
        "cost_data_through": None,
    }


def _usage_event(one: Usage) -> Json:
    is_tokens = one.kind != CHECKPOINT
    return {
        "bucket_start": time_text(one.began),
        "bucket_end": time_text(one.began + HOUR),
        "base_model": one.base_model,
        "user_id": OWNER,
        "user_name": OWNER,
        "session_id": one.session_id,
        "project_id": one.project_id,
        "estimated_cost_usd": 0.0 if is_tokens else None,
        "effective_rate_usd_per_million_tokens": 0.0 if is_tokens else None,
        "effective_rate_usd_per_gigabyte_month": None,
        "event_info": _event_info(one.kind, one.quantity),
    }


def _event_info(kind: str, quantity: int) -> Json:
    match kind:
        case "trained":
            return {"type": "training", "token_count": quantity}
        case "prompt" | "cached_prompt":
            return {"type": "sampling_prefill", "cached": kind == CACHED_PROMPT, "token_count": quantity}
        case "sampled":
            return {"type": "sampling_sample", "token_count": quantity}
        case _:
            return {"type": "checkpoint", "count": quantity}


def storage(holdings: Mapping[str | None, Holdings]) -> Json:
    return {
        "effective_rate_usd_per_gigabyte_month": 0.0,
        "data": [
            {
                "project_id": project_id,
                "org_user_urn": OWNER,
                "user_email": None,
                "user_name": OWNER,
                "checkpoint_count": held.count,
                "size_bytes": held.size_bytes,
                "size_gigabytes": held.size_bytes / _GIGABYTE,
                "estimated_monthly_cost_usd": 0.0,
            }
            for project_id, held in holdings.items()
        ],
    }


def audit(events: Iterable[Row], event_type: str) -> Json:
    wanted = [one for one in events if one["event"].startswith(EVENT_PREFIXES[event_type])]
    return {"entries": [_entry(one) for one in wanted]}


def _entry(event: Row) -> Json:
    path = event["details"].get("tinker_path")
    return {
        "timestamp": time_text(event["at"]),
        "event": event["event"],
        "event_details": {"user_id": OWNER, **event["details"]},
        "tinker_path": path,
        "model_id": None if path is None else path.removeprefix("tinker://").partition("/")[0],
    }


def trace(spans: Sequence[Span], now: float) -> Json:
    """Chrome's trace events, which https://ui.perfetto.dev opens: a line for each model and sampler."""
    lines = {source: number for number, source in enumerate(dict.fromkeys(span.source for span in spans), 1)}
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": source}}
        for source, number in lines.items()
    ]
    return {"traceEvents": [*names, *(_trace_event(span, lines[span.source], now) for span in spans)]}


def _trace_event(span: Span, line: int, now: float) -> Json:
    return {
        "name": span.kind,
        "ph": "X",
        "pid": 1,
        "tid": line,
        "ts": span.began * _MICROSECOND,
        "dur": ((now if span.ended is None else span.ended) - span.began) * _MICROSECOND,
        "args": {"seq_id": span.seq_id, "succeeded": span.succeeded},
    }
