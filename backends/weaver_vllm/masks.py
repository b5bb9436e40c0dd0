"""Sampling masks, as far as vLLM can tell them: where nothing was cut off."""

from weaver.domain import SampleRequest, TokenRows
from weaver.errors import InvalidInput


def refuse_masks(request: SampleRequest) -> None:
    """Raises InvalidInput where vLLM would have to tell what it cut off: it tells that to nobody."""
    params = request.params
    cuts = params.temperature and (params.top_k != -1 or params.top_p != 1)
    if request.sampling_mask and (cuts or params.min_tokens):
        raise InvalidInput(
            "return_sampling_mask: the sampler 'vllm' does not tell what top_k, top_p and min_tokens leave. Draw with "
            "top_k -1, top_p 1 and no min_tokens, where masks are empty, or serve with --sampler embedded"
        )


def mask_of(request: SampleRequest, count: int) -> TokenRows | None:
    """Of a sequence of so many tokens, each of which was drawn among the whole vocabulary."""
    return TokenRows.of_lists([()] * count) if request.sampling_mask else None
