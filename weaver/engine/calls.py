"""Calls that a client sent in parts, put together for a loss that must see all of their data, and taken apart again."""

from collections.abc import Sequence
from dataclasses import replace

from weaver.domain import ForwardBackward, ForwardBackwardResult
from weaver.errors import InvalidInput, WeaverError


def merged(parts: Sequence[ForwardBackward]) -> ForwardBackward:
    """One pass over the data of all parts. Raises InvalidInput for parts that are not of one call."""
    first = parts[0]
    for part in parts:
        if (part.loss, part.config, part.backward) != (first.loss, first.config, first.backward):
            raise InvalidInput(
                f"the loss {first.loss!r} must see all data of a call, and this call's parts differ in loss_fn, "
                "loss_fn_config or forward_only; wait for the answer to one call before you send the next"
            )
    return replace(first, data=tuple(datum for part in parts for datum in part.data))


def apart(
    outcome: ForwardBackwardResult | WeaverError, parts: Sequence[ForwardBackward]
) -> list[ForwardBackwardResult | WeaverError]:
    """The outcome of each part. The client adds the parts' sums up, so the first has them and the others 0; what it
    averages or compares is the same in each."""
    if isinstance(outcome, WeaverError):
        return [outcome] * len(parts)
    found: list[ForwardBackwardResult | WeaverError] = []
    start = 0
    for part in parts:
        mine = slice(start, start + len(part.data))
        metrics = {name: 0.0 if start and name.endswith(":sum") else value for name, value in outcome.metrics.items()}
        found.append(ForwardBackwardResult(outcome.logprobs[mine], metrics, outcome.outputs[mine]))
        start = mine.stop
    return found
