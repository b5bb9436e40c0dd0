"""What must hold of every answer to every request, whatever the request."""

import json

from httpx import TimeoutException

from tests.fuzz.state import differences, numbers_of, numbers_taken
from tests.fuzz.world import PROTOBUF
from weaver.compat.openai import is_ours

LONG_POLLS = ("/retrieve_future", "/retrieve_futures")


class Broken(AssertionError):
    """The server broke a promise."""


def check(world, asked):
    """Send one request and raise Broken unless the server keeps what it promises; returns the answer."""
    world.ensure()
    before, numbers = world.state(), numbers_of(world.service)
    try:
        answer = world.ask(asked)
    except TimeoutException:
        raise Broken(f"no answer in time\n\n{asked}") from None
    try:
        _check_answer(asked, answer)
        _check_threads(world)
        if answer.refused:
            _check_unchanged(world, before, numbers)
        elif answer.settled is not None:
            _check_result(answer.settled)
    except Broken as error:
        raise Broken(f"{error}\n\n{asked}\n\n{answer.status} {answer.body[:1000]!r}") from None
    return answer


def _check_answer(asked, answer):
    if answer.status >= 500:
        raise Broken("a request made the server fail")
    is_poll = answer.status == 408 and asked.path.endswith(LONG_POLLS)
    if answer.status in (408, 409, 429) and not is_poll and b'"retryable":false' not in answer.body:
        raise Broken("a refusal that the SDK would repeat for minutes")
    if answer.refused and asked.method != "HEAD":
        _check_refusal(asked, answer)
    elif answer.body and answer.headers.get("content-type") == "application/json":
        json.loads(answer.body, parse_constant=_no_constant)


def _check_refusal(asked, answer):
    if "content-length" not in answer.headers:
        raise Broken("a refusal without Content-Length, which the SDK repeats")
    try:
        told = json.loads(answer.body)
        by_weavers_wire = told["message"] if "retryable" in told else None
        detail = told["error"]["message"] if is_ours(asked.path) else by_weavers_wire or told["detail"]
    except (ValueError, TypeError, KeyError):
        raise Broken("a refusal that is no JSON object with `detail`, or `error` with `message`") from None
    if not isinstance(detail, str) or not detail.strip():
        raise Broken("a refusal that says nothing")


def _no_constant(name):
    raise Broken(f"{name} is no JSON")


def _check_result(settled):
    """What was accepted and then failed failed by the request: the user's to change."""
    if settled.status != 200:
        raise Broken(f"the result of an accepted request is answered {settled.status}: {settled.body!r}")
    if settled.headers["content-type"] == PROTOBUF:
        return
    result = settled.json()
    if "error" in result and (result["category"] != "user" or not result["error"]):
        raise Broken(f"a request made an operation fail as if by the server: {result}")


def _check_unchanged(world, before, numbers):
    if changed := differences(before, world.state()):
        raise Broken("a refused request changed something:\n" + "\n".join(changed))
    after = numbers_of(world.service)
    if after.keys() != numbers.keys() or sum(numbers_taken(numbers[one], after[one]) for one in numbers) > 1:
        raise Broken(f"a refused request took more than its own number: {numbers} -> {after}")


def _check_threads(world):
    for engine in world.service._base_models._engines.values():
        if not engine._thread.is_alive():
            raise Broken("the engine's thread is dead")
