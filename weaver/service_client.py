"""`ServiceClient` and `AsyncServiceClient`. What their methods return is in the stub beside this file."""

from weaver.client.service_client import AsyncServiceClient, ServiceClient

__all__ = ["AsyncServiceClient", "ServiceClient"]
