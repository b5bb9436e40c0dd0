"""The engine: takes operations in order per model, packs passes across models, runs them, settles their futures."""

from weaver.engine.engine import Engine
from weaver.engine.lazy_sampler import LazySampler

__all__ = ["Engine", "LazySampler"]
