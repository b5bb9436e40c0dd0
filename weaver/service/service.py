"""The front door. Both ways in, HTTP and in process, meet here; nothing below has heard of either."""

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from weaver.config import Config
from weaver.engine.fingerprint import fingerprint, parts_of
from weaver.engine.lane import Refusal, Work
from weaver.errors import InvalidInput, UnknownName, UserError
from weaver.listing import Listing
from weaver.registry import Registry, load_registry
from weaver.service import door
from weaver.service.archive import Archive
from weaver.service.base_models import BaseModels
from weaver.service.custom_losses import Losses
from weaver.service.downloads import Downloads, Signer
from weaver.service.futures import FutureTable
from weaver.service.housekeeping import Housekeeper
from weaver.service.meter import Meter
from weaver.service.recorded import RecordedSequences
from weaver.service.records import (
    CheckpointInfo,
    Completion,
    ModelInfo,
    SamplerInfo,
    SampleTicket,
    SupportedModel,
    Ticket,
)
from weaver.service.sampling import SamplingSessions
from weaver.service.sessions import EXPIRED, Leases, Sessions
from weaver.store import Store
from weaver.types import (
    ADAMW,
    CreateFromState,
    CreateModel,
    ForwardBackward,
    IntArray,
    LoraSpec,
    LossGraph,
    Operation,
    OptimStep,
    PromptTargets,
)


