"""The exceptions carry what the SDK's carry, and which one an answer becomes is the same."""

import copy
import pickle

import httpx
import pytest
import tinker as theirs

import weaver.compat.tinker as ours
from weaver.compat.tinker import exceptions

REQUEST = httpx.Request("POST", "http://127.0.0.1/api/v1/optim_step")
BODY = {"detail": "no"}
NAMES = [name for name in theirs.__all__ if name.endswith("Error")]
STATUSES = [400, 401, 402, 403, 404, 408, 409, 410, 413, 418, 422, 429, 500, 502, 503, 599]


def answer(status):
    return httpx.Response(status, json=BODY, request=REQUEST)


def make(library, name):
    """One of each, built as the SDK's constructors are called."""
    error = getattr(library, name)
    match name:
        case "TinkerError":
            return error("text")
        case "APIError":
            return error("text", REQUEST, body=BODY)
        case "APIConnectionError" | "APITimeoutError":
            return error(request=REQUEST)
        case "APIResponseValidationError":
            return error(response=answer(200), body=BODY)
        case "RequestFailedError":
            return error("text", "r1", library.types.RequestErrorCategory.User)
    return error("text", response=answer(418), body=BODY)


def told(error):
    """What users read from an error, with what cannot be compared by itself made text."""
    return {
        "str": str(error),
        "args": repr(error.args),
        **{name: str(value) for name, value in vars(error).items() if name not in ("request", "response")},
        "request": str(getattr(error, "request", None)),
        "response": str(getattr(error, "response", None)),
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name != "APIResponseValidationError"])
def test_an_error_tells_the_same(name):
    assert told(make(ours, name)) == told(make(theirs, name))


def test_an_answer_of_another_shape_tells_the_same_but_for_the_words():
    error = ours.APIResponseValidationError(answer(200), BODY)
    assert (error.status_code, error.body, str(error.request)) == (200, BODY, str(REQUEST))
    assert str(error) == "the server's answer is not of the expected shape"
    assert str(ours.APIResponseValidationError(answer(200), BODY, "no loss_id")) == "no loss_id"


@pytest.mark.parametrize("name", NAMES)
def test_an_error_survives_pickle_and_copy(name):
    error = make(ours, name)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert told(again) == told(error)


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_becomes_the_class_that_the_sdk_makes_of_it(status):
    client = theirs._client.AsyncTinker(api_key="tml-a", base_url="http://127.0.0.1")
    text = f"Error code: {status} - {BODY}"
    expected = client._make_status_error(text, body=BODY, response=answer(status))
    error = exceptions.status_error(status, BODY, REQUEST, httpx.Response(status, json=BODY))
    assert type(error).__name__ == type(expected).__name__
    assert told(error) == told(expected)
    assert error.response.request is REQUEST


@pytest.mark.parametrize("name", [name for name in NAMES if name != "TinkerError"])
def test_an_error_is_caught_as_what_the_sdks_is_caught_as(name):
    above = [base.__name__ for base in getattr(theirs, name).__mro__]
    assert [base.__name__ for base in getattr(ours, name).__mro__] == above
    assert issubclass(getattr(ours, name), ours.TinkerError)
