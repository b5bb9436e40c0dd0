"""Tokens and their logprobs as clients read them. Each drawn token has an entry, the one that stopped it too."""

from collections.abc import Sequence
from typing import Any

from weaver.compat.openai.jobs import Job
from weaver.domain import DrawnToken, SampledSequence

Json = dict[str, Any]


def drawn_tokens(sequence: SampledSequence, index: int) -> list[DrawnToken]:
    """The tokens of a sample as they would have been told while it was drawn."""
    tokens, logprobs, top = sequence.tokens.tolist(), sequence.logprobs.tolist(), sequence.top_logprobs
    if top is None:
        return [DrawnToken(index, *pair) for pair in zip(tokens, logprobs, strict=True)]
    rows = zip(top.token_ids_nk.tolist(), top.logprobs_nk.tolist(), strict=True)
    likeliest = [[(token, lp) for token, lp in zip(*row, strict=True) if lp == lp] for row in rows]
    return [DrawnToken(index, *triple) for triple in zip(tokens, logprobs, likeliest, strict=True)]


def content_logprobs(job: Job, drawn: Sequence[DrawnToken]) -> list[Json]:
    """Of a chat."""
    return [
        _entry(job, one.token, one.logprob)
        | {"top_logprobs": [_entry(job, token, logprob) for token, logprob in one.likeliest]}
        for one in drawn
    ]


def completion_logprobs(job: Job, drawn: Sequence[DrawnToken], offset: int) -> tuple[Json, int]:
    """Of a completion, and the offset of what comes next. `top_logprobs` has the drawn token in any case."""
    offsets = []
    for one in drawn:
        offsets.append(offset)
        offset += len(job.language.bytes_of(one.token).decode(errors="ignore"))
    top = [
        {_name(job, token): logprob for token, logprob in (*one.likeliest, (one.token, one.logprob))} for one in drawn
    ]
    told = {
        "tokens": [_name(job, one.token) for one in drawn],
        "token_logprobs": [one.logprob for one in drawn],
        "top_logprobs": top,
        "text_offset": offsets,
    }
    return told, offset


def _entry(job: Job, token: int, logprob: float) -> Json:
    return {"token": _name(job, token), "logprob": logprob, "bytes": list(job.language.bytes_of(token))}


def _name(job: Job, token: int) -> str:
    r"""The token's text; `bytes:\x..` for a part of a character, which is no text yet."""
    if job.asked.return_tokens_as_token_ids:
        return f"token_id:{token}"
    found = job.language.bytes_of(token)
    try:
        return found.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)
