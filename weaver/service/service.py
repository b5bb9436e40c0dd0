"""The front door. Both ways in, HTTP and in process, meet here; nothing below has heard of either."""

import secrets
import shutil
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from weaver.config import Config
from weaver.engine.fingerprint import fingerprint, parts_of
from weaver.engine.lane import Refusal, Work
from weaver.errors import Forgotten, InvalidInput, UnknownName, UserError
from weaver.loss import Loss
from weaver.registry import Registry, load_registry
from weaver.service import door
from weaver.service.base_models import BaseModels
from weaver.service.futures import FutureTable
from weaver.service.records import CheckpointInfo, ModelInfo, SamplerInfo, SampleTicket, SupportedModel, Ticket
from weaver.service.sampling import SamplingSessions
from weaver.store import Row, Store
from weaver.types import CreateFromState, CreateModel, ForwardBackward, IntArray, LoraSpec, Operation


class Service:
    """Sessions, models and samplers of one server or one process. Every method is quick and thread-safe.

    Methods raise `weaver.errors.UserError`s at once for what cannot be accepted, and nothing has changed then. What is
    accepted happens later: its ticket's `request_id` finds its future, which settles with a result or an error.
    """

    def __init__(self, config: Config, registry: Registry | None = None) -> None:
        self._registry = registry or load_registry(config.disabled_plugins)
        self._store = Store.in_folder(config.data_dir)
        self._base_models = BaseModels(config, self._registry, self._store)
        self._futures = FutureTable(config.result_seconds, config.unfetched_seconds)
        self._sampling = SamplingSessions(self._base_models, self._store, self._futures, config.data_dir)
        self._data_dir = config.data_dir
        self._lock = threading.Lock()
        self._models: dict[str, ModelInfo] = {}
        self._remove_ended_snapshots()

    # Sessions

    def supported_models(self) -> tuple[SupportedModel, ...]:
        names = self._base_models.names()
        return tuple(SupportedModel(name, self._base_models.facts(name).context_length) for name in names)

    def create_session(
        self,
        *,
        user_metadata: Mapping[str, str],
        tags: Sequence[str] = (),
        project_id: str | None = None,
        display_name: str | None = None,
        sdk_version: str = "",
    ) -> str:
        """Open a session; everything a client makes belongs to one."""
        door.check_user_metadata(user_metadata)
        session_id = str(uuid.uuid4())
        details = {
            "user_metadata": dict(user_metadata),
            "tags": list(tags),
            "project_id": project_id,
            "display_name": display_name,
            "sdk_version": sdk_version,
        }
        self._store.add_session(session_id, details)
        return session_id

    def heartbeat(self, session_id: str) -> None:
        """The client is alive. Raises Forgotten when its session has ended or is unknown."""
        self._live_session(session_id)

    def finish_session(self, session_id: str, reason: str, detail: str | None = None) -> None:
        """End a session: what it has asked for still happens, then its models and nameless snapshots are freed."""
        self._live_session(session_id)
        self._store.end_session(session_id, reason if detail is None else f"{reason}: {detail}")
        with self._lock:
            mine = [model_id for model_id in self._models if model_id.startswith(f"{session_id}:")]
            ended = [self._models.pop(model_id) for model_id in mine]
        for info in ended:
            self._base_models.engine(info.base_model).end_lane(info.model_id)
        self._sampling.end_session(session_id)
        shutil.rmtree(self._data_dir / "snapshots" / session_id, ignore_errors=True)

    # Training

    def create_model(
        self,
        session_id: str,
        model_seq_id: int,
        base_model: str,
        lora: LoraSpec,
        user_metadata: Mapping[str, str] | None = None,
    ) -> Ticket:
        """Make a new adapter to train. A repeat of (session_id, model_seq_id) gets the first one's ticket."""
        asked = CreateModel(base_model, lora)
        operation = CreateModel(base_model, _with_seed(lora))
        return self._create(session_id, model_seq_id, asked, operation, user_metadata or {})

    def create_model_from_state(
        self,
        session_id: str,
        model_seq_id: int,
        path: str,
        *,
        base_model: str | None = None,
        optimizer: bool = False,
        user_metadata: Mapping[str, str] | None = None,
    ) -> Ticket:
        """Make a new adapter from a saved state: same rank and modules, weights and, if asked, optimizer state."""
        door.check_training_path(path)
        saved = self.checkpoint_info(path)
        if base_model not in (None, saved.base_model):
            raise InvalidInput(f"base_model is {base_model!r}, but {path!r} was trained on {saved.base_model!r}")
        operation = CreateFromState(saved.base_model, saved.lora, path, optimizer)
        return self._create(session_id, model_seq_id, operation, operation, user_metadata or {})

    def model_info(self, model_id: str) -> ModelInfo:
        """Every effective setting of a model. Raises UnknownName."""
        with self._lock:
            info = self._models.get(model_id)
        if info is None:
            raise UnknownName(self._why_unknown(model_id))
        return info

    def submit(self, model_id: str, seq_id: int, operation: Operation) -> Ticket:
        """Accept a training operation; it runs in the order of `seq_id`, whatever order they arrive in.

        An exact repeat of (model_id, seq_id) gets the first one's ticket. What is wrong is told as `refuse` says.
        """
        info = self.model_info(model_id)
        engine = self._base_models.engine(info.base_model)
        try:
            door.check_operation(operation, self._base_models.facts(info.base_model), self._loss(operation))
        except UserError as error:
            return self.refuse(model_id, seq_id, error)
        return self._ticket(model_id, engine.submit(model_id, seq_id, operation, fingerprint(**parts_of(operation))))

    def refuse(self, model_id: str, seq_id: int, error: UserError) -> Ticket:
        """A request of that number cannot be accepted: raises `error`, and later numbers need not wait for it.

        Only a later part of a call whose first part is still to come gets a ticket; its future fails with `error`.
        """
        with self._lock:
            info = self._models.get(model_id)
        refusal = None if info is None else self._base_models.engine(info.base_model).refuse(model_id, seq_id, error)
        if refusal is None:
            raise error
        return self._ticket(model_id, refusal)

    # Sampling

    def create_sampling_session(
        self,
        session_id: str,
        sampling_session_seq_id: int,
        *,
        base_model: str | None = None,
        model_path: str | None = None,
    ) -> str:
        """Something to sample from: a base model, or a snapshot by its path."""
        self._live_session(session_id)
        saved = None if model_path is None else self.checkpoint_info(model_path)
        return self._sampling.create(session_id, sampling_session_seq_id, base_model, saved)

    def sampler_info(self, sampling_session_id: str) -> SamplerInfo:
        return self._sampling.info(sampling_session_id)

    def sample(
        self,
        sampling_session_id: str,
        seq_id: int,
        *,
        prompt: IntArray,
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = -1,
        top_p: float = 1.0,
        seed: int | None = None,
        stop_token_ids: tuple[int, ...] | None = None,
        stop_strings: tuple[str, ...] = (),
        prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
    ) -> SampleTicket:
        """Draw continuations of a prompt; see `weaver.types.SamplingParams`. No `max_tokens`: all that fits."""
        return self._sampling.sample(
            sampling_session_id,
            seq_id,
            prompt=prompt,
            num_samples=num_samples,
            max_tokens=max_tokens,
            prompt_logprobs=prompt_logprobs,
            topk_prompt_logprobs=topk_prompt_logprobs,
            options={
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "seed": seed,
                "stop_token_ids": stop_token_ids,
                "stop_strings": stop_strings,
            },
        )

    # Results and checkpoints

    def future(self, request_id: str) -> "Future[Any]":
        """The future of an acknowledged request. Raises Forgotten when its result was dropped."""
        return self._futures.get(request_id)

    def checkpoint_info(self, path: str) -> CheckpointInfo:
        """Raises InvalidInput for a malformed path, UnknownName when there is no such checkpoint."""
        door.parse_path(path)
        row = self._store.checkpoint(path)
        if row is None:
            raise UnknownName(f"there is no checkpoint {path!r}, or it has expired")
        return _checkpoint_info(row)

    def close(self) -> None:
        """Stop engines and samplers; what waits fails with `Stopped`."""
        self._base_models.close()
        self._store.close()

    def _create(
        self,
        session_id: str,
        model_seq_id: int,
        asked: CreateModel | CreateFromState,
        operation: CreateModel | CreateFromState,
        user_metadata: Mapping[str, str],
    ) -> Ticket:
        """`asked` tells a repeat; `operation` is what runs (its seed drawn)."""
        self._live_session(session_id)
        door.check_lora(operation.lora)
        door.check_user_metadata(user_metadata)
        facts = self._base_models.facts(operation.base_model)
        model_id = f"{session_id}:train:{model_seq_id}"
        info = ModelInfo(model_id, operation.base_model, facts.architecture, facts.tokenizer_location, operation.lora)
        with self._lock:
            first = self._models.get(model_id, info)
            engine = self._base_models.engine(first.base_model)
            asked_for = fingerprint(**parts_of(asked), user_metadata=user_metadata)
            accepted = engine.submit(model_id, 0, operation, asked_for)
            if not isinstance(accepted, str):
                self._store.add_model(model_id, session_id, info.base_model, info.lora, user_metadata)
                self._models[model_id] = info
        return self._ticket(model_id, accepted)

    def _ticket(self, model_id: str, accepted: Work | Refusal | str) -> Ticket:
        if isinstance(accepted, str):
            return Ticket(accepted, model_id)
        self._futures.add(accepted.request_id, accepted.future)
        return Ticket(accepted.request_id, model_id)

    def _loss(self, operation: Operation) -> Loss | None:
        if not isinstance(operation, ForwardBackward):
            return None
        try:
            return self._registry.loss(operation.loss)
        except UnknownName as error:
            raise InvalidInput(f"loss_fn: {error}") from error

    def _remove_ended_snapshots(self) -> None:
        """A session that ends while a snapshot of it is still to be written leaves that one behind."""
        for folder in (self._data_dir / "snapshots").glob("*"):
            session = self._store.session(folder.name)
            if session is None or session["ended"] is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _live_session(self, session_id: str) -> Row:
        row = self._store.session(session_id)
        if row is None or row["ended"] is not None:
            raise Forgotten(f"there is no session {session_id!r}, or it has ended; create a new one")
        return row

    def _why_unknown(self, model_id: str) -> str:
        if self._store.model(model_id) is None:
            return f"there is no model {model_id!r} here"
        return (
            f"model {model_id!r} is not in memory any more: its session ended or the server was restarted. "
            "Continue from a checkpoint with create_training_client_from_state_with_optimizer."
        )


def _with_seed(lora: LoraSpec) -> LoraSpec:
    return lora if lora.seed is not None else replace(lora, seed=secrets.randbits(31))


def _checkpoint_info(row: Row) -> CheckpointInfo:
    return CheckpointInfo(
        path=row["path"],
        model_id=row["model_id"],
        kind=row["kind"],
        name=row["name"],
        base_model=row["base_model"],
        lora=LoraSpec(**row["lora"]),
        created=row["created"],
        expires=row["expires"],
        size_bytes=row["size_bytes"],
        user_metadata=row["user_metadata"],
    )