class Service:
    """Sessions, models and samplers of one server or one process. Every method is quick and thread-safe.

    Methods raise `weaver.errors.UserError`s at once for what cannot be accepted, and nothing has changed then. What is
    accepted happens later: its ticket's `request_id` finds its future, which settles with a result or an error.

    `archive` has runs and checkpoints, `sessions` lists and searches, `downloads` links. `clock` tells the time of day,
    `ticks` how much of it has passed while the machine was awake.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry | None = None,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry or load_registry(config.disabled_plugins)
        self._store = Store.in_folder(config.data_dir, clock)
        listing = Listing(self._store)
        self.meter = Meter(listing, clock)
        self._futures = FutureTable(config.result_seconds, config.unfetched_seconds)
        self._losses = Losses(self._registry, self._futures)
        self._base_models = BaseModels(config, self._registry, self._losses, self._store)
        self._recorded = RecordedSequences(self._store)
        self._sampling = SamplingSessions(
            self._base_models, self._store, self._futures, self._recorded, self.meter, config.data_dir
        )
        self._data_dir = config.data_dir
        self._lock = threading.Lock()
        self._models: dict[str, ModelInfo] = {}
        self.archive = Archive(self._store, listing, config.data_dir, self._base_models.forget_adapter)
        self.sessions = Sessions(self._store, listing, Leases(config.lease_seconds, ticks))
        self.downloads = Downloads(self._store, Signer(config.data_dir, clock), config.data_dir)
        self.tidy()
        self._housekeeper = Housekeeper(self.tidy, min(60.0, config.lease_seconds / 4))

    def tidy(self) -> None:
        """What happens by itself from time to time: end silent sessions, throw away what expired."""
        for session_id in self.sessions.silent():
            self._end_session(session_id, EXPIRED)
        self.archive.tidy()
        self.meter.flush()

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
        return self.sessions.create(user_metadata, tags, project_id, display_name, sdk_version)

    def heartbeat(self, session_id: str) -> None:
        """The client is alive, like with every request. Raises Forgotten when its session has ended or is unknown."""
        self.sessions.living(session_id)

    def finish_session(self, session_id: str, reason: str, detail: str | None = None) -> None:
        """End a session: what it has asked for still happens, then its models and nameless snapshots are freed.

        One that has ended stays as it is: the answer to a first request may have been lost.
        """
        if self.sessions.info(session_id).ended is None:
            self._end_session(session_id, reason if detail is None else f"{reason}: {detail}")

    def _end_session(self, session_id: str, reason: str) -> None:
        self.sessions.end(session_id, reason)
        with self._lock:
            mine = [model_id for model_id in self._models if model_id.startswith(f"{session_id}:")]
            ended = [self._models.pop(model_id) for model_id in mine]
        for info in ended:
            self._base_models.engine(info.base_model).end_lane(info.model_id)
        self._sampling.end_session(session_id)
        self._losses.end_session(session_id)
        shutil.rmtree(self._data_dir / "snapshots" / session_id, ignore_errors=True)
        self.archive.remove_unused()

    def create_custom_loss(self, session_id: str, custom_loss_seq_id: int, graph: LossGraph) -> str:
        """Make a loss of a traced function, for passes of the same session; the request id of its future.

        A repeat of (session_id, custom_loss_seq_id) gets the first one's.
        """
        self.sessions.living(session_id)
        return self._losses.create(session_id, custom_loss_seq_id, graph)

    # Training

    def create_model(
        self,
        session_id: str,
        model_seq_id: int,
        base_model: str,
        lora: LoraSpec,
        user_metadata: Mapping[str, str] | None = None,
        *,
        optimizer_kind: str = ADAMW,
    ) -> Ticket:
        """Make a new adapter to train. A repeat of (session_id, model_seq_id) gets the first one's ticket."""
        asked = CreateModel(base_model, lora, optimizer_kind)
        operation = CreateModel(base_model, _with_seed(lora), optimizer_kind)
        return self._create(session_id, model_seq_id, asked, operation, user_metadata or {})

    def create_model_from_state(
        self,
        session_id: str,
        model_seq_id: int,
        path: str,
        *,
        base_model: str | None = None,
        optimizer: bool = False,
        optimizer_kind: str | None = None,
        user_metadata: Mapping[str, str] | None = None,
    ) -> Ticket:
        """Make a new adapter from a saved state: same rank and modules, weights and, if asked, optimizer state.

        With its state the optimizer is the saved one; without, `optimizer_kind`, or AdamW.
        """
        door.check_training_path(path)
        saved = self.checkpoint_info(path)
        if base_model not in (None, saved.base_model):
            raise InvalidInput(f"base_model is {base_model!r}, but {path!r} was trained on {saved.base_model!r}")
        if optimizer and optimizer_kind not in (None, saved.optimizer):
            raise InvalidInput(
                f"optimizer_config.type is {optimizer_kind!r}, but {path!r} holds the state of {saved.optimizer!r}; "
                "load its weights only, or leave optimizer_config out"
            )
        kind = saved.optimizer if optimizer else optimizer_kind or ADAMW
        operation = CreateFromState(saved.base_model, saved.lora, path, optimizer, kind)
        return self._create(session_id, model_seq_id, operation, operation, user_metadata or {})

    def model_info(self, model_id: str) -> ModelInfo:
        """Every effective setting of a model. Raises UnknownName."""
        with self._lock:
            info = self._models.get(model_id)
        if info is None:
            raise UnknownName(self.archive.why_not_in_memory(model_id))
        return info

    def submit(self, model_id: str, seq_id: int, operation: Operation) -> Ticket:
        """Accept a training operation; it runs in the order of `seq_id`, whatever order they arrive in.

        An exact repeat of (model_id, seq_id) gets the first one's ticket. What is wrong is told as `refuse` says.
        """
        info = self.model_info(model_id)
        self.sessions.renew(model_id.partition(":")[0])
        self.archive.note_request(model_id)
        engine = self._base_models.engine(info.base_model)
        asked = fingerprint(**parts_of(operation))
        try:
            operation = self._checked(operation, info)
        except UserError as error:
            return self.refuse(model_id, seq_id, error)
        return self._ticket(model_id, engine.submit(model_id, seq_id, operation, asked))

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
        self.sessions.living(session_id)
        saved = None if model_path is None else self.checkpoint_info(model_path)
        return self._sampling.create(session_id, sampling_session_seq_id, base_model, saved)

    def join_sampling_session(self, sampling_session_id: str) -> int:
        """A number for one more client of a sampling session: its requests are numbered in a block of their own."""
        return self._sampling.join(sampling_session_id)

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
        prompt_logprobs_last_n: int | None = None,
        prompt_targets: PromptTargets | None = None,
        prompt_alternatives: int = 0,
        topk_sample_logprobs: int = 0,
        record_stability_info: bool = False,
    ) -> SampleTicket:
        """Draw continuations of a prompt; see `weaver.types.SamplingParams` and `SampleRequest`. No `max_tokens`: all
        that fits. With `record_stability_info`, losses that have recorded inputs can be trained on what is drawn."""
        self.sessions.renew(sampling_session_id.partition(":")[0])
        return self._sampling.sample(
            sampling_session_id,
            seq_id,
            prompt=prompt,
            num_samples=num_samples,
            max_tokens=max_tokens,
            questions={
                "prompt_logprobs": prompt_logprobs,
                "topk_prompt_logprobs": topk_prompt_logprobs,
                "prompt_logprobs_last_n": prompt_logprobs_last_n,
                "prompt_targets": prompt_targets,
                "prompt_alternatives": prompt_alternatives,
                "topk_sample_logprobs": topk_sample_logprobs,
            },
            options={
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "seed": seed,
                "stop_token_ids": stop_token_ids,
                "stop_strings": stop_strings,
            },
            record=record_stability_info,
        )

    # Results and checkpoints

    def future(self, request_id: str) -> "Future[Any]":
        """The future of an acknowledged request. Raises Forgotten when its result was dropped."""
        return self._futures.get(request_id)

    def waits_for(self, request_id: str) -> str | None:
        """What keeps a request waiting, in plain words; None when it runs or will in its turn."""
        return self._futures.waits_for(request_id)

    def settled_samples(
        self, sampling_session_id: str, clone: int, cursor: int
    ) -> "tuple[list[Completion], int, Future[None]]":
        """For a client that waits for many samples: those that settled since `cursor` (0: all there are), the cursor
        to ask with next time, and a future that settles when one more does. Raises Forgotten for a client that has
        asked for none since the server started."""
        return self._sampling.settled(sampling_session_id, clone, cursor)

    def drop_samples(self, request_ids: Sequence[str]) -> None:
        """Results of samples that their client has."""
        self._futures.drop(request_ids)

    def cancel(self, request_id: str) -> None:
        """Stop a sample at its next token. Unknown and settled requests are left alone; training cannot be stopped."""
        self._futures.cancel(request_id)

    def checkpoint_info(self, path: str) -> CheckpointInfo:
        """Raises InvalidInput for a malformed path, UnknownName when there is no such checkpoint."""
        return self.archive.checkpoint(path)

    def close(self) -> None:
        """Stop engines and samplers; what waits fails with `Stopped`."""
        self._housekeeper.close()
        self.archive.tidy()
        self._base_models.close()
        self._recorded.close()
        self.meter.flush()
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
        self.sessions.living(session_id)
        door.check_lora(operation.lora)
        door.check_user_metadata(user_metadata)
        facts = self._base_models.facts(operation.base_model)
        model_id = f"{session_id}:train:{model_seq_id}"
        info = ModelInfo(
            model_id,
            operation.base_model,
            facts.architecture,
            facts.tokenizer_location,
            operation.lora,
            operation.optimizer_kind,
        )
        with self._lock:
            first = self._models.get(model_id, info)
            engine = self._base_models.engine(first.base_model)
            asked_for = fingerprint(**parts_of(asked), user_metadata=user_metadata)
            accepted = engine.submit(model_id, 0, operation, asked_for)
            if not isinstance(accepted, str):
                self._store.add_model(model_id, session_id, info.base_model, info.lora, user_metadata, info.optimizer)
                self._models[model_id] = info
        return self._ticket(model_id, accepted)

    def _ticket(self, model_id: str, accepted: Work | Refusal | str) -> Ticket:
        if isinstance(accepted, str):
            return Ticket(accepted, model_id)
        self._futures.add(accepted.request_id, accepted.future, waits_for=lambda: self._model_waits_for(model_id))
        if isinstance(accepted, Work):
            self.meter.training(model_id, accepted)
        return Ticket(accepted.request_id, model_id)

    def _model_waits_for(self, model_id: str) -> str | None:
        with self._lock:
            info = self._models.get(model_id)
        return None if info is None else self._base_models.engine(info.base_model).waits_for(model_id)

    def _checked(self, operation: Operation, info: ModelInfo) -> Operation:
        """The operation, which can run; a pass with all that its loss reads in place. Raises a UserError."""
        facts, session_id = self._base_models.facts(info.base_model), info.model_id.partition(":")[0]
        if not isinstance(operation, ForwardBackward):
            door.check_operation(operation, facts, None)
            if isinstance(operation, OptimStep):
                door.check_optimizer(operation.params, info.optimizer)
            return operation
        resolved = self._losses.resolved(operation, session_id)
        loss = self._losses.loss(resolved.loss)
        door.check_operation(resolved, facts, loss)
        return self._recorded.filled(resolved, loss, session_id)


def _with_seed(lora: LoraSpec) -> LoraSpec:
    return lora if lora.seed is not None else replace(lora, seed=secrets.randbits(31))
