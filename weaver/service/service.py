"""The front door. Both ways in, HTTP and in process, meet here; nothing below has heard of either."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from weaver.adapter_folders import ImportDirs
from weaver.config import Config
from weaver.domain import ADAMW, IntArray, Listener, LoraSpec, LossGraph, ModelFacts, Operation, PromptTargets
from weaver.engine.mismatch import MismatchWatch
from weaver.errors import UserError
from weaver.kept import KeptFolders, open_store
from weaver.listing import Listing
from weaver.loss import Loss
from weaver.operators import Authenticator
from weaver.registry import Registry, load_registry
from weaver.service import door
from weaver.service.archive import Archive
from weaver.service.base_models import BaseModels
from weaver.service.custom_losses import Losses
from weaver.service.deployments import Deployments
from weaver.service.downloads import Downloads, Signer
from weaver.service.exports import Exports
from weaver.service.futures import FutureTable
from weaver.service.housekeeping import Housekeeper, give_back_memory
from weaver.service.imports import Imports
from weaver.service.meter import Meter
from weaver.service.observing import Observers
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
from weaver.service.run_metrics import RunMetrics
from weaver.service.sampling import SamplingSessions
from weaver.service.sessions import EXPIRED, Leases, Sessions
from weaver.service.shared_folder import Tenancy
from weaver.service.training import Training
from weaver.store import Store


class Service:
    """Sessions, models and samplers of one server or one process. Every method is quick and thread-safe.

    Methods raise `weaver.errors.UserError`s at once for what cannot be accepted, and nothing has changed then. What is
    accepted happens later: its ticket's `request_id` finds its future, which settles with a result or an error.

    `archive` has runs and checkpoints, `sessions` lists and searches, `downloads` links, `exports` what others load,
    `deployments` names of snapshots, `run_metrics` what applications measure. `clock` tells the time of day, `ticks`
    how much of it has passed while the machine was awake.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry | None = None,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry or load_registry(config.disabled_plugins, strict=config.strict_plugins)
        self._store = Store.in_folder(config.data_dir, clock)
        self._tenancy = Tenancy(config.data_dir)
        listing = Listing(self._store)
        self._observers = Observers(self._registry.observers.values())
        self.meter = Meter(listing, clock, self._observers.tell)
        self._futures = FutureTable(config.result_seconds, config.unfetched_seconds)
        self._folders = KeptFolders(config.data_dir, open_store(self._registry, config.checkpoint_store))
        self._losses = Losses(self._registry, self._futures)
        watch = MismatchWatch(config.mismatch_share, config.mismatch_warning)
        self._base_models = BaseModels(config, self._registry, self._losses, self._store, self._folders, watch)
        self._recorded = RecordedSequences(self._store)
        self._sampling = SamplingSessions(
            self._base_models, self._store, self._futures, self._recorded, self.meter, watch, config.data_dir
        )
        self._data_dir = config.data_dir
        self.archive = Archive(self._store, listing, self._folders, self._base_models.forget_adapter, watch.of)
        self._training = Training(
            self._base_models,
            self._store,
            self.archive,
            self._futures,
            self._losses,
            self._recorded,
            self.meter,
            Imports(config.models, ImportDirs(config.import_dirs), any_model=config.any_model),
        )
        self.sessions = Sessions(self._store, listing, Leases(config.lease_seconds, ticks))
        signer = Signer(config.data_dir, clock)
        self.downloads = Downloads(self._store, signer, self._folders)
        self.exports = Exports(self._store, self._folders, self._base_models, signer)
        self.deployments = Deployments(self._store, self.archive)
        self.run_metrics = RunMetrics(config.data_dir)
        self.tidy()
        self._housekeeper = Housekeeper(self.tidy, min(60.0, config.lease_seconds / 4))

    def tidy(self) -> None:
        """What happens by itself from time to time: end silent sessions, throw away what expired."""
        for session_id in self.sessions.silent(self._tenancy.is_alone):
            self._end_session(session_id, EXPIRED)
        self.archive.tidy()
        self.exports.tidy()
        self.meter.flush()
        self._sampling.tidy()
        give_back_memory()

    def losses(self) -> tuple[Loss, ...]:
        """Every loss that plugins bring, by name."""
        return tuple(self._registry.losses[name] for name in sorted(self._registry.losses))

    def authenticators(self) -> tuple[Authenticator, ...]:
        """Whom a door to this service asks who may come in."""
        return tuple(self._registry.authenticators.values())

    # Sessions

    def supported_models(self) -> tuple[SupportedModel, ...]:
        names = self._base_models.names()
        return tuple(SupportedModel(name, self._base_models.facts(name).context_length) for name in names)

    def base_model(self, name: str) -> ModelFacts:
        """What a served base model's configuration says. Raises InvalidInput for a model that is not served."""
        return self._base_models.facts(name)

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
        self._training.end_session(session_id)
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
        self.sessions.living(session_id)
        return self._training.create(session_id, model_seq_id, base_model, lora, user_metadata or {}, optimizer_kind)

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
        """Make a new adapter from a saved state, or from a PEFT folder `file:/...` below a directory that is allowed:
        same rank, alpha and modules, weights and, if asked, optimizer state.

        With its state the optimizer is the saved one; without, `optimizer_kind`, or AdamW.
        """
        self.sessions.living(session_id)
        return self._training.create_from(
            path,
            session_id,
            model_seq_id,
            base_model=base_model,
            optimizer=optimizer,
            optimizer_kind=optimizer_kind,
            user_metadata=user_metadata or {},
        )

    def model_info(self, model_id: str) -> ModelInfo:
        """Every effective setting of a model. Raises UnknownName."""
        return self._training.info(model_id)

    def end_model(self, model_id: str) -> None:
        """Free a model when what it has accepted is done. Its checkpoints stay; one that is not there is left so."""
        self._training.end_model(model_id)

    def submit(self, model_id: str, seq_id: int, operation: Operation) -> Ticket:
        """Accept a training operation; it runs in the order of `seq_id`, whatever order they arrive in.

        An exact repeat of (model_id, seq_id) gets the first one's ticket. What is wrong is told as `refuse` says.
        """
        self.model_info(model_id)  # before the session is renewed, for there may be none
        self.sessions.renew(model_id.partition(":")[0])
        return self._training.submit(model_id, seq_id, operation)

    def free_number(self, model_id: str) -> int:
        """For clients that do not number their operations: `submit` under it runs after all that have been accepted,
        where nobody else submits to the model meanwhile. Raises UnknownName, Forgotten."""
        return self._training.free_number(model_id)

    def refuse(self, model_id: str, seq_id: int, error: UserError) -> Ticket:
        """A request of that number cannot be accepted: raises `error`, and later numbers need not wait for it.

        Only a later part of a call whose first part is still to come gets a ticket; its future fails with `error`.
        """
        return self._training.refuse(model_id, seq_id, error)

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
        min_tokens: int = 0,
        prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        prompt_logprobs_last_n: int | None = None,
        prompt_temperature: float = 1.0,
        prompt_targets: PromptTargets | None = None,
        prompt_alternatives: int = 0,
        topk_sample_logprobs: int = 0,
        sampling_mask: bool = False,
        record_stability_info: bool = False,
        listener: Listener | None = None,
    ) -> SampleTicket:
        """Draw continuations of a prompt; see `weaver.domain.SamplingParams` and `SampleRequest`. No `max_tokens`: all
        that fits. With `record_stability_info`, losses that have recorded inputs can be trained on what is drawn. The
        listener of a repeat hears nothing."""
        ticket = self._sampling.sample(
            sampling_session_id,
            seq_id,
            prompt=prompt,
            num_samples=num_samples,
            max_tokens=max_tokens,
            questions={
                "prompt_logprobs": prompt_logprobs,
                "topk_prompt_logprobs": topk_prompt_logprobs,
                "prompt_logprobs_last_n": prompt_logprobs_last_n,
                "prompt_temperature": prompt_temperature,
                "prompt_targets": prompt_targets,
                "prompt_alternatives": prompt_alternatives,
                "topk_sample_logprobs": topk_sample_logprobs,
                "sampling_mask": sampling_mask,
            },
            options={
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "seed": seed,
                "stop_token_ids": stop_token_ids,
                "stop_strings": stop_strings,
                "min_tokens": min_tokens,
            },
            record=record_stability_info,
            listener=listener,
        )
        self.sessions.renew(sampling_session_id.partition(":")[0])
        return ticket

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
        self.exports.close()
        self.archive.tidy()
        self._base_models.close()
        self._recorded.close()
        self.meter.flush()
        self._observers.close()
        self._store.close()
        self._tenancy.close()
