"""Clients of a service: where a program begins."""

import atexit
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from weaver.client.connection import Connection, SessionDetails
from weaver.client.datasets import AsyncManagedDatasets, ManagedDatasets
from weaver.client.faces import Awaited, Blocking, Face, requests_of
from weaver.client.sampling_client import AsyncSamplingClient, SamplingClient
from weaver.client.service import ServiceRequests
from weaver.client.service_lists import ServiceLists
from weaver.client.settings import scheduling_policy as checked_policy
from weaver.client.settings import scope, settings
from weaver.client.training_client import AsyncTrainingClient, TrainingClient
from weaver.client.transports.choice import transport
from weaver.client.transports.contract import Json
from weaver.compat.tinker.lib import background
from weaver.types import LoraConfig, WeightsArtifact

DEFAULT_LORA: Final = LoraConfig(rank=32)
TAGS: Final = ("weaver-sdk",)


class ServiceMethods(ServiceLists, Face):
    """What both service clients do. Making one asks nobody."""

    _connects: ClassVar[bool]
    _trainers: ClassVar[type[TrainingClient] | type[AsyncTrainingClient]]
    _samplers: ClassVar[type[SamplingClient] | type[AsyncSamplingClient]]

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        default_tags: Sequence[str] | None = None,
        session_id: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        organization_id: str | None = None,
        project_id: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        user_metadata: dict[str, Any] | None = None,
        scheduling_policy: Mapping[str, Any] | None = None,
        heartbeat_interval: float = 30.0,
        tensor_transport: str | None = None,
        tensor_compression: str | None = None,
    ) -> None:
        """Without `base_url` and WEAVER_BASE_URL, of a service in this process, which needs no key."""
        self._settings = settings(base_url, api_key, tensor_transport, tensor_compression)
        if session_id and scheduling_policy is not None:
            raise ValueError("Cannot change scheduling_policy when reusing a session_id")
        details = SessionDetails(
            tags=list(default_tags or TAGS),
            user_metadata=dict(user_metadata or {}),
            name=(name or "").strip() or None,
            labels=dict(labels or {}),
            organization_id=scope(organization_id, "WEAVER_ORGANIZATION_ID"),
            project_id=scope(project_id, "WEAVER_PROJECT_ID"),
            organization=scope(organization, "WEAVER_ORGANIZATION"),
            project=scope(project, "WEAVER_PROJECT"),
            scheduling_policy=checked_policy(scheduling_policy),
        )
        self._connection = Connection(
            transport(self._settings),
            details,
            session_id,
            heartbeat_interval,
            connects=self._connects,
            opened=lambda: atexit.register(self._leave),
        )
        self._http = requests_of(type(self), self._connection)
        self._service = ServiceRequests(self._connection)

    @property
    def http(self) -> Any:
        """Requests by path. Raises RuntimeError before there is a connection."""
        if not self._connection.is_open:
            raise RuntimeError("ServiceClient is not connected")
        return self._http

    @property
    def session_id(self) -> str:
        """Raises RuntimeError before there is a session."""
        if not self._connection.session_id:
            raise RuntimeError("Session not initialized yet")
        return self._connection.session_id

    @property
    def tensor_transport(self) -> str:
        """How training data travel over HTTP: default, or http-binary."""
        return self._settings.tensor_transport

    @property
    def tensor_compression(self) -> str:
        """How they are packed: zstd, or raw."""
        return self._settings.tensor_compression

    def connect(self, *, ensure_session: bool = True) -> Any:
        """Reach the service and begin the session, or join the one that was named."""
        return self._answer(self._connection.connect(with_session=ensure_session))

    def ensure_session(
        self,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        tags: Sequence[str] | None = None,
        user_metadata: dict[str, Any] | None = None,
    ) -> Any:
        """The session, which is begun with these details if there is none yet."""
        details = self._connection.details
        details.tags = list(tags or details.tags)
        details.name = details.name if name is None else name.strip() or None
        details.labels = details.labels if labels is None else dict(labels)
        details.user_metadata = details.user_metadata if user_metadata is None else user_metadata
        return self._answer(self._session())

    async def _session(self) -> Json:
        await self._connection.the_session(begins=True)
        assert self._connection.session is not None
        return self._connection.session

    def create_model(
        self,
        *,
        base_model: str,
        model_seq_id: int | None = None,
        training_mode: str | None = None,
        lora_config: LoraConfig | dict[str, Any] = DEFAULT_LORA,
        user_metadata: dict[str, Any] | None = None,
        performance_tier: str | None = None,
        training_max_sequence_length: int | None = None,
    ) -> Any:
        """A new model to train, with low-rank adapters unless `training_mode` says full_ft; returns its client."""

        async def made() -> Any:
            answer = await self._service.create_model(
                base_model,
                model_seq_id,
                training_mode,
                lora_config,
                user_metadata,
                performance_tier,
                training_max_sequence_length,
            )
            return self._trainers(
                service=self,
                model_id=str(answer["id"]),
                base_model=str(answer["base_model"]),
                session_id=answer["session_id"],
                tokenizer_path=answer["tokenizer_path"],
                debug_info=answer["debug_info"],
            )

        return self._answer(made())

    def create_training_client(self, **kwargs: Any) -> Any:
        """`create_model` by its other name."""
        return self.create_model(**kwargs)

    def create_sampling_client(
        self,
        *,
        base_model: str | None = None,
        model_path: str | None = None,
        sampling_session_seq_id: int | None = None,
        sampling_session_id: str | None = None,
        model_id: str | None = None,
        tokenizer_path: str | None = None,
    ) -> Any:
        """A client that samples from a base model, from saved weights, or in a sampling session that there is."""
        work = self._sampling_client(
            base_model, model_path, model_id, sampling_session_id, tokenizer_path, sampling_session_seq_id
        )
        return self._answer(work)

    def get_sampling_client(
        self,
        model_path: str,
        *,
        base_model: str | None = None,
        model_id: str | None = None,
        sampling_session_id: str | None = None,
        tokenizer_path: str | None = None,
    ) -> Any:
        """A client that samples from saved weights."""
        return self._answer(
            self._sampling_client(base_model, model_path, model_id, sampling_session_id, tokenizer_path)
        )

    async def _sampling_client(
        self,
        base_model: str | None,
        model_path: str | None,
        model_id: str | None,
        session_id: str | None,
        tokenizer_path: str | None,
        number: int | None = None,
    ) -> Any:
        if session_id is None:
            made = await self._service.create_sampling_session(base_model, model_path, model_id, number)
            session_id, tokenizer_path = str(made["id"]), tokenizer_path or made.get("tokenizer_path")
        return self._samplers(
            service=self,
            sampling_session_id=session_id,
            base_model=base_model,
            model_path=model_path,
            model_id=model_id,
            tokenizer_path=tokenizer_path,
        )

    def terminate_model(self, model_id: str, instance_types: list[str] | None = None) -> Any:
        """Give back what a model takes."""
        return self._answer(self._service.terminate(model_id, instance_types))

    def enqueue_operation(self, path: str, payload: dict[str, Any], *, tensor_pack: None = None) -> Any:
        """Ask for work by its path; returns a handle. Arrays in the payload travel as the client's settings say."""
        if tensor_pack is not None:
            raise ValueError("tensor_pack is made by the client: put arrays into the payload instead")
        return self._operation(self._service.operation(path.removeprefix("/api/v1"), payload), False)

    def next_operation_seq(self, model_id: str) -> int:
        """The number of the next operation on a model, for requests of your own."""
        if not model_id:
            raise ValueError("model_id is required to generate seq_id")
        return self._connection.next_number(model_id)

    def download_weights(
        self,
        target: str | WeightsArtifact,
        dest: str | Path,
        *,
        kind: str | None = None,
        verify: bool = True,
        max_concurrency: int = 4,
    ) -> Any:
        """Fetch exported weights into a folder, going on where an earlier attempt stopped; returns the folder.

        `target` is an artifact, its weaver:// URI or its id, or a checkpoint's URI. `verify` compares sha256.
        """
        folder = Path(dest).expanduser()
        return self._answer(self._service.download(target, folder, kind, verify, max_concurrency))

    def _reach(self) -> None:
        """Connect without a session, and see that somebody answers: whoever is not there is given up soon."""
        self._connection.wait(self._connection.connect(with_session=False))
        self._connection.wait(self._connection.request("GET", "/organizations", attempts=1))

    def _leave(self) -> None:
        """At the end of the process: after an error nothing is waited for."""
        self._end(waits=not hasattr(sys, "last_type"))

    def _end(self, *, waits: bool) -> None:
        """Blocks, except on the loop itself: a client may be collected as garbage there."""
        work = self._connection.close(waits=waits)
        if self._connection.closed:
            work.close()
        elif background.is_here():
            background.task(work)
        else:
            background.run(work).result()
        atexit.unregister(self._leave)


class ServiceClient(ServiceMethods, Blocking):
    """A service; methods return when they are done. `connect` it first, or use it in a `with` block."""

    _connects = False
    _trainers = TrainingClient
    _samplers = SamplingClient

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._end(waits=kind is None)

    @property
    def datasets(self) -> ManagedDatasets:
        """The datasets that the service keeps."""
        return ManagedDatasets(self._connection)

    def close(self) -> None:
        """See to what was accepted, give back what this client's models take, and end the session."""
        self._end(waits=True)


class AsyncServiceClient(ServiceMethods, Awaited):
    """A service; methods are to be awaited. The first of them connects."""

    _connects = True
    _trainers = AsyncTrainingClient
    _samplers = AsyncSamplingClient

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        await self._left(waits=kind is None)

    @property
    def datasets(self) -> AsyncManagedDatasets:
        """The datasets that the service keeps."""
        return AsyncManagedDatasets(self._connection)

    async def aclose(self) -> None:
        """See to what was accepted, give back what this client's models take, and end the session."""
        await self._left(waits=True)

    async def _left(self, *, waits: bool) -> None:
        await self._connection.awaited(self._connection.close(waits=waits))
        atexit.unregister(self._leave)
