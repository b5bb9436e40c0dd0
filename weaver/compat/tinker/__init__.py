"""Our own `tinker`: the public API of Tinker's SDK 0.38.0, in this process or over the wire.

`import weaver.compat.tinker as tinker` loads what a name needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from weaver.compat.tinker.module_paths import serve_module_paths
from weaver.compat.tinker.version import __title__, __version__

if TYPE_CHECKING:
    from weaver.compat.tinker import auth, types
    from weaver.compat.tinker.as_tinker import install as install
    from weaver.compat.tinker.exceptions import (
        APIConnectionError,
        APIError,
        APIResponseValidationError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        BillingError,
        ConflictError,
        ExperimentalWarning,
        InternalServerError,
        NotFoundError,
        PermissionDeniedError,
        RateLimitError,
        RequestFailedError,
        TinkerError,
        UnprocessableEntityError,
    )
    from weaver.compat.tinker.lib.public_interfaces.admin_client import AdminClient
    from weaver.compat.tinker.lib.public_interfaces.api_future import APIFuture
    from weaver.compat.tinker.lib.public_interfaces.backcompat_sampling_client_future import (
        BackcompatSamplingClientFuture,
    )
    from weaver.compat.tinker.lib.public_interfaces.backcompat_training_client_future import (
        BackcompatTrainingClientFuture,
    )
    from weaver.compat.tinker.lib.public_interfaces.custom_loss import (
        LossHandle,
        PerDatumLossFn,
    )
    from weaver.compat.tinker.lib.public_interfaces.rest_client import RestClient
    from weaver.compat.tinker.lib.public_interfaces.sampling_client import SamplingClient
    from weaver.compat.tinker.lib.public_interfaces.service_client import ServiceClient
    from weaver.compat.tinker.lib.public_interfaces.training_client import TrainingClient
    from weaver.compat.tinker.options import (
        RequestOptions,
        Timeout,
    )
    from weaver.compat.tinker.types import (
        AdamOptimizerConfig,
        AdamParams,
        Checkpoint,
        CheckpointType,
        Datum,
        DimuonOptimizerConfig,
        DimuonParams,
        DmelChunk,
        EncodedTextChunk,
        ForwardBackwardOutput,
        LoraConfig,
        ModelID,
        ModelInput,
        ModelInputChunk,
        OptimParams,
        OptimStepRequest,
        OptimStepResponse,
        ParsedCheckpointTinkerPath,
        PromptProvenanceSpan,
        SampledProvenanceSpan,
        SampledSequence,
        SampleRequest,
        SampleResponse,
        SamplingParams,
        StopReason,
        TensorData,
        TensorDtype,
        TrainingRun,
    )

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIFuture",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AdamOptimizerConfig",
    "AdamParams",
    "AdminClient",
    "AuthenticationError",
    "BackcompatSamplingClientFuture",
    "BackcompatTrainingClientFuture",
    "BadRequestError",
    "BillingError",
    "Checkpoint",
    "CheckpointType",
    "ConflictError",
    "Datum",
    "DimuonOptimizerConfig",
    "DimuonParams",
    "DmelChunk",
    "EncodedTextChunk",
    "ExperimentalWarning",
    "ForwardBackwardOutput",
    "InternalServerError",
    "LoraConfig",
    "LossHandle",
    "ModelID",
    "ModelInput",
    "ModelInputChunk",
    "NotFoundError",
    "OptimParams",
    "OptimStepRequest",
    "OptimStepResponse",
    "ParsedCheckpointTinkerPath",
    "PerDatumLossFn",
    "PermissionDeniedError",
    "PromptProvenanceSpan",
    "RateLimitError",
    "RequestFailedError",
    "RequestOptions",
    "RestClient",
    "SampleRequest",
    "SampleResponse",
    "SampledProvenanceSpan",
    "SampledSequence",
    "SamplingClient",
    "SamplingParams",
    "ServiceClient",
    "StopReason",
    "TensorData",
    "TensorDtype",
    "Timeout",
    "TinkerError",
    "TrainingClient",
    "TrainingRun",
    "UnprocessableEntityError",
    "__title__",
    "__version__",
    "auth",
    "types",
]

# Where each name is; those not here are in `types`. `install` is weaver's own.
_HOMES: Final = {
    "exceptions": "TinkerError APIError APIStatusError APITimeoutError APIConnectionError APIResponseValidationError "
    "RequestFailedError BadRequestError AuthenticationError BillingError PermissionDeniedError NotFoundError "
    "ConflictError UnprocessableEntityError RateLimitError InternalServerError ExperimentalWarning",
    "as_tinker": "install",
    "lib.public_interfaces.admin_client": "AdminClient",
    "lib.public_interfaces.api_future": "APIFuture",
    "lib.public_interfaces.backcompat_sampling_client_future": "BackcompatSamplingClientFuture",
    "lib.public_interfaces.backcompat_training_client_future": "BackcompatTrainingClientFuture",
    "lib.public_interfaces.custom_loss": "LossHandle PerDatumLossFn",
    "lib.public_interfaces.rest_client": "RestClient",
    "lib.public_interfaces.sampling_client": "SamplingClient",
    "lib.public_interfaces.service_client": "ServiceClient",
    "lib.public_interfaces.training_client": "TrainingClient",
    "options": "RequestOptions Timeout",
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names.split()}
_MODULES: Final = frozenset({"auth", "types"})

serve_module_paths()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF and name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF.get(name, 'types')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOME_OF})
