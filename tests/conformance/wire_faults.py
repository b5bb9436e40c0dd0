"""Faults of what is said over the wire: an application around the server's, or another Service."""

import asyncio
import json
import re
import threading
from dataclasses import replace

import numpy as np
from conformance_faults import DrawsRetriesAgain, ExecutesRetries, Wrapped

from weaver.domain import ForwardBackward, OptimStep
from weaver.errors import InvalidInput, UserError
from weaver.service import Service


class Rewrites:
    """Changes JSON on its way: what is asked on paths that match, or what is answered."""

    def __init__(self, app, path, method=None, asked=None, answered=None):
        self._app, self._path, self._method = app, re.compile(path), method
        self._asked, self._answered = asked, answered

    async def __call__(self, scope, receive, send):
        named = scope["type"] == "http" and self._path.search(scope["path"])
        if not named or self._method not in (None, scope["method"]):
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if self._asked is not None:
            body = json.dumps(self._asked(json.loads(body))).encode()
            headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
            scope = scope | {"headers": [*headers, (b"content-length", str(len(body)).encode())]}
        status, headers, answer = await _answer(self._app, scope, body)
        if self._answered is not None and b"json" in headers.get(b"content-type", b""):
            answer = json.dumps(self._answered(json.loads(answer), status)).encode()
        await _say(send, status, answer, headers.get(b"content-type", b"application/json"))


class DoesNothing:
    """Answers well and does not do what was asked on paths that match."""

    def __init__(self, app, path, method):
        self._app, self._path, self._method = app, re.compile(path), method

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["method"] == self._method and self._path.search(scope["path"]):
            await _whole(receive)
            await _say(send, 200, b"{}", b"application/json")
        else:
            await self._app(scope, receive, send)


class AlwaysTheFirstPage:
    """Takes no notice of an offset."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        query = re.sub(rb"offset=\d+", b"offset=0", scope.get("query_string", b""))
        await self._app(scope | {"query_string": query}, receive, send)


class ForgetsResults:
    """Each result is there once."""

    def __init__(self, app):
        self._app, self._fetched = app, set()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or not scope["path"].endswith("/retrieve_future"):
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body in self._fetched:
            await _say(send, 404, b'{"detail": "it was fetched already"}', b"application/json")
            return
        status, headers, answer = await _answer(self._app, scope, body)
        if status == 200 and b"try_again" not in answer:
            self._fetched.add(body)
        await _say(send, status, answer, headers[b"content-type"])


async def _whole(receive):
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _answer(app, scope, body):
    """What the application says: status, headers and body."""
    said, unread = [], [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if not unread:
            await asyncio.Event().wait()  # the client stays
        return unread.pop()

    async def send(message):
        said.append(message)

    await app(scope, receive, send)
    return said[0]["status"], dict(said[0]["headers"]), b"".join(message.get("body", b"") for message in said[1:])


async def _say(send, status, body, content_type):
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def asks(path, change, method=None):
    """The server hears something else than was asked."""
    return {"wrap_app": lambda app: Rewrites(app, path, method, asked=change)}


def answers(path, change, method=None):
    """The client hears something else than was answered; refusals stay."""

    def answered(body, status):
        return change(body) if status == 200 else body

    return {"wrap_app": lambda app: Rewrites(app, path, method, answered=answered)}


def refusals(change):
    def answered(body, status):
        return change(body) if status >= 400 else body

    return {"wrap_app": lambda app: Rewrites(app, "", answered=answered)}


def ignores(method, path):
    return {"wrap_app": lambda app: DoesNothing(app, path, method)}


def says(**fields):
    """A change of an answer: these fields have other values."""
    return lambda body: body | fields


def each(listing, **fields):
    """A change of an answer: these fields of everything in a list have other values."""
    return lambda body: body | {listing: [one | fields for one in body[listing]]}


def without(*fields):
    return lambda body: {name: value for name, value in body.items() if name not in fields}


class StepsDoNotWait(Service):
    """A step with momentum that arrives while the pass before it is running finds no gradients."""

    arrived = threading.Event()

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._last = {}

    def submit(self, model_id, seq_id, operation):
        if isinstance(operation, OptimStep):
            if operation.params.beta1 and not self.future(self._last[model_id].request_id).done():
                operation = replace(operation, params=replace(operation.params, learning_rate=0.0))
            self.arrived.set()
        else:
            self.arrived.clear()
        self._last[model_id] = ticket = super().submit(model_id, seq_id, operation)
        return ticket


class Lingers(Wrapped):
    """A pass that runs until a step has come, or for a while where none comes."""

    def forward_backward(self, passes):
        if any(one.backward for one in passes):
            StepsDoNotWait.arrived.wait(0.5)
        return self._inner.forward_backward(passes)


class LatePartsAreRepeats(Service):
    """A number below the highest so far is taken for a repeat: its gradient is not added."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._highest = {}

    def submit(self, model_id, seq_id, operation):
        if isinstance(operation, ForwardBackward) and seq_id < self._highest.get(model_id, 0):
            operation = replace(operation, backward=False)
        self._highest[model_id] = max(seq_id, self._highest.get(model_id, 0))
        return super().submit(model_id, seq_id, operation)


