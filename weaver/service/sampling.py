"""Sampling sessions: what is sampled from, and which requests have been seen."""

import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weaver.engine.fingerprint import Fingerprint, differences, fingerprint, parts_of
from weaver.errors import Forgotten, InvalidInput, SequenceRefused
from weaver.service import door
from weaver.service.base_models import BaseModels
from weaver.service.futures import FutureTable
from weaver.service.records import CheckpointInfo, SamplerInfo, SampleTicket
from weaver.store import Row, Store
from weaver.types import AdapterRef, IntArray, SampleRequest, SamplingParams

REMEMBERED = 100_000
"""How many past sample requests can still be repeated."""


class SamplingSessions:
    """A session samples from one base model or one immutable adapter; rows in the store outlive a restart."""

    def __init__(self, base_models: BaseModels, store: Store, futures: FutureTable, data_dir: Path) -> None:
        self._base_models, self._store, self._futures, self._data_dir = base_models, store, futures, data_dir
        self._lock = threading.Lock()
        self._created: dict[tuple[str, int], tuple[Fingerprint, str]] = {}
        self._seen: OrderedDict[tuple[str, int], tuple[Fingerprint, SampleTicket]] = OrderedDict()

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

    def sample(
        self,
        sampling_session_id: str,
        seq_id: int,
        *,
        prompt: IntArray,
        num_samples: int,
        max_tokens: int | None,
        prompt_logprobs: bool,
        topk_prompt_logprobs: int,
        options: Mapping[str, Any],
    ) -> SampleTicket:
        """Queue a request, or find the ticket of the first one for an exact repeat."""
        row = self._row(sampling_session_id)
        facts = self._base_models.facts(row["base_model"])
        door.check_prompt(prompt, facts)
        door.check_sampling(num_samples, topk_prompt_logprobs, facts)
        params = SamplingParams(door.effective_max_tokens(max_tokens, len(prompt), facts), **options)
        door.check_sampling_params(params, facts)
        adapter = None if row["folder"] is None else AdapterRef(row["adapter_id"], self._data_dir / row["folder"])
        request = SampleRequest(prompt, num_samples, params, adapter, prompt_logprobs, topk_prompt_logprobs)
        with self._lock:
            return self._queue((sampling_session_id, seq_id), row["base_model"], request)

    def end_session(self, session_id: str) -> None:
        """Free the nameless snapshots of a session."""
        with self._lock:
            for key in [key for key in self._created if key[0] == session_id]:
                del self._created[key]
        for row in self._store.samplers_of(session_id):
            if row["adapter_id"] is not None and row["model_path"] is None:
                self._base_models.sampler(row["base_model"]).forget(row["adapter_id"])

    def _queue(self, key: tuple[str, int], base_model: str, request: SampleRequest) -> SampleTicket:
        asked = fingerprint(**parts_of(request))
        if key in self._seen:
            first_asked, first = self._seen[key]
            if first_asked != asked:
                raise SequenceRefused(
                    f"seq_id {key[1]} of sampler {key[0]} was used by a different request: this one has another "
                    f"{differences(first_asked, asked)}; a retry must repeat the request exactly"
                )
            return first
        future = self._base_models.sampler(base_model).sample(request)
        request_id = uuid.uuid4().hex
        ticket = SampleTicket(request_id, tuple(f"{request_id}:{index}" for index in range(request.num_samples)))
        self._futures.add(request_id, future)
        self._seen[key] = (asked, ticket)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return ticket

    def _add(self, session_id: str, sampler_id: str, base_model: str, saved: CheckpointInfo | None) -> None:
        row = None if saved is None else self._store.checkpoint(saved.path)
        self._store.add_sampler(
            sampling_session_id=sampler_id,
            session_id=session_id,
            base_model=base_model,
            model_path=None if saved is None else saved.path,
            adapter_id=None if saved is None else f"{saved.path}@{saved.created}",
            folder=None if row is None else row["folder"],
        )

    def _row(self, sampling_session_id: str) -> Row:
        row = self._store.sampler(sampling_session_id)
        session = None if row is None else self._store.session(row["session_id"])
        if row is None or session is None or session["ended"] is not None:
            raise Forgotten(f"there is no sampling session {sampling_session_id!r}, or its session has ended")
        return row


def _base_model_name(base_model: str | None, saved: CheckpointInfo | None) -> str:
    if saved is None:
        if base_model is None:
            raise InvalidInput("give base_model or model_path: there is nothing to sample from")
        return base_model
    if saved.kind != "sampler_weights":
        raise InvalidInput(
            f"model_path {saved.path!r} is a training state; sample from a path that save_weights_for_sampler returned"
        )
    if base_model not in (None, saved.base_model):
        raise InvalidInput(f"base_model is {base_model!r}, but {saved.path!r} was trained on {saved.base_model!r}")
    return saved.base_model
