"""Models that are trained: how they are made, and what is accepted for them."""

import secrets
import threading
from collections.abc import Mapping
from dataclasses import replace

from weaver.domain import (
    ADAMW,
    CreateFromState,
    CreateModel,
    ForwardBackward,
    LoadState,
    LoraSpec,
    Operation,
    OptimStep,
)
from weaver.engine.fingerprint import fingerprint, parts_of
from weaver.engine.lane import Refusal, Work
from weaver.errors import InvalidInput, UnknownName, UserError
from weaver.service import door, sampling_masks
from weaver.service.archive import Archive
from weaver.service.base_models import BaseModels
from weaver.service.custom_losses import Losses
from weaver.service.futures import FutureTable
from weaver.service.imports import Imports, is_import
from weaver.service.meter import Meter
from weaver.service.recorded import RecordedSequences
from weaver.service.records import CheckpointInfo, ModelInfo, Ticket
from weaver.store import Store


class Training:
    """The models in memory. Every method is quick and may be called from any thread."""

    def __init__(
        self,
        base_models: BaseModels,
        store: Store,
        archive: Archive,
        futures: FutureTable,
        losses: Losses,
        recorded: RecordedSequences,
        meter: Meter,
        imports: Imports,
    ) -> None:
        self._base_models, self._store, self._archive, self._futures = base_models, store, archive, futures
        self._losses, self._recorded, self._meter, self._imports = losses, recorded, meter, imports
        self._lock = threading.Lock()
        self._models: dict[str, ModelInfo] = {}

    def create(
        self,
        session_id: str,
        model_seq_id: int,
        base_model: str,
        lora: LoraSpec,
        user_metadata: Mapping[str, str],
        optimizer_kind: str,
    ) -> Ticket:
        """A new adapter. A repeat of (session_id, model_seq_id) gets the first one's ticket."""
        asked = CreateModel(base_model, lora, optimizer_kind)
        operation = CreateModel(base_model, _with_seed(lora), optimizer_kind)
        return self._create(session_id, model_seq_id, asked, operation, user_metadata)

    def create_from(
        self,
        path: str,
        session_id: str,
        model_seq_id: int,
        *,
        base_model: str | None,
        optimizer: bool,
        optimizer_kind: str | None,
        user_metadata: Mapping[str, str],
    ) -> Ticket:
        """A new adapter from a saved state; with its optimizer's state the optimizer is the saved one."""
        saved = self._saved(path, base_model, optimizer=optimizer)
        if base_model not in (None, saved.base_model):
            raise InvalidInput(f"base_model is {base_model!r}, but {saved.path!r} was trained on {saved.base_model!r}")
        if optimizer and optimizer_kind not in (None, saved.optimizer):
            raise InvalidInput(
                f"optimizer_config.type is {optimizer_kind!r}, but {saved.path!r} holds the state of "
                f"{saved.optimizer!r}; load its weights only, or leave optimizer_config out"
            )
        kind = saved.optimizer if optimizer else optimizer_kind or ADAMW
        operation = CreateFromState(saved.base_model, saved.lora, saved.path, optimizer, kind)
        return self._create(session_id, model_seq_id, operation, operation, user_metadata)

    def _saved(self, path: str, base_model: str | None, *, optimizer: bool) -> CheckpointInfo:
        if is_import(path):
            return self._imports.saved(path, base_model, optimizer=optimizer)
        door.check_training_path(path)
        return self._archive.checkpoint(path)

    def info(self, model_id: str) -> ModelInfo:
        """Every effective setting of a model. Raises UnknownName."""
        with self._lock:
            info = self._models.get(model_id)
        if info is None:
            raise UnknownName(self._archive.why_not_in_memory(model_id))
        return info

    def submit(self, model_id: str, seq_id: int, operation: Operation) -> Ticket:
        """Accept an operation, or find the ticket of the first one for an exact repeat of (model_id, seq_id)."""
        info = self.info(model_id)
        self._archive.note_request(model_id)
        try:
            checked = self._checked(operation, info)
        except UserError as error:
            return self.refuse(model_id, seq_id, error)
        asked = fingerprint(**parts_of(operation))  # after the check: reading what is wrong may take long
        accepted = self._base_models.engine(info.base_model).submit(model_id, seq_id, checked, asked)
        return self._ticket(model_id, accepted)

    def free_number(self, model_id: str) -> int:
        return self._base_models.engine(self.info(model_id).base_model).free_number(model_id)

    def refuse(self, model_id: str, seq_id: int, error: UserError) -> Ticket:
        """Raise `error`; only a later part of a call whose first part is still to come gets a ticket instead."""
        with self._lock:
            info = self._models.get(model_id)
        refusal = None if info is None else self._base_models.engine(info.base_model).refuse(model_id, seq_id, error)
        if refusal is None:
            raise error
        return self._ticket(model_id, refusal)

    def end_model(self, model_id: str) -> None:
        """What it was asked for still happens; then it is freed. One that is not there stays so."""
        with self._lock:
            ended = self._models.pop(model_id, None)
        if ended is not None:
            self._base_models.engine(ended.base_model).end_lane(model_id)

    def end_session(self, session_id: str) -> None:
        """What its models were asked for still happens; then they are freed."""
        with self._lock:
            mine = [model_id for model_id in self._models if model_id.startswith(f"{session_id}:")]
            ended = [self._models.pop(model_id) for model_id in mine]
        for info in ended:
            self._base_models.engine(info.base_model).end_lane(info.model_id)

    def _create(
        self,
        session_id: str,
        model_seq_id: int,
        asked: CreateModel | CreateFromState,
        operation: CreateModel | CreateFromState,
        user_metadata: Mapping[str, str],
    ) -> Ticket:
        """`asked` tells a repeat; `operation` is what runs (its seed drawn)."""
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
        self._futures.add(accepted.request_id, accepted.future, waits_for=lambda: self._waits_for(model_id))
        if isinstance(accepted, Work):
            self._meter.training(model_id, accepted)
        return Ticket(accepted.request_id, model_id)

    def _waits_for(self, model_id: str) -> str | None:
        with self._lock:
            info = self._models.get(model_id)
        return None if info is None else self._base_models.engine(info.base_model).waits_for(model_id)

    def _checked(self, operation: Operation, info: ModelInfo) -> Operation:
        """The operation, which can run; a pass with all that its loss reads in place. Raises a UserError."""
        facts, session_id = self._base_models.facts(info.base_model), info.model_id.partition(":")[0]
        if isinstance(operation, LoadState) and is_import(operation.path):
            self._imports.saved(operation.path, info.base_model, optimizer=operation.optimizer)
            return operation
        if not isinstance(operation, ForwardBackward):
            door.check_operation(operation, facts, None)
            if isinstance(operation, OptimStep):
                door.check_optimizer(operation.params, info.optimizer)
            return operation
        resolved = self._losses.resolved(operation, session_id)
        loss = self._losses.loss(resolved.loss)
        door.check_operation(resolved, facts, loss)
        sampling_masks.check_offered(resolved, self._base_models.backend)
        return self._recorded.filled(resolved, loss, session_id)


def _with_seed(lora: LoraSpec) -> LoraSpec:
    return lora if lora.seed is not None else replace(lora, seed=secrets.randbits(31))
