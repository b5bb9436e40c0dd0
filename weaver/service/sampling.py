"""Sampling sessions: what is sampled from, and which requests have been seen."""

import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from weaver.domain import AdapterRef, Inflight, IntArray, Listener, SampleRequest, SampleResult, SamplingParams
from weaver.engine.executor import adapter_id
from weaver.engine.fingerprint import Fingerprint, differences, fingerprint, parts_of
from weaver.engine.mismatch import MismatchWatch
from weaver.errors import Forgotten, InvalidInput, SequenceRefused
from weaver.service import door
from weaver.service.base_models import BaseModels
from weaver.service.completions import Completions, client_of
from weaver.service.futures import FutureTable
from weaver.service.meter import Meter
from weaver.service.recorded import RecordedSequences
from weaver.service.records import CheckpointInfo, Completion, SamplerInfo, SampleTicket
from weaver.store import Row, Store

REMEMBERED = 100_000
"""How many past sample requests can still be repeated."""

_NOT_SAMPLED = {"weights": "a training state", "external_weights": "an export"}


class SamplingSessions:
    """A session samples from one base model or one immutable adapter; rows in the store outlive a restart."""

    def __init__(
        self,
        base_models: BaseModels,
        store: Store,
        futures: FutureTable,
        recorded: RecordedSequences,
        meter: Meter,
        watch: MismatchWatch,
        data_dir: Path,
    ) -> None:
        self._base_models, self._store, self._futures, self._data_dir = base_models, store, futures, data_dir
        self._recorded, self._meter, self._watch = recorded, meter, watch
        self.completions = Completions()
        self._lock = threading.Lock()
        self._created: dict[tuple[str, int], tuple[Fingerprint, str]] = {}
        self._seen: OrderedDict[tuple[str, int], tuple[Fingerprint, str]] = OrderedDict()

    def create(self, session_id: str, seq_id: int, base_model: str | None, saved: CheckpointInfo | None) -> str:
        """A new sampling session, or the first one's id for a repeat of (session_id, seq_id)."""
        name = _base_model_name(base_model, saved)
        self._base_models.facts(name)
        asked = fingerprint(base_model=base_model, model_path=None if saved is None else saved.path)
        with self._lock:
            first = self._created.get((session_id, seq_id))
            if first is None:
                sampler_id = f"{session_id}:sample:{uuid.uuid4().hex[:12]}"
                self._add(session_id, sampler_id, name, saved)
                first = self._created[session_id, seq_id] = (asked, sampler_id)
        if first[0] != asked:
            raise SequenceRefused(
                f"sampling_session_seq_id {seq_id} was used with another {differences(first[0], asked)}; "
                "use a new number"
            )
        return first[1]

    def info(self, sampling_session_id: str) -> SamplerInfo:
        row = self._row(sampling_session_id)
        return SamplerInfo(sampling_session_id, row["base_model"], row["model_path"])

    def join(self, sampling_session_id: str) -> int:
        """A number for one more client of the sampling session, unique among them."""
        self._row(sampling_session_id)
        return self._store.add_clone(sampling_session_id)

    def settled(
        self, sampling_session_id: str, clone: int, cursor: int
    ) -> "tuple[list[Completion], int, Future[None]]":
        """The requests of one client that settled since the cursor, the new cursor, and what settles with the next."""
        self._row(sampling_session_id)
        return self.completions.after((sampling_session_id, clone), cursor)

    def sample(
        self,
        sampling_session_id: str,
        seq_id: int,
        *,
        prompt: IntArray,
        num_samples: int,
        max_tokens: int | None,
        questions: Mapping[str, Any],
        options: Mapping[str, Any],
        record: bool,
        listener: Listener | None = None,
    ) -> SampleTicket:
        """Queue a request, or find the ticket of the first one for an exact repeat."""
        row = self._row(sampling_session_id)
        facts = self._base_models.facts(row["base_model"])
        door.check_prompt(prompt, facts)
        params = SamplingParams(door.effective_max_tokens(max_tokens, len(prompt), facts), **options)
        door.check_sampling_params(params, facts)
        adapter, inflight = self._weights(row)
        request = SampleRequest(prompt, num_samples, params, adapter, inflight=inflight, listener=listener, **questions)
        door.check_sampling(request, facts)
        with self._lock:
            return self._queue((sampling_session_id, seq_id), row, request, record)

    def tidy(self) -> None:
        """Drop what only says that a result is there, of results that are not any more."""
        self.completions.keep(self._futures.knows)

    def end_session(self, session_id: str) -> None:
        """Free the nameless snapshots of a session, and what was noted of its requests."""
        self.completions.forget_session(session_id)
        with self._lock:
            for created in [key for key in self._created if key[0] == session_id]:
                del self._created[created]
            for seen in [key for key in self._seen if key[0].startswith(f"{session_id}:")]:
                del self._seen[seen]
        for row in self._store.samplers_of(session_id):
            if row["adapter_id"] is not None and row["model_path"] is None:
                self._base_models.sampler(row["base_model"]).forget(row["adapter_id"])

    def _queue(self, key: tuple[str, int], row: Row, request: SampleRequest, record: bool) -> SampleTicket:
        # These may be newer when it is repeated, and who listens is no part of what is asked.
        parts = parts_of(replace(request, adapter=None, inflight=None, listener=None))
        asked = fingerprint(**parts, record_stability_info=record)
        if key in self._seen:
            first_asked, first = self._seen[key]
            if first_asked != asked:
                raise SequenceRefused(
                    f"seq_id {key[1]} of sampler {key[0]} was used by a different request: this one has another "
                    f"{differences(first_asked, asked)}; a retry must repeat the request exactly"
                )
            return _ticket(first, request)
        sampled = self._base_models.sampler(row["base_model"]).sample(request)
        sampled.add_done_callback(lambda done: self._compare(request, done))  # before its client can hear of it
        request_id = uuid.uuid4().hex
        ticket = _ticket(request_id, request)
        future: Future[SampleResult] = sampled
        if record:
            future = self._recorded.recorded(sampled, row["session_id"], ticket.sequence_ids)
        self._futures.add(request_id, future, cancellable=True, waits_for=sampled.waits_for)
        self._meter.sampling(key, request, future)
        self.completions.watch(client_of(*key), request_id, future)
        self._seen[key] = (asked, request_id)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return ticket

    def _compare(self, request: SampleRequest, done: "Future[SampleResult]") -> None:
        if not done.cancelled() and done.exception() is None:
            self._watch.sampled(request, done.result())

    def _weights(self, row: Row) -> tuple[AdapterRef | None, Inflight | None]:
        """What a request of the sampling session begins with, and whose newer weights it follows."""
        if row["folder"] is None:
            return None, None
        newest = self._store.newest_inflight(row["sampling_session_id"])
        if newest is None:
            return AdapterRef(row["adapter_id"], self._data_dir / row["folder"]), None
        inflight = Inflight(newest["model_id"], newest["version"], row["sampling_session_id"])
        return AdapterRef(newest["adapter_id"], self._data_dir / newest["folder"]), inflight

    def _add(self, session_id: str, sampler_id: str, base_model: str, saved: CheckpointInfo | None) -> None:
        row = None if saved is None else self._store.checkpoint(saved.path)
        self._store.add_sampler(
            sampling_session_id=sampler_id,
            session_id=session_id,
            base_model=base_model,
            model_path=None if saved is None else saved.path,
            adapter_id=None if saved is None else adapter_id(saved.path, saved.created),
            folder=None if row is None else row["folder"],
        )

    def _row(self, sampling_session_id: str) -> Row:
        row = self._store.sampler(sampling_session_id)
        session = None if row is None else self._store.session(row["session_id"])
        if row is None or session is None or session["ended"] is not None:
            raise Forgotten(f"there is no sampling session {sampling_session_id!r}, or its session has ended")
        return row


def _ticket(request_id: str, request: SampleRequest) -> SampleTicket:
    return SampleTicket(request_id, tuple(f"{request_id}:{index}" for index in range(request.num_samples)))


def _base_model_name(base_model: str | None, saved: CheckpointInfo | None) -> str:
    if saved is None:
        if base_model is None:
            raise InvalidInput("give base_model or model_path: there is nothing to sample from")
        return base_model
    if saved.kind != "sampler_weights":
        raise InvalidInput(
            f"model_path {saved.path!r} is {_NOT_SAMPLED[saved.kind]}; sample from a path that "
            "save_weights_for_sampler returned"
        )
    if base_model not in (None, saved.base_model):
        raise InvalidInput(f"base_model is {base_model!r}, but {saved.path!r} was trained on {saved.base_model!r}")
    return saved.base_model
