"""The operations of one model, as requests. Data are read when a method is called; what it returns is still to come."""

from collections.abc import Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final

from weaver.client.connection import Connection
from weaver.client.operations import Operation
from weaver.client.references import checkpoint_id
from weaver.client.transports.contract import Json
from weaver.types import AdamParams, Checkpoint, Datum, SampleRef, SampleRefLength
from weaver.types.datum import identified, message

SAMPLER_TTL: Final = 3600
"""Weights for sampling are kept for an hour unless their user says otherwise."""
MOST_METRICS: Final = 1000
MOST_REFS: Final = 4096
_REPLAY: Final = "Attach router replay metadata to each Datum via datum.metadata['router_replay']."


class Unset:
    """Nothing was said; None is something."""

    def __repr__(self) -> str:
        return "<UNSET>"

    def __bool__(self) -> bool:
        return False


UNSET: Final = Unset()


class Training:
    """Requests about one model."""

    def __init__(self, connection: Connection, model_id: str, session_id: str) -> None:
        self.connection, self.model_id, self.session_id = connection, model_id, session_id

    def run_pass(
        self,
        kind: str,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
        router_replay: Any,
    ) -> Coroutine[Any, Any, Operation]:
        """`kind` is forward or forward_backward. The arrays in it are its own."""
        kept = any(datum.is_sample_ref for datum in data)
        if kept and (kind != "forward_backward" or loss_fn != "cross_entropy"):
            raise ValueError("SampleRef data only supports built-in cross_entropy forward_backward")
        about = _metadata(metadata, router_replay)
        asked: Json = {"loss_fn": loss_fn, "data": [message(datum, listed=False) for datum in identified(data)]}
        if loss_fn_config:
            asked["loss_fn_config"] = dict(loss_fn_config)
        return self._numbered(f"{kind.replace('_', '-')}-passes", {f"{kind}_input": asked, **about})

    def optim_step(self, params: AdamParams) -> Coroutine[Any, Any, Operation]:
        return self._numbered("optimizer-steps", {"adam_params": params.to_payload()})

    async def _numbered(self, route: str, payload: Json) -> Operation:
        async with self.connection.order(self.model_id):
            number = self.connection.next_number(self.model_id)
            body = {"model_id": self.model_id, "seq_id": number, "tensor_transport": "default", **payload}
            if "adam_params" in payload:
                del body["tensor_transport"]
            return await self._accepted(route, {"payload": body})

    async def export_sampler(self, name: str | None, ttl_seconds: int | None) -> Operation:
        async with self.connection.order(self.model_id):
            body: Json = {"seq_id": self.connection.next_number(self.model_id)}
            body |= {"path": name} if name else {}
            body |= {} if ttl_seconds is None else {"ttl_seconds": ttl_seconds}
            return await self._accepted("export-sampler", body)

    async def save_state(self, name: str | None, kind: str, ttl_seconds: int | Unset | None) -> Operation:
        body: Json = {"type": kind} | ({} if name is None else {"name": name})
        if not isinstance(ttl_seconds, Unset):
            body["ttl_seconds"] = ttl_seconds
        elif kind == "sampling":
            body["ttl_seconds"] = SAMPLER_TTL
        async with self.connection.order(self.model_id):
            return await self._accepted("checkpoints", body)

    async def load(self, checkpoint: str | Checkpoint, *, optimizer: bool) -> Operation:
        async with self.connection.order(self.model_id):
            return await self._accepted("load", {"path": _path(checkpoint), "include_optimizer": optimizer})

    async def _accepted(self, route: str, body: Json) -> Operation:
        path = f"/models/{self.model_id}/{route}"
        return self.operation(await self.connection.request("POST", path, body=body, attempts=1))

    def operation(self, payload: Json) -> Operation:
        """Of a service's answer; it is seen through when the client is closed."""
        made = Operation(self.connection, payload)
        if not made.is_done:
            self.connection.under_way(made)
        return made

    async def checkpoints(self) -> list[Checkpoint]:
        return [Checkpoint.from_payload(item) for item in await self._listed()]

    async def _listed(self) -> list[Json]:
        answer = await self.connection.request("GET", f"/models/{self.model_id}/checkpoints")
        return list(answer["items"])

    async def set_ttl(self, checkpoint: str | Checkpoint, ttl_seconds: int | None) -> Json:
        body = {"path": _path(checkpoint), "ttl_seconds": ttl_seconds}
        answer: Json = await self.connection.request("PATCH", f"/models/{self.model_id}/checkpoints/ttl", body=body)
        return answer

    async def export(
        self, checkpoint: str | Checkpoint | None, *, merge_adapter: bool, ttl_seconds: int | None, force: bool
    ) -> Json | Operation:
        """The artifact where there is one already, else the operation that makes it."""
        body: Json = {"format": "huggingface", "merge_adapter": merge_adapter, "ttl_seconds": ttl_seconds}
        if checkpoint is None:
            path = f"/models/{self.model_id}/export-hf"
        else:
            path, body["force"] = f"/checkpoints/{await self._checkpoint_id(checkpoint)}/export", force
        async with self.connection.order(self.model_id):
            answer: Json = await self.connection.request("POST", path, body=body, attempts=1)
        return answer if "kind" in answer else self.operation(answer)

    async def deploy(self, checkpoint: str | Checkpoint, body: Json) -> Operation:
        path = f"/checkpoints/{await self._checkpoint_id(checkpoint)}/deployments"
        return self.operation(await self.connection.request("POST", path, body=body, attempts=1))

    async def _checkpoint_id(self, checkpoint: str | Checkpoint) -> str:
        listed = await self._listed() if isinstance(checkpoint, str) and "://" in checkpoint else []
        return checkpoint_id(checkpoint, self.model_id, listed)

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int,
        occurred_at: datetime | None,
        labels: Mapping[str, Any] | None,
    ) -> Coroutine[Any, Any, None]:
        """Raises ValueError for what is no finite number of a name at a step."""
        if step < 0:
            raise ValueError("step must be non-negative")
        if len(metrics) > MOST_METRICS:
            raise ValueError(f"at most {MOST_METRICS} metrics may be logged per call")
        at = occurred_at or datetime.now(UTC)
        common = {
            "model_id": self.model_id,
            "step": step,
            "occurred_at": (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat(),
            "labels": dict(labels or {}),
        }
        points = []
        for name, value in metrics.items():
            if not str(name).strip():
                raise ValueError("metric names must not be empty")
            if not isfinite(value):
                raise ValueError(f"metric {name!r} must be finite")
            points.append({**common, "name": str(name).strip(), "value": float(value)})
        return self._log(points)

    async def _log(self, points: list[Json]) -> None:
        if points:
            await self.connection.request("POST", f"/sessions/{self.session_id}/metrics", body={"metrics": points})

    async def lengths(self, refs: Sequence[SampleRef]) -> list[SampleRefLength]:
        """Raises ValueError for an answer that is not about these."""
        found: list[SampleRefLength] = []
        for start in range(0, len(refs), MOST_REFS):
            asked = refs[start : start + MOST_REFS]
            body = {"items": [ref.to_payload() for ref in asked]}
            path = f"/models/{self.model_id}/managed-dataset-sample-lengths"
            answer = await self.connection.request("POST", path, body=body, attempts=1)
            lengths = [SampleRefLength.from_payload(item) for item in answer["items"]]
            if [one.sample_ref for one in lengths] != list(asked):
                raise ValueError("the sample lengths are not those of the samples asked for, in their order")
            found += lengths
        return found


def _metadata(metadata: Mapping[str, Any] | None, router_replay: Any) -> Json:
    if router_replay is not None:
        raise ValueError(f"router_replay= is no longer accepted at request level. {_REPLAY}")
    if "router_replay" in (metadata or {}):
        raise ValueError(f"metadata['router_replay'] is no longer accepted at request level. {_REPLAY}")
    return {"metadata": dict(metadata)} if metadata else {}


def _path(checkpoint: str | Checkpoint) -> str:
    return checkpoint.path if isinstance(checkpoint, Checkpoint) else checkpoint
