"""The newest weights of models that are sampled from while they are trained."""

from dataclasses import dataclass

from weaver.domain import AdapterRef, SampleRequest


@dataclass(frozen=True, slots=True)
class Published:
    """A version of a model's weights."""

    version: int
    adapter: AdapterRef


class InflightWeights:
    """What has been published, by model. Messages may overtake each other: the higher version counts."""

    def __init__(self) -> None:
        self._newest: dict[str, Published] = {}
        self.changed = False

    def publish(self, model_id: str, published: Published) -> str | None:
        """Take in a version. Returns the id of the adapter whose place it takes."""
        before = self._newest.get(model_id)
        if before is not None and before.version >= published.version:
            return None
        self._newest[model_id], self.changed = published, True
        return None if before is None else before.adapter.adapter_id

    def forget(self, adapter_id: str) -> None:
        self._newest = {
            model_id: each for model_id, each in self._newest.items() if each.adapter.adapter_id != adapter_id
        }

    def adapter_of(self, request: SampleRequest) -> AdapterRef | None:
        """What the request uses now: its own adapter unless it follows a model of which there is a newer version."""
        if request.inflight is not None:
            published = self._newest.get(request.inflight.model_id)
            if published is not None and published.version > request.inflight.version:
                return published.adapter
        return request.adapter
