"""What this SDK can ask for and this server does not have: each refusal says so, and what to do instead."""

from collections.abc import Sequence
from typing import Any, Final

from weaver.compat.weaver_wire.context import Answer, Body, Handler, Params, WireContext
from weaver.compat.weaver_wire.errors import NotOffered


def _refuse(sentence: str) -> Handler:
    async def refuse(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
        raise NotOffered(sentence)

    return refuse


_DATASETS = _refuse("this server has no managed datasets; send the tokens themselves in model_input")
_QUOTA = _refuse("this server has no quotas: nothing is billed, and nothing runs out but the machine")
_GENERATION = _refuse(
    "generation is paused for models with training_mode 'full_ft' only; this server's models are LoRA adapters, which "
    "share one sampler"
)
_SESSIONS = _refuse("sampling sessions cost nothing and end with their session; there is no need to delete one")
_WEIGHT_SYNC = _refuse("this server has no weight sync; save weights for the sampler and open a sampling session")

ENDPOINTS: Final[Sequence[tuple[str, str, Any]]] = (
    ("GET", "/managed-datasets", _DATASETS),
    ("GET", "/managed-datasets/{name}/versions/{version}", _DATASETS),
    ("POST", "/models/{model_id}/managed-dataset-sample-lengths", _DATASETS),
    ("GET", "/quota/balance", _QUOTA),
    ("GET", "/quota/requests", _QUOTA),
    ("POST", "/quota/requests", _QUOTA),
    ("POST", "/sampling-sessions/{sampling_session_id}/pause-generation", _GENERATION),
    ("POST", "/sampling-sessions/{sampling_session_id}/continue-generation", _GENERATION),
    ("DELETE", "/sampling-sessions/{sampling_session_id}", _SESSIONS),
    ("POST", "/models/{model_id}/publish-live-weights-nccl-v1", _WEIGHT_SYNC),
)
