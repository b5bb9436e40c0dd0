"""The `*_async` twins of 0.37 and before: they do what the plain method does, and say so."""

from collections.abc import Callable
from typing import Any, TypeVar

from typing_extensions import deprecated

Method = TypeVar("Method", bound=Callable[..., Any])


def twin_of(plain: str) -> Callable[[Method], Method]:
    """Marks an async method whose plain one, like `TrainingClient.forward`, returns what can be awaited."""
    return deprecated(
        f"{plain}_async() is deprecated: use {plain}(...), whose result can be awaited", category=FutureWarning
    )


def old(instead: str) -> Callable[[Method], Method]:
    """Marks a method that code should not use any more, with what it should use."""
    return deprecated(instead, category=FutureWarning)
