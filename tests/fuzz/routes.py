"""Every route of the application, and requests for each: right, nearly right, and hostile.

Bodies and parameters come from the OpenAPI document, by way of schemathesis; ids and numbers of things that exist are
put in here, or nothing would get past the first check.
"""

import json
import string
from urllib.parse import quote, urlencode

import schemathesis
from fastapi.routing import iter_route_contexts
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core import NotSet

from tests.fuzz.world import PROTOBUF, Asked

JSON = "application/json"
KNOWN = (
    "session_id", "base_model", "kind", "project_id", "sampling_session_id", "model_id", "run", "tinker_path", "name",
    "model_path", "source_path", "path", "sampler_id", "seq_id", "model_seq_id", "sampling_session_seq_id",
    "custom_loss_seq_id", "request_id", "expires", "signature", "file",
)  # fmt: skip
"""The fields and parameters that name something which can exist."""


def routes_of(app):
    """(method, path) of every route, as the application itself lists them."""
    return sorted(
        (method, one.path.replace(":path}", "}"))
        for one in iter_route_contexts(app.routes)
        for method in one.methods or ()
    )


def operations_of(app):
    """By (method, path): what the OpenAPI document says of it."""
    schema = schemathesis.openapi.from_dict(app.openapi())
    return {(one.ok().method.upper(), one.ok().path): one.ok() for one in schema.get_all_operations()}


def bodies_of(operation):
    """The media types of a route's body."""
    return [body.media_type for body in operation.body]


@st.composite
def asked(draw, operation):
    """Requests for a route that reads JSON, or no body."""
    kind = draw(st.sampled_from(["likely", "likely", "likely", "schema", "negative", "hostile", "hostile"]))
    match kind:
        case "likely":
            return draw(mode_of(operation, GenerationMode.POSITIVE, likely=True))
        case "schema":
            return draw(mode_of(operation, GenerationMode.POSITIVE))
        case "negative":
            return draw(mode_of(operation, GenerationMode.NEGATIVE))
        case _:
            return draw(hostile(operation))


@st.composite
def mode_of(draw, operation, mode, likely=False):
    case = draw(operation.as_strategy(generation_mode=mode, media_type=JSON if bodies_of(operation) else None))
    body = None if isinstance(case.body, NotSet) else case.body
    if likely and isinstance(body, dict):
        needed = required_of(operation)
        body = draw(with_likely({key: one for key, one in body.items() if key in needed or draw(st.booleans())}))
    elif not isinstance(body, bytes | None):
        body = draw(with_known(body))
    field = likely_field if likely else named
    return encoded(
        operation,
        {name: draw(named(name, value)) for name, value in (case.path_parameters or {}).items()},
        [(name, draw(field(name, value))) for name, value in (case.query or {}).items()],
        () if likely else tuple((str(name), str(value)) for name, value in (case.headers or {}).items()),
        body,
    )


def required_of(operation):
    """The fields that a JSON body must have."""
    schema = operation.definition.raw["requestBody"]["content"][JSON]["schema"]
    return {name for one in (schema, *schema.get("anyOf", ())[:1]) for name in one.get("required", ())}


@st.composite
def named(draw, name, value):
    """The value, or more often the marker of something that exists."""
    if name not in KNOWN or draw(st.integers(0, 9)) == 0:
        return value
    return f"zz{name}{draw(st.integers(0, 3))}zz"


