"""`SamplingClient` and `AsyncSamplingClient`, where users of Weaver's API import them from. What their methods return
is in the stub beside this file."""

from weaver.client.sampling_client import AsyncSamplingClient, SamplingClient

__all__ = ["AsyncSamplingClient", "SamplingClient"]
