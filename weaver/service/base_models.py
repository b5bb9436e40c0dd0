"""The base models a service offers: each with its engine and its sampler, made on first use."""

import threading
from dataclasses import replace
from pathlib import Path

from weaver.adapter_folders import ImportDirs
from weaver.backend import BackendFactory, ModelFacts, ModelSource
from weaver.config import Config
from weaver.domain import Adapter, AdapterRef
from weaver.engine import Engine, LazySampler
from weaver.engine.executor import Executor
from weaver.engine.mismatch import MismatchWatch
from weaver.errors import InvalidInput
from weaver.kept import KeptFolders
from weaver.registry import Registry
from weaver.service.custom_losses import Losses
from weaver.store import Store
from weaver.workers import open_backend


class BaseModels:
    """Looks a base model up by the name clients use. Every method may be called from any thread."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        losses: Losses,
        store: Store,
        folders: KeptFolders,
        watch: MismatchWatch,
    ) -> None:
        self._config, self._losses, self._store, self._folders = config, losses, store, folders
        self._watch = watch
        self._sources = {source.name: source for source in config.models}
        self._backend, self._sampler = registry.backend(config.backend), registry.sampler(config.sampler)
        self._options = self._backend.effective_options(config.backend_options)
        self._sampler_options = self._sampler.effective_options(config.sampler_options)
        self._lock = threading.Lock()
        self._facts: dict[str, ModelFacts] = {}
        self._engines: dict[str, Engine] = {}
        self._samplers: dict[str, LazySampler] = {}

    def names(self) -> tuple[str, ...]:
        return tuple(self._sources)

    @property
    def backend(self) -> BackendFactory:
        """What trains all of them."""
        return self._backend

    def facts(self, name: str) -> ModelFacts:
        """What the model's configuration says. Raises InvalidInput for one that is not served, or cannot be read."""
        source = self._source(name)
        with self._lock:
            if name not in self._facts:
                self._facts[name] = self._backend.describe(self._for_backend(source))
            return self._facts[name]

    def engine(self, name: str) -> Engine:
        source = self._source(name)
        with self._lock:
            if name not in self._engines:
                self._engines[name] = self._new_engine(source)
            return self._engines[name]

    def sampler(self, name: str) -> LazySampler:
        source = self._source(name)
        with self._lock:
            if name not in self._samplers:
                self._samplers[name] = LazySampler(
                    lambda: self._sampler.open(replace(source, options=self._sampler_options)), self._folders
                )
            return self._samplers[name]

    def forget_adapter(self, base_model: str, adapter_id: str) -> None:
        """Free what the sampler keeps of an adapter, where there is one."""
        with self._lock:
            sampler = self._samplers.get(base_model)
        if sampler is not None:
            sampler.forget(adapter_id)

    def merge(self, adapter: Adapter, folder: Path) -> None:
        """Write the adapter's base model with the adapter added to its weights into an empty folder."""
        self._backend.merge(self._for_backend(self._source(adapter.base_model)), adapter, folder)

    def close(self) -> None:
        with self._lock:
            samplers, engines = list(self._samplers.values()), list(self._engines.values())
        for sampler in samplers:
            sampler.close()
        for engine in engines:  # without the lock: what an engine finishes may be to tell a sampler of newer weights
            engine.close()

    def _source(self, name: str) -> ModelSource:
        if name not in self._sources:
            if self._config.any_model and name:
                return ModelSource(name, name)
            raise InvalidInput(f"base_model {name!r} is not served here; there are: {', '.join(self._sources)}")
        return self._sources[name]

    def _for_backend(self, source: ModelSource) -> ModelSource:
        return replace(source, options=self._options)

    def _new_engine(self, source: ModelSource) -> Engine:
        def publish(model_id: str, version: int, adapter: AdapterRef) -> None:
            self.sampler(source.name).publish(model_id, version, adapter)

        executor = Executor(
            lambda: open_backend(self._backend, self._for_backend(source), self._config.disabled_plugins),
            self._losses,
            self._store,
            self._folders,
            publish,
            self._watch,
            ImportDirs(self._config.import_dirs),
        )
        engine = Engine(executor, self._config.gap_seconds)
        engine.start()
        return engine