@st.composite
def with_known(draw, value):
    """A JSON value with markers in the fields whose names are known."""
    if isinstance(value, dict):
        return {
            key: draw(named(key, one)) if key in KNOWN and not isinstance(one, dict) else draw(with_known(one))
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [draw(with_known(one)) for one in value]
    return value


@st.composite
def with_likely(draw, value):
    """A JSON value that the server may well accept, where the schema alone would hardly ever lead."""
    if isinstance(value, dict):
        return {key: draw(likely_field(key, one)) for key, one in value.items() if key in LIKELY or one is not None}
    if isinstance(value, list):
        return [draw(with_likely(one)) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@st.composite
def likely_field(draw, key, value):
    if key in KNOWN:
        return draw(named(key, value))
    if key in LIKELY and draw(st.integers(0, 9)):
        return draw(LIKELY[key])
    return draw(with_likely(value))


def encoded(operation, parameters, query, headers, body):
    path = operation.path
    for name, value in parameters.items():
        path = path.replace(f"{{{name}}}", quote(str(value), safe="%:"))
    sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    safe = tuple((name, value) for name, value in headers if _is_sendable(name, value))
    kind = () if body is None else (("content-type", JSON),)
    return Asked(operation.method.upper(), path, urlencode(query, doseq=True), (*safe, *kind), sent)


def _is_sendable(name, value):
    """What a client's library lets through."""
    letters = set(string.ascii_letters + string.digits + "-_")
    return bool(name) and set(name) <= letters and value == value.strip() and all(31 < ord(c) < 127 for c in value)


few_tokens = st.lists(st.integers(0, 99), min_size=1, max_size=5)
few = st.integers(0, 3)
absent = st.none()
odd_numbers = st.sampled_from([0.0, 1e-320, 1e-3, 0.5, 1.0, 3e38, 1e300])
LIKELY = {
    "tokens": few_tokens, "max_tokens": st.integers(1, 8) | absent, "num_samples": st.integers(1, 3),
    "temperature": odd_numbers, "top_p": st.sampled_from([1.0, 0.5, 1e-320]), "top_k": st.sampled_from([-1, 1, 2**70]),
    "seed": st.sampled_from([None, 0, 2**63, 2**64 - 1]), "stop": st.sampled_from([[], [3], None, ["a"]]),
    "topk_prompt_logprobs": few, "topk_sample_logprobs": few, "prompt_alt_tokens_k": few,
    "prompt_logprobs_last_n": st.integers(1, 3) | absent, "target_prompt_logprobs": absent, "rank": st.integers(1, 9),
    "ttl_seconds": st.sampled_from([None, 3600, 10**6]), "learning_rate": odd_numbers, "weight_decay": odd_numbers,
    "beta1": st.sampled_from([0, 0.9, 1 - 1e-16]), "beta2": st.sampled_from([0, 0.95]), "eps": odd_numbers,
    "grad_clip_norm": odd_numbers, "optimizer_config": st.sampled_from([{"type": "adamw"}, {"type": "dimuon"}]),
    "optimizer_params": absent, "age_encryption_recipients": st.sampled_from([None, ["ssh-rsa x"], ["age1"]]),
    "weights_access_token": absent, "day": st.just("2026-01-01"), "starting_on": st.just("2026-01-01T00:00:00Z"),
    "ending_before": st.just("2026-01-01T05:00:00Z"), "offset": st.integers(0, 5),
    "timeout": st.sampled_from([0, 0.01]), "limit": st.integers(1, 200),
    "chunks": few_tokens.map(lambda tokens: [{"type": "encoded_text", "tokens": tokens}]),
    "model": st.just("tiny/bytes"), "n": st.integers(1, 3), "max_completion_tokens": absent,
    "messages": st.sampled_from([[{"role": "user", "content": text}] for text in ("hi", "", "東" * 9)]),
    "top_logprobs": absent, "tools": st.just([]), "stop_token_ids": st.sampled_from([[], [3]]),
    "chat_template_kwargs": st.sampled_from([{}, {"enable_thinking": False}]),
    "reason": st.sampled_from([{"type": "success"}, {"type": "errored"}]),
    "inputs": st.just([{"name": "logprobs", "rank": 1}]),
    "loss_fn": st.sampled_from(["cross_entropy", "ppo", "importance_sampling"]), "loss_fn_config": absent,
    "graph": st.just({"format": 1, "nodes": [
        {"op": "placeholder", "name": "logprobs", "target": "logprobs"},
        {"op": "call_method", "name": "sum_1", "target": "sum", "args": [{"ref": "logprobs"}]},
        {"op": "output", "name": "output", "target": "output", "args": [{"tuple": [{"ref": "sum_1"}, {"dict": {}}]}]},
    ]}),
    "data": few_tokens.map(lambda tokens: [{
        "model_input": {"chunks": [{"tokens": tokens}]},
        "loss_fn_inputs": {
            "target_tokens": {"data": tokens, "dtype": "int64", "shape": [len(tokens)]},
            "weights": {"data": [0.5] * len(tokens), "dtype": "float32", "shape": [len(tokens)]},
        },
    }]),
}  # fmt: skip
"""Values of fields, by their names, that a client could well send. `data` as SDKs before 0.25 write it."""

NUMBERS = ["NaN", "Infinity", "-Infinity", "1" * 400, "1" * 5000, "-0", "1e400", "1e-320", "9223372036854775808", "0.5",
           "-1", "1e38", "18446744073709551616", "true", "null", '"1"', "[]", "{}"]  # fmt: skip
TEXTS = [r'"\ud800"', r'"\u0000"', '"' + "x" * 100_000 + '"', '""', '"/../.."', '"%00"', r'"\udfff\ud800"', '"é"']
RAW = [b"", b"null", b"[]", b"{", b"\xff\xfe", b"{}" * 2, b"[" * 100_000, b'{"a":' * 100_000, b"\x00", b'{"a":1,"a":2}',
       b'"' + b"y" * 1_000_000 + b'"', b"1" * 5000, b"NaN", b"\xef\xbb\xbf{}"]  # fmt: skip
HEADERS = [
    ("content-encoding", "gzip"), ("content-encoding", "zstd"), ("content-encoding", "zstd, zstd"),
    ("content-encoding", "identity"), ("content-encoding", "ZSTD"), ("content-encoding", ""), ("content-type", ""),
    ("content-type", "text/plain"), ("content-type", PROTOBUF), ("content-type", "application/json; charset=utf-16"),
    ("content-type", "multipart/form-data; boundary=x"), ("accept", "application/x-protobuf"), ("accept", "text/html"),
    ("accept", "*/*;q=nonsense"), ("x-api-key", "\xff"), ("x-idempotency-key", "again"), ("range", "bytes=5-1"),
    ("range", "bytes=nonsense"), ("if-range", "x"), ("x-tinker-weights-access-token", "t"), ("host", "["),
    ("host", "a b"), ("expect", "nothing"), ("x-stainless-read-timeout", "NaN"),
]  # fmt: skip
SEGMENTS = ["%00", "%ff", "%2f", "..", "%2e%2e", "%", "%zz", "a" * 10_000, "%ed%a0%80", "", ":", "tinker:%2f%2f", "é"]
QUERIES = ["limit=1&limit=2", "limit=1e3", "offset=-1", "offset=9223372036854775808", "offset=" + "9" * 5000, "limit",
           "=", "&&", "access_scope=own&access_scope=owned", "%ff=%ff", "expires=" + "9" * 4000 + "&signature=x",
           "expires=1&signature=%ff", "day=0001-01-01", "day=9999-12-31", "day=%00", "project_id=%00",
           "starting_on=9999-12-31T23:00:00-14:00&ending_before=9999-12-31T23:00:00%2B14:00",
           "starting_on=0001-01-01T00:00:00%2B14:00&ending_before=0001-01-01T01:00:00%2B14:00"]  # fmt: skip


@st.composite
def hostile(draw, operation):
    """A good request with one or more places broken."""
    one = draw(mode_of(operation, GenerationMode.POSITIVE))
    path, query, headers, body = one.path, one.query, list(one.headers), one.body
    for _ in range(draw(st.integers(1, 2))):
        match draw(st.sampled_from(["body", "value", "header", "path", "query", "cut", "value", "value"])):
            case "body":
                body = draw(st.sampled_from(RAW))
            case "value":
                body = draw(broken_value(body))
            case "header":
                headers.append(draw(st.sampled_from(HEADERS)))
            case "path":
                path = draw(broken_path(operation, path))
            case "query":
                query = draw(st.sampled_from(QUERIES))
            case "cut":
                body = body[: draw(st.integers(0, len(body)))]
    return Asked(one.method, path, query, tuple(headers), body)


@st.composite
def broken_value(draw, body):
    """The JSON text with one value in it, at any depth, replaced by an odd one."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return body
    place = draw(st.sampled_from(list(_places(value)))) if isinstance(value, dict) and value else None
    if place is None:
        return body
    holder, key = place
    holder[key] = "zzzbrokenzzz"
    odd = draw(st.sampled_from(NUMBERS) | st.sampled_from(TEXTS))
    return json.dumps(value).encode().replace(b'"zzzbrokenzzz"', odd.encode())


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in list(items):
        yield value, key
        if isinstance(one, dict | list):
            yield from _places(one)


@st.composite
def broken_path(draw, operation, path):
    parts = path.split("/")
    names = operation.path.split("/")
    open_places = [place for place, name in enumerate(names) if name.startswith("{") and place < len(parts)]
    if not open_places:
        return path + draw(st.sampled_from(["/", "//", "/%00", ""]))
    parts[draw(st.sampled_from(open_places))] = draw(st.sampled_from(SEGMENTS))
    return "/".join(parts).encode("ascii", "ignore").decode()
