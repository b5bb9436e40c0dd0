"""Handles of operations and what their failure raises, where users of Weaver's API import them from."""

from weaver.client.errors import WeaverOperationError
from weaver.client.operations import (
    AsyncOperationHandle,
    OperationHandle,
    build_async_operation_handle,
    build_operation_handle,
)

__all__ = [
    "AsyncOperationHandle",
    "OperationHandle",
    "WeaverOperationError",
    "build_async_operation_handle",
    "build_operation_handle",
]
