"""weaver: fine-tune language models with your own loop, on your own machines.

The names here are Weaver's own API; each loads what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from os.path import dirname, exists, join

TYPE_CHECKING = False  # as in `typing`, which alone takes longer to import than all of this may
if TYPE_CHECKING:
    from typing import Any, Final

    from weaver import types
    from weaver.client.errors import WeaverAPIError
    from weaver.client.operations import AsyncOperationHandle, OperationHandle
    from weaver.client.outputs import align_training_outputs, attach_loss_fn_outputs
    from weaver.sampling_client import AsyncSamplingClient
    from weaver.service_client import AsyncServiceClient, ServiceClient
    from weaver.training_client import AsyncTrainingClient
    from weaver.types import (
        WEAVER_REDACTED_TOKEN_ID,
        Deployment,
        ManagedDatasetInfo,
        ManagedDatasetPage,
        ManagedDatasetVisibility,
        SampleRef,
        SampleRefLength,
        SampleRefOutput,
        SupportedModel,
        SupportedModelPrice,
        SupportedTrainingMode,
        WeightsArtifact,
    )

__version__ = "0.1.0"
__all__ = [
    "WEAVER_REDACTED_TOKEN_ID",
    "AsyncOperationHandle",
    "AsyncSamplingClient",
    "AsyncServiceClient",
    "AsyncTrainingClient",
    "Deployment",
    "ManagedDatasetInfo",
    "ManagedDatasetPage",
    "ManagedDatasetVisibility",
    "OperationHandle",
    "SampleRef",
    "SampleRefLength",
    "SampleRefOutput",
    "ServiceClient",
    "SupportedModel",
    "SupportedModelPrice",
    "SupportedTrainingMode",
    "WeaverAPIError",
    "WeightsArtifact",
    "__version__",
    "align_training_outputs",
    "attach_loss_fn_outputs",
    "types",
]

# Where each name is; those not here are in `types`.
_HOMES: Final = {
    "client.errors": "WeaverAPIError",
    "client.operations": "AsyncOperationHandle OperationHandle",
    "client.outputs": "align_training_outputs attach_loss_fn_outputs",
    "client.sampling_client": "AsyncSamplingClient",
    "client.service_client": "AsyncServiceClient ServiceClient",
    "client.training_client": "AsyncTrainingClient",
}
_THEIRS: Final = "async_service_client.py"
"""A file of the package nex-weaver, which has the same import name, and none of ours."""
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOME_OF.get(name, 'types')}")
    value = module if name == "types" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _warn_of_both() -> None:
    """Costs a look at the disk."""
    if exists(join(dirname(__file__), _THEIRS)):
        import_module("warnings").warn(
            "nex-weaver is installed into the same folder as weaver, and each has overwritten files of the other: "
            "pip uninstall nex-weaver weaver-train, then install the one you want",
            RuntimeWarning,
            stacklevel=3,
        )


_warn_of_both()
