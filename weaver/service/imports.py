"""Adapters that clients bring in folders of their own: `file:/...` where a path of a saved state may stand."""

import os
from collections.abc import Sequence

from weaver.adapter_folders import SCHEME, AdapterFacts, ImportDirs, describe_adapter
from weaver.backend import ModelSource
from weaver.errors import InvalidInput
from weaver.service.records import CheckpointInfo


def is_import(path: str) -> bool:
    return path.startswith(SCHEME)


class Imports:
    """Looks a folder up and decides which base model it is for. Every method may be called from any thread."""

    def __init__(self, sources: Sequence[ModelSource], dirs: ImportDirs, *, any_model: bool) -> None:
        self._sources, self._dirs, self._any_model = sources, dirs, any_model

    def saved(self, path: str, base_model: str | None, *, optimizer: bool) -> CheckpointInfo:
        """The folder as if a training state had been saved there. Raises InvalidInput for what cannot be trained."""
        folder = self._dirs.folder(path)
        facts = describe_adapter(folder)
        if optimizer:
            raise InvalidInput(f"path {path!r} is a PEFT adapter, which has no optimizer state; load its weights only")
        return CheckpointInfo(
            path=path,
            model_id="",
            kind="weights",
            name=folder.name,
            base_model=self._base_model(path, facts, base_model),
            lora=facts.lora,
            created=0.0,
            expires=None,
            size_bytes=0,
            user_metadata={},
        )

    def _base_model(self, path: str, facts: AdapterFacts, asked: str | None) -> str:
        """The served model that the folder names, by name or location; or, where it names none, the one asked for."""
        meant = [source.name for source in self._sources if _is_of(source, facts.base_model)]
        if asked is not None and (asked in meant or not meant):
            return asked
        if asked is None and len(meant) == 1:
            return meant[0]
        if asked is None and not meant and facts.base_model and self._any_model:
            return facts.base_model
        served = ", ".join(source.name for source in self._sources)
        if asked is not None:
            raise InvalidInput(f"base_model is {asked!r}, but {path!r} was trained on {' or '.join(map(repr, meant))}")
        raise InvalidInput(
            f"path {path!r} was trained on {facts.base_model!r}, which is {'several of' if meant else 'none of'} the "
            f"models served here ({served}); name one as base_model"
        )


def _is_of(source: ModelSource, written: str) -> bool:
    return bool(written) and (
        written in (source.name, source.location)
        or (os.path.isabs(written) and os.path.realpath(written) == os.path.realpath(source.location))
    )
