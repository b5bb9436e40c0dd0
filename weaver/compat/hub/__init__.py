"""The Hugging Face hub's routes for the served models' tokenizers: `HF_ENDPOINT=http://server` finds them by name."""

from weaver.compat.hub.routes import router

__all__ = ["router"]
