"""The adapters a sampler holds in memory: loaded when first used, and again when they had to make room."""

from collections import OrderedDict
from collections.abc import Collection

from weaver.domain import AdapterRef
from weaver_peft.adapters import adapter_bytes, load_adapter
from weaver_peft.base_model import BaseModel
from weaver_peft.call import LoraWeights


class AdapterCache:
    """Least recently used adapters leave first; those in use never do. Owned by the sampler's thread."""

    def __init__(self, base: BaseModel, capacity_bytes: int) -> None:
        self._base = base
        self._capacity_bytes = capacity_bytes
        self._loaded: OrderedDict[str, LoraWeights] = OrderedDict()
        self._bytes: dict[str, int] = {}
        self._forgotten: set[str] = set()

    def __contains__(self, adapter_id: str) -> bool:
        return adapter_id in self._loaded

    def get(self, adapter: AdapterRef) -> LoraWeights:
        """The adapter's weights, the same object for as long as it is in use. Raises what `load_adapter` raises."""
        weights = self._loaded.get(adapter.adapter_id)
        if weights is None:
            weights = self._loaded[adapter.adapter_id] = load_adapter(adapter.folder, self._base)
            self._bytes[adapter.adapter_id] = adapter_bytes(weights)
            self._forgotten.discard(adapter.adapter_id)
        self._loaded.move_to_end(adapter.adapter_id)
        return weights

    def forget(self, adapter_id: str) -> None:
        """Drop it at the next `trim` that does not find it in use."""
        if adapter_id in self._loaded:
            self._forgotten.add(adapter_id)

    def trim(self, in_use: Collection[str]) -> None:
        """Drop what was forgotten, then the least recently used until the rest fits; nothing that is in use."""
        for adapter_id in self._forgotten - set(in_use):
            self._drop(adapter_id)
        excess = sum(self._bytes.values()) - self._capacity_bytes
        for adapter_id in [each for each in self._loaded if each not in in_use]:
            if excess <= 0:
                return
            excess -= self._drop(adapter_id)

    def _drop(self, adapter_id: str) -> int:
        """Returns the bytes that are free now."""
        del self._loaded[adapter_id]
        self._forgotten.discard(adapter_id)
        return self._bytes.pop(adapter_id)
