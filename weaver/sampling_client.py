"""`SamplingClient`, where users of Weaver's API import it from."""

from weaver.client.sampling_client import SamplingClient

__all__ = ["SamplingClient"]
