"""Runs operations on a backend, and writes and reads the checkpoints they ask for."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Protocol

from weaver.adapter_folders import SCHEME, ImportDirs
from weaver.backend import Backend, Pass
from weaver.checkpoints import read_checkpoint, write_checkpoint, write_export
from weaver.domain import (
    ADAMW,
    AdapterRef,
    CreateFromState,
    CreateModel,
    ForwardBackward,
    ForwardBackwardResult,
    LoadState,
    ModelCreated,
    ModelState,
    Operation,
    OptimStep,
    OptimStepResult,
    Result,
    SamplerReady,
    SaveExternal,
    SaveForSampler,
    SaveState,
    StateLoaded,
    StateSaved,
)
from weaver.encryption import sealer
from weaver.engine.mismatch import MismatchWatch
from weaver.errors import AlreadyExists, InvalidInput, UnknownName, WeaverError
from weaver.kept import KeptFolders
from weaver.loss import Loss
from weaver.store import Store

Publish = Callable[[str, int, AdapterRef], None]
"""Tells samplers of newer weights: a model, the version's number, the version."""

TRAINING, SAMPLER, EXTERNAL = "weights", "sampler_weights", "external_weights"
"""The kinds of checkpoints: the middle part of `tinker://<model>/<kind>/<name>`."""


class Losses(Protocol):
    """Where losses are found by name."""

    def loss(self, name: str) -> Loss:
        """Raises UnknownName."""


def checkpoint_path(model_id: str, kind: str, name: str) -> str:
    return f"tinker://{model_id}/{kind}/{name}"


def adapter_id(path: str, created: float) -> str:
    """What samplers know a named snapshot by: a path may come to mean another one when the first has expired."""
    return f"{path}@{created}"


