"""The future of a sampling client."""

from typing import Any

from weaver.compat.tinker.lib.public_interfaces.backcompat_client_future import BackcompatClientFuture, forwards_to
from weaver.compat.tinker.lib.public_interfaces.sampling_client import SamplingClient


@forwards_to(SamplingClient)
class BackcompatSamplingClientFuture(BackcompatClientFuture[SamplingClient], SamplingClient):
    """See `BackcompatClientFuture`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self.result().__reduce__()