class RefusesForGood(Service):
    """Once a call was refused, so is every later one."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._refused = set()

    def submit(self, model_id, seq_id, operation):
        if model_id in self._refused:
            raise InvalidInput("an earlier request failed")
        try:
            return super().submit(model_id, seq_id, operation)
        except UserError:
            self._refused.add(model_id)
            raise


class RunsTheGoodHalf(Service):
    """A pass with a datum of NaNs is refused, and the others' gradients are added all the same."""

    def submit(self, model_id, seq_id, operation):
        if isinstance(operation, ForwardBackward):
            good = tuple(d for d in operation.data if all(np.isfinite(a).all() for a in d.loss_fn_inputs.values()))
            if len(good) < len(operation.data):
                super().submit(model_id, seq_id, replace(operation, data=good))
                raise InvalidInput("there is a NaN")
        return super().submit(model_id, seq_id, operation)


class CreatesTwice(Service):
    """Every request for a model makes one."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._seen = set()

    def create_model(self, session_id, model_seq_id, *arguments, **options):
        number = model_seq_id + (1000 if (session_id, model_seq_id) in self._seen else 0)
        self._seen.add((session_id, model_seq_id))
        return super().create_model(session_id, number, *arguments, **options)


class OpensAnyLink(Service):
    """Whatever a link's signature is, it opens."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        signed = self.downloads
        self.downloads = Wrapped(signed)
        self.downloads.open = lambda path, file, _: signed.open(
            path, file, signed.links(self.checkpoint_info(path))[file]
        )


CHECKPOINT = r"/checkpoints/weights/[^/]+"
LISTED = r"/training_runs/[^/]+/checkpoints$"
SESSION = r"/sessions/[^/]+$"


def _elsewhere(body):
    return body | {"path": body["path"].replace("/weights/", "/states/")} if body.get("path") else body


def _nameless(body):
    return body | {"error": "invalid request"} if "error" in body else body


FAULTS = {
    "capabilities_name_the_model": answers("get_server_capabilities", each("supported_models", model_name="other")),
    "a_model_tells_its_settings": answers("get_info", says(lora_rank=32)),
    "a_model_is_numbered_in_its_session": asks(
        "create_model", lambda body: body | {"model_seq_id": body["model_seq_id"] + 1}
    ),
    "a_heartbeat_is_answered": answers("session_heartbeat", says(type="pong")),
    "a_refusal_has_a_length_and_a_sentence": refusals(lambda body: {"message": body["detail"]}),
    "calls_take_effect_in_call_order": {"service_class": StepsDoNotWait, "wrap_backend": Lingers},
    "parts_of_a_pass_count_once_in_any_order": {"service_class": LatePartsAreRepeats},
    "a_refused_call_does_not_block_the_next": {"service_class": RefusesForGood},
    "a_retried_pass_counts_once": {"service_class": ExecutesRetries},
    "a_retried_step_counts_once": {"service_class": ExecutesRetries},
    "a_repeat_after_the_result_changes_nothing": {"service_class": ExecutesRetries},
    "a_retried_model_is_the_same_model": {"service_class": CreatesTwice},
    "a_retried_sample_is_drawn_once": {"service_class": DrawsRetriesAgain},
    "a_result_can_be_fetched_again": {"wrap_app": ForgetsResults},
    "a_failed_pass_leaves_no_gradient": {"service_class": RunsTheGoodHalf},
    "dimuon_is_another_optimizer": answers("get_info", says(optimizer_config={"type": "adamw"})),
    "inflight_samplers_follow_the_newest_save": asks("save_weights_for_sampler", says(kind="snapshot")),
    "every_sequence_has_an_id_of_its_own": answers(
        "asample", lambda body: body | {"sample_sequence_ids": ["same"] * len(body["sample_sequence_ids"])}
    ),
    "paths_say_where_they_belong": answers("retrieve_future", _elsewhere),
    "a_run_tells_what_it_is": answers(r"/training_runs/[^/]+$", says(last_checkpoint=None)),
    "runs_are_listed_in_pages": {"wrap_app": AlwaysTheFirstPage},
    "checkpoints_are_listed": answers(LISTED, lambda body: body | {"checkpoints": body["checkpoints"][:1]}),
    "a_deleted_checkpoint_is_gone": ignores("DELETE", CHECKPOINT + "$"),
    "publishing_is_shown": ignores("POST", CHECKPOINT + "/publish$"),
    "a_lifetime_is_shown_and_can_be_changed": ignores("PUT", CHECKPOINT + "/ttl$"),
    "metadata_come_back": asks("save_weights$", without("user_metadata")),
    "a_session_lists_what_was_made_in_it": answers(SESSION, says(sampler_ids=[])),
    "weights_tell_what_they_were_trained_with": answers("weights_info", says(train_mlp=True)),
    "an_export_is_a_peft_adapter": answers("adapter_config.json$", says(r=32)),
    "a_link_opens_for_its_bearer_alone": {"service_class": OpensAnyLink},
    "a_state_that_does_not_exist_is_refused": answers("retrieve_future", _nameless),
}