class Executor:
    """What the engine's thread does with work. The backend is opened on first use."""

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        losses: Losses,
        store: Store,
        folders: KeptFolders,
        publish: Publish,
        watch: MismatchWatch,
        import_dirs: ImportDirs = ImportDirs(),  # noqa: B008
    ) -> None:
        self._open_backend, self._losses, self._store = open_backend, losses, store
        self._folders, self._data_dir = folders, folders.data_dir
        self._publish, self._watch, self._import_dirs = publish, watch, import_dirs
        self.opening = False  # read by any thread
        self._opened: Backend | None = None

    def run_passes(
        self, passes: Sequence[tuple[str, ForwardBackward]]
    ) -> Sequence[ForwardBackwardResult | WeaverError]:
        """Passes of any models together; each with its result or its error."""
        resolved = [self._resolved(*one) for one in passes]
        outcomes = self._backend.forward_backward(resolved)
        return [
            outcome if isinstance(outcome, WeaverError) else self._watch.trained(one, outcome)
            for one, outcome in zip(resolved, outcomes, strict=True)
        ]

    def sees_batch(self, operation: ForwardBackward) -> bool:
        """Whether its loss must see all data of a call, also of one that a client sent in parts."""
        try:
            return self._losses.loss(operation.loss).batch
        except UnknownName:  # that is for `run_passes` to say
            return False

    def run(self, model_id: str, operation: Operation) -> Result:
        """One operation that is a barrier in its lane."""
        match operation:
            case OptimStep(params=params):
                self._watch.changed(model_id)
                return OptimStepResult(self._backend.optim_step(model_id, params))
            case CreateModel(lora=lora):
                self._backend.create_model(model_id, lora)
                return ModelCreated(model_id)
            case CreateFromState():
                return self._create_from_state(model_id, operation)
            case SaveState():
                return self._save_state(model_id, operation)
            case SaveForSampler(name=None, inflight=inflight):
                return self._make_sampler(model_id, inflight=inflight)
            case SaveForSampler():
                return self._save_for_sampler(model_id, operation)
            case SaveExternal():
                return self._save_external(model_id, operation)
            case LoadState():
                return self._load_state(model_id, operation)
        raise AssertionError(f"{operation} is not a barrier")

    def drop_model(self, model_id: str) -> None:
        self._watch.forget(model_id)
        if self._opened is not None:
            self._opened.drop_model(model_id)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    @property
    def _backend(self) -> Backend:
        if self._opened is None:
            self.opening = True
            try:
                self._opened = self._open_backend()
            finally:
                self.opening = False
        return self._opened

    def _resolved(self, model_id: str, operation: ForwardBackward) -> Pass:
        loss = self._losses.loss(operation.loss)
        return Pass(model_id, operation.data, loss, loss.effective_config(operation.config), operation.backward)

    def _load_state(self, model_id: str, operation: LoadState) -> StateLoaded:
        model = self._store.model(model_id)
        state = self._read(operation.path, operation.optimizer, "" if model is None else model["base_model"])
        if model is not None and model["base_model"] != state.adapter.base_model:
            raise InvalidInput(
                f"path {operation.path!r} was trained on {state.adapter.base_model!r}, this model on "
                f"{model['base_model']!r}: their weights mean different things"
            )
        if model is not None and model["lora"]["alpha"] != state.adapter.lora.alpha:
            raise InvalidInput(
                f"path {operation.path!r} has lora_alpha {state.adapter.lora.alpha}, this model "
                f"{model['lora']['alpha']}: create a training client from it instead"
            )
        if state.optimizer is not None and state.optimizer.step and state.optimizer.kind != self._kind_of(model_id):
            raise InvalidInput(
                f"path {operation.path!r} holds the state of {state.optimizer.kind!r}, this model steps with "
                f"{self._kind_of(model_id)!r}; load its weights only"
            )
        self._watch.changed(model_id)
        self._backend.import_state(model_id, state)
        return StateLoaded(model_id, operation.path)

    def _create_from_state(self, model_id: str, operation: CreateFromState) -> StateLoaded:
        state = self._read(operation.path, operation.optimizer, operation.base_model)
        if state.adapter.lora != operation.lora:
            raise InvalidInput(f"path {operation.path!r} has changed since the request was accepted; ask again")
        self._backend.create_model(model_id, operation.lora)
        try:
            self._backend.import_state(model_id, state)
        except WeaverError:
            self._backend.drop_model(model_id)
            raise
        return StateLoaded(model_id, operation.path)

    def _read(self, path: str, optimizer: bool, base_model: str) -> ModelState:
        if path.startswith(SCHEME):
            return self._import_dirs.read(path, base_model)
        row = self._store.checkpoint(path)
        if row is None:
            raise UnknownName(f"there is no checkpoint {path!r}, or it has expired")
        return read_checkpoint(self._folders.local(self._data_dir / row["folder"]), optimizer=optimizer)

    def _save_state(self, model_id: str, operation: SaveState) -> StateSaved:
        state = self._backend.export_state(model_id, optimizer=operation.optimizer)
        return self._save(model_id, TRAINING, operation, state, overwrite=operation.overwrite)

    def _save_for_sampler(self, model_id: str, operation: SaveForSampler) -> StateSaved:
        state = self._backend.export_state(model_id, optimizer=False)
        return self._save(model_id, SAMPLER, operation, state, overwrite=False)

    def _save_external(self, model_id: str, operation: SaveExternal) -> StateSaved:
        seal = None if operation.recipients is None else sealer(operation.recipients)
        state = self._backend.export_state(model_id, optimizer=False)
        write = partial(write_export, seal=seal)
        return self._save(model_id, EXTERNAL, operation, state, overwrite=False, write=write)

    def _save(
        self,
        model_id: str,
        kind: str,
        operation: SaveState | SaveForSampler | SaveExternal,
        state: ModelState,
        *,
        overwrite: bool,
        write: Callable[[Path, ModelState], int] = write_checkpoint,
    ) -> StateSaved:
        assert operation.name is not None
        path = checkpoint_path(model_id, kind, operation.name)
        if not overwrite and self._store.checkpoint(path) is not None:
            raise AlreadyExists(
                f"{path} exists and never changes; choose another name (or overwrite=True in save_state)"
            )
        folder = self._folders.new(model_id, kind, operation.name)
        size_bytes, now = write(folder, state), self._store.clock()
        self._folders.keep(folder)
        sampled = kind == SAMPLER  # somebody may sample still from an expired one
        replaced = self._store.put_checkpoint(
            discard_replaced=sampled,
            path=path,
            model_id=model_id,
            kind=kind,
            name=operation.name,
            base_model=state.adapter.base_model,
            lora=asdict(state.adapter.lora),
            created=now,
            expires=None if operation.ttl_seconds is None else now + operation.ttl_seconds,
            size_bytes=size_bytes,
            folder=str(folder.relative_to(self._data_dir)),
            user_metadata=dict(operation.user_metadata),
            optimizer=self._kind_of(model_id),
        )
        if sampled:
            self._watch.saved(model_id, adapter_id(path, now))
        elif replaced is not None:
            self._folders.delete_if_possible(self._data_dir / replaced["folder"])
        return StateSaved(path)

    def _kind_of(self, model_id: str) -> str:
        """Which optimizer a model was created with."""
        model = self._store.model(model_id)
        return ADAMW if model is None else str(model["optimizer"])

    def _make_sampler(self, model_id: str, *, inflight: bool) -> SamplerReady:
        """A snapshot without a name lives in its session's folder, and has a sampling session of its own.

        An inflight one is written like it, as the model's next version. Its row comes first: requests that come from
        then on begin with it, and those that run are told.
        """
        session_id = model_id.partition(":")[0]
        sampler_id = f"{session_id}:sample:{uuid.uuid4().hex[:12]}"
        state = self._backend.export_state(model_id, optimizer=False)
        folder = Path("snapshots") / session_id / sampler_id.rpartition(":")[2]
        write_checkpoint(self._data_dir / folder, state)
        self._store.add_sampler(
            sampling_session_id=sampler_id,
            session_id=session_id,
            base_model=state.adapter.base_model,
            model_path=None,
            adapter_id=sampler_id,
            folder=str(folder),
        )
        if inflight:
            version = self._store.add_inflight(model_id, sampler_id)
            self._publish(model_id, version, AdapterRef(sampler_id, self._data_dir / folder))
        else:
            self._watch.saved(model_id, sampler_id)
        return SamplerReady(sampler_id)
