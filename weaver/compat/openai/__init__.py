"""OpenAI's chat and completion endpoints over what this server samples from; see docs/openai.md."""

from weaver.compat.openai.errors import is_ours, refusal
from weaver.compat.openai.routes import router
from weaver.compat.openai.sampling import Samplers

__all__ = ["Samplers", "is_ours", "refusal", "router"]
