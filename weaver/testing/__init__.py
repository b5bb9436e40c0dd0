"""The contracts as code, for whoever writes a plugin: `check_loss`, `check_backend`, `check_sampler`.

Each raises AssertionError that says which promise is broken and how. With `-p weaver.testing.pytest_plugin` pytest has
the fixtures `weaver_server` and `weaver_registry`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from weaver.testing.backends import check_backend
    from weaver.testing.losses import check_loss
    from weaver.testing.samplers import check_sampler

__all__ = ["check_backend", "check_loss", "check_sampler"]

_HOMES: Final = {"check_backend": "backends", "check_loss": "losses", "check_sampler": "samplers"}


def __getattr__(name: str) -> Any:
    """Loads torch, and for backends and samplers transformers and peft, when a check is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
