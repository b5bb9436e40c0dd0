"""Acknowledgements of operations, and asking for their results."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from weaver.compat.tinker.types.base import Lenient, Strict
from weaver.compat.tinker.types.forward_backward import ForwardBackwardOutput
from weaver.compat.tinker.types.models import CreateModelResponse, UnloadModelResponse
from weaver.compat.tinker.types.names import ModelID, RequestErrorCategory, RequestID
from weaver.compat.tinker.types.optimizer import OptimStepResponse
from weaver.compat.tinker.types.weights import (
    LoadWeightsResponse,
    SaveWeightsExternalResponse,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
)


class UntypedAPIFuture(Lenient):
    """An operation is acknowledged; `request_id` fetches its result. Samples also learn their sequences' names."""

    request_id: RequestID
    model_id: ModelID | None = None
    sample_sequence_ids: list[str] | None = None


class FutureRetrieveRequest(Strict):
    """Asks for one result, or for its size when it is large."""

    request_id: RequestID
    allow_metadata_only: bool = False


class SamplingSessionFuturesTarget(Strict):
    """The samples of one client of a sampler."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str
    cloned_sampler_id: int = 0


class FuturesRetrieveRequest(Strict):
    """Asks which of many samples are ready since `prev_cursor`."""

    target: SamplingSessionFuturesTarget
    prev_cursor: int = 0
    timeout: float | None = None
    retrieved_request_ids: list[str] = Field(default=[])


class FutureFinished(Lenient):
    """A result is ready, and how large it is."""

    state: Literal["finished"] = "finished"
    request_id: RequestID
    response_payload_uncompressed_size: int | None = None


class FutureFailed(Lenient):
    """An operation failed; its result says why."""

    state: Literal["failed"] = "failed"
    request_id: RequestID


FutureCompletion: TypeAlias = Annotated[FutureFinished | FutureFailed, Field(discriminator="state")]


class FuturesRetrieveResponse(Lenient):
    """What became ready, and the cursor to ask from next."""

    completions: list[FutureCompletion]
    cursor: int


class TryAgainResponse(Lenient):
    """The result is not ready; `queue_state` says whether that is for lack of capacity."""

    type: Literal["try_again"] = "try_again"
    request_id: str
    queue_state: Literal["active", "paused_capacity", "paused_rate_limit"]


class RequestFailedResponse(Lenient):
    """The operation failed: why, and whose fault it was."""

    error: str
    category: RequestErrorCategory


FutureRetrieveResponse: TypeAlias = (
    TryAgainResponse
    | ForwardBackwardOutput
    | OptimStepResponse
    | SaveWeightsResponse
    | LoadWeightsResponse
    | SaveWeightsForSamplerResponse
    | SaveWeightsExternalResponse
    | CreateModelResponse
    | UnloadModelResponse
    | RequestFailedResponse
)
