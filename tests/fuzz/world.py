"""A real server to throw requests at: what it holds, what it answers, and all it remembers.

Requests are made before anybody knows the server's ids, so that a found one can be replayed: where one shall hold the
id of something that exists it holds a marker like `zzsession_id0zz`, which `World.ask` replaces when it is sent.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx

from tests.fuzz.state import Rows, backend_of, first_free, numbers_of, state_of
from tests.serving import Running
from weaver.server.app import create_app
from weaver.service import Service

DEADLINE = 10.0
"""Seconds in which a client of this fuzz wants an answer."""
POLL = 0.05
"""Seconds that a long poll takes here."""
MARKER = re.compile(rb'"?zz([a-z_]+?)(\d)zz"?')
PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True)
class Asked:
    """One request. `path` and `query` are escaped already; header values are latin-1."""

    method: str
    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: "bytes | Callable[[str, int], bytes]" = b""

    def __str__(self):
        lines = [f"{self.method} {self.path}?{self.query}", *(f"{name}: {value}" for name, value in self.headers)]
        body = repr(self.body) if callable(self.body) else f"{self.body[:2000]!r} ({len(self.body)} bytes)"
        return "\n".join([*(line[:500] for line in lines), body])


@dataclass
class Answer:
    """`settled`: the result of the operation that the answer acknowledged, where it did."""

    status: int
    headers: httpx.Headers
    body: bytes
    settled: "Answer | None" = None

    @property
    def refused(self):
        return self.status >= 400

    def json(self):
        return json.loads(self.body)


@dataclass
class Known:
    """Ids of things that exist, by the names of the fields that hold such ids."""

    values: dict = field(default_factory=dict)

    def find(self, name, index):
        held = self.values.get(name) or ["unknown"]
        return held[index % len(held)]


class World:
    """A server in threads of this process. What a request has ended or used up is there again for the next one."""

    def __init__(self, config, base_model, service_class=Service, deadline=DEADLINE):
        self.base_model = base_model
        self.service = service_class(config)
        self.data_dir, self._rows = config.data_dir, Rows(self.service)
        self._running = Running(create_app(self.service, poll_seconds=POLL), log_level="critical").start()
        self.http = httpx.Client(base_url=self._running.url, timeout=deadline)
        self.known, self._numbers, self._session_id, self._model_id = Known(), 0, None, None

    def close(self):
        self.http.close()
        self._rows.close()
        self._running.stop()
        self.service.close()

    # Requests

    def ask(self, asked):
        """The answer, and the result of what it acknowledged unless that waits for numbers that never come."""
        answer = self.send(asked)
        if answer.status == 200 and b'"request_id"' in answer.body and "request_id" in answer.json():
            answer.settled = self._settled(answer.json()["request_id"])
        return answer

    def send(self, asked):
        target = self.resolved(asked.path.encode(), quoted=True) + (b"?" + asked.query.encode() if asked.query else b"")
        target = MARKER.sub(self._text, target)
        request = self.http.build_request(
            asked.method,
            self.http.base_url.copy_with(raw_path=target),
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in asked.headers],
            content=self._body(asked.body),
        )
        response = self.http.send(request)
        return Answer(response.status_code, response.headers, response.content)

    def _body(self, body):
        return body(self._model_id, self.next_number()) if callable(body) else self.resolved(body)

    def resolved(self, raw, quoted=False):
        return MARKER.sub(self._text if quoted else self._json, raw)

    def _text(self, found):
        return quote(str(self.known.find(found[1].decode(), int(found[2]))), safe=":").encode()

    def _json(self, found):
        value = self.known.find(found[1].decode(), int(found[2]))
        return json.dumps(value).encode() if found[0].startswith(b'"') else str(value).encode()

    def _settled(self, request_id):
        future = self.service.future(request_id)
        if self._stuck():
            return None
        future.exception(timeout=DEADLINE) if not future.cancelled() else None
        return self.post("/retrieve_future", request_id=request_id)

    def post(self, path, /, **body):
        """One plain request."""
        headers = (("content-type", "application/json"),)
        return self.send(Asked("POST", f"/api/v1{path}", headers=headers, body=json.dumps(body).encode()))

    def made(self, path, /, **body):
        """The result of an operation that must succeed."""
        answer = self.post(path, **body)
        assert answer.status == 200, answer.body
        settled = self._settled(answer.json()["request_id"])
        assert settled is not None
        assert settled.status == 200, settled.body
        assert b'"error"' not in settled.body, settled.body
        return settled

    # What there is

    def ensure(self):
        """Everything that a request may name exists and is well: made anew where an earlier request ended it."""
        if self._session_id is None or not self._lives(self._session_id):
            self._session_id, self._model_id = self._new_session(), None
        if self._model_id is None or self._stuck():
            self._model_id = None
            self._model_id = self._new_model()
        self._look()

    def start_anew(self):
        """With a new model, next time."""
        self._model_id = None

    def tensors(self):
        """A digest of the live model's weights, gradients and optimizer."""
        return backend_of(self.service._base_models.engine(self.base_model))[self._model_id]

    def state(self):
        return state_of(self.service, self._rows, self.data_dir)

    def number(self):
        self._numbers += 1
        return self._numbers

    def next_number(self):
        return first_free(numbers_of(self.service)[self._model_id])

    @property
    def model_id(self):
        return self._model_id

    def _stuck(self):
        """Whether something waits for a number that never comes, or the model is gone."""
        if self._model_id is None:
            return False
        engine = self.service._base_models.engine(self.base_model)
        lane = engine._lanes.get(self._model_id)
        return lane is None or lane.ended or lane.missing is not None or lane.failure is not None

    def _lives(self, session_id):
        session = self.service._store.session(session_id)
        return session is not None and session["ended"] is None

    def _new_session(self):
        session_id = self.post("/create_session", sdk_version="fuzz", project_id="p").json()["session_id"]
        known = {
            "session_id": [session_id],
            "base_model": [self.base_model],
            "kind": ["weights", "sampler_weights", "external_weights", "snapshot"],
        }
        self.known = Known(known | {"project_id": ["p"], "type": ["adamw"]})
        sampler = self.post(
            "/create_sampling_session", session_id=session_id, sampling_session_seq_id=0, base_model=self.base_model
        ).json()["sampling_session_id"]
        self.known.values["sampling_session_id"] = [sampler]
        return session_id

    def _new_model(self):
        created = self.made(
            "/create_model",
            session_id=self._session_id,
            model_seq_id=self.number(),
            base_model=self.base_model,
            lora_config={"rank": 2, "seed": 7},
        )
        return created.json()["model_id"]

    def _look(self):
        """Bring the known ids up to date."""
        known, model_id = self.known.values, self._model_id
        known["model_id"] = known["run"] = [model_id]
        if not self._is_there("tinker_path"):
            known["tinker_path"] = self._saved()
        training, sampler, external = known["tinker_path"]
        names = [path.rpartition("/")[2] for path in (training, sampler, external)]
        known["run"] = [training.split("/")[2]]
        known["name"] = names
        known["model_path"], known["source_path"] = [sampler, training], [training, sampler, external]
        known["path"] = [f"fresh-{self.number()}", training, sampler]
        known["sampler_id"] = known["sampling_session_id"]
        future = self.next_number()
        known["seq_id"] = [future, future, future + 1, 10_000_000 + self.number()]
        known["model_seq_id"] = known["sampling_session_seq_id"] = known["custom_loss_seq_id"] = [self.number(), 0]
        if known.get("request_id", ["none"])[0] not in self.service._futures._kept:
            known["request_id"] = [self._sampled()]

    def _sampled(self):
        known = self.known.values
        ticket = self.post(
            "/asample",
            sampling_session_id=known["sampling_session_id"][0],
            seq_id=self.number(),
            prompt={"chunks": [{"tokens": [5, 6]}]},
            sampling_params={"max_tokens": 2},
        )
        request_id = ticket.json()["request_id"]
        self.service.future(request_id).result(timeout=DEADLINE)
        return request_id

    def _is_there(self, name):
        paths = self.known.values.get(name)
        return bool(paths) and all(self.service._store.checkpoint(path) is not None for path in paths)

    def _saved(self):
        """One checkpoint of each kind."""
        paths = []
        for endpoint in ("save_weights", "save_weights_for_sampler", "save_weights_external"):
            made = self.made(
                f"/{endpoint}", model_id=self._model_id, seq_id=self.next_number(), path=f"n{self.number()}"
            )
            paths.append(made.json()["path"])
        run, name = paths[2].split("/")[2], paths[2].rpartition("/")[2]
        urls = f"/api/v1/training_runs/{quote(run, safe=':')}/checkpoints/external_weights/{name}/external_weights_urls"
        link = next(iter(self.send(Asked("GET", urls)).json()["urls"].values()))
        query = httpx.URL(link).params
        self.known.values |= {
            "expires": [query["expires"]],
            "signature": [query["signature"]],
            "file": [httpx.URL(link).path.rpartition("/")[2]],
        }
        return paths
