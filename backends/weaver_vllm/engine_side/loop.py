"""The engine's loop: take what has been asked, draw a token for every row, tell what is done."""

from collections import deque
from queue import Empty, SimpleQueue
from typing import Any

from vllm.outputs import RequestOutput

from .adapters import LargerRank, Slots
from .errors import Failed, kind_of
from .frames import Channel, Message
from .jobs import Job, Row
from .opening import Opened
from .stopping import Detokenizer, StopStrings


class Loop:
    """Everything but the inbox belongs to one thread."""

    def __init__(
        self, opened: Opened, settings: dict[str, Any], channel: Channel, inbox: "SimpleQueue[Message]"
    ) -> None:
        self._opened, self._engine, self._channel, self._inbox = opened, opened.engine, channel, inbox
        self._slots = Slots(opened)
        self._detokenizer = Detokenizer(settings["name"], settings["location"], opened.vocabulary_size)
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._newest: dict[str, tuple[int, dict[str, Any]]] = {}  # published versions and their adapters, by model
        self._obstacle: str | None = None

    def run(self) -> None:
        """Until told to close, or an adapter needs an engine that is opened for a larger rank."""
        try:
            while self._take():
                self._admit()
                if self._running:
                    self.step()
        except LargerRank as larger:
            self._channel.send({"is": "larger", "rank": larger.rank})

    def step(self) -> None:
        for output in self._engine.step():
            job = self._running.get(int(output.request_id.partition(".")[0]))
            if job is not None:
                self._advance(job, output)

    def _take(self) -> bool:
        """Hand on what has arrived, waiting for something where there is nothing to do. False: close."""
        try:
            while True:
                message = self._inbox.get(block=not (self._running or self._waiting))
                match message["do"]:
                    case "sample":
                        self._add(message)
                    case "cancel":
                        self._cancel(message["id"])
                    case "publish":
                        self._publish(message["model_id"], message["version"], message["adapter"])
                    case "forget":
                        self._forget(message["adapter_id"])
                    case "close":
                        return False
        except Empty:
            return True

    def _add(self, message: Message) -> None:
        try:
            asked = message["params"]
            stop = StopStrings(asked["stop_strings"], asked["min_tokens"], self._detokenizer)
            self._waiting.append(Job(message, self._opened, stop))
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is this request's alone
            self._tell_failure(message["id"], error)

    def _cancel(self, number: int) -> None:
        self._waiting = deque(job for job in self._waiting if job.number != number)
        if number in self._running:
            self._leave(self._running[number])

    def _forget(self, adapter_id: str) -> None:
        self._newest = {model_id: newest for model_id, newest in self._newest.items() if newest[1]["id"] != adapter_id}
        self._slots.forget(adapter_id)

    def _publish(self, model_id: str, version: int, adapter: dict[str, Any]) -> None:
        """Newer weights, from the next step on."""
        if model_id in self._newest and self._newest[model_id][0] >= version:
            return
        self._newest[model_id] = (version, adapter)
        try:
            self._slots.publish(model_id, version, adapter["folder"])
        except LargerRank:
            raise
        except Exception as error:  # noqa: BLE001 -- the adapter's folder may hold anything; who follows it must know
            for job in [job for job in self._running.values() if _follows(job, model_id)]:
                self._fail(job, error)

    def _admit(self) -> None:
        """In the order they came; those of the base model do not wait for adapters."""
        kept: deque[Job] = deque()
        for job in self._waiting:
            try:
                if (kept and job.has_adapter) or not self._take_slot(job):
                    kept.append(job)
                else:
                    self._start(job)
            except LargerRank:
                raise
            except Exception as error:  # noqa: BLE001 -- the same
                self._fail(job, error)
        self._waiting = kept
        self._tell_obstacle()

    def _take_slot(self, job: Job) -> bool:
        adapter, follows = job.message["adapter"], job.message["inflight"]
        if adapter is None:
            return True
        if follows is None:
            job.slot = self._slots.take(adapter)
        else:
            own = (follows["version"], adapter)
            version, newest = max(own, self._newest.get(follows["model_id"], own), key=lambda pair: pair[0])
            job.slot = self._slots.take_inflight(follows["model_id"], version, newest["folder"])
        return job.slot is not None

    def _start(self, job: Job) -> None:
        self._running[job.number] = job
        prompt = {"prompt_token_ids": job.message["prompt"].tolist()}
        if job.salt is not None:
            prompt["cache_salt"] = job.salt
        for index, name in enumerate(job.names()):
            if job.asks and not index:
                self._engine.collective_rpc("weaver_ask", args=(name, job.message))
            params = job.params(name, index, self._opened.vocabulary_size)
            job.rows[name] = Row()
            lora = None if job.slot is None else job.slot.request
            self._engine.add_request(name, prompt, params, lora_request=lora)
        self._channel.send({"is": "begun", "id": job.number})

    def _advance(self, job: Job, output: RequestOutput) -> None:
        name, [completion] = output.request_id, output.outputs
        row = job.rows.get(name)
        if row is None:
            return
        completed = row.add(completion, job.stop)
        if completed and not output.finished:
            self._engine.abort_request([name])
        if not (completed or output.finished):
            return
        if not completed and completion.finish_reason not in ("stop", "length"):
            self._fail(job, Failed(f"vLLM ended a sample with {completion.finish_reason!r}"))
            return
        if name == job.names()[0]:
            job.cached_tokens = output.num_cached_tokens or 0
        del job.rows[name]
        stopped = completed or row.tokens[-1] in job.stop_tokens
        job.done[name] = row.message(job.message["topk_sample_logprobs"], stopped)
        if not job.rows:
            self._channel.send(job.result(self._answers(job)))
            self._leave(job)

    def _answers(self, job: Job) -> dict[str, Any]:
        if not job.asks:
            return {}
        found = self._engine.collective_rpc("weaver_answers", args=(job.names()[0],))
        answers: dict[str, Any] = found[-1]  # of layers in stages the last has the hidden states
        job.asks = False
        return answers

    def _leave(self, job: Job) -> None:
        """The job is over; what still runs of it stops."""
        del self._running[job.number]
        self._engine.abort_request(list(job.rows))
        self._answers(job)
        if job.slot is not None:
            self._slots.leave(job.slot)

    def _fail(self, job: Job, error: Exception) -> None:
        if job.number in self._running:
            self._leave(job)
        self._tell_failure(job.number, error)

    def _tell_failure(self, number: int, error: Exception) -> None:
        text = str(error) or type(error).__name__
        self._channel.send({"is": "failed", "id": number, "kind": kind_of(error), "text": text})

    def _tell_obstacle(self) -> None:
        text = None
        if self._waiting:
            text = f"{self._opened.slots} adapters are in use, as many as go at once"
        if text != self._obstacle:
            self._obstacle = text
            self._channel.send({"is": "obstacle", "text": text})


def _follows(job: Job, model_id: str) -> bool:
    follows = job.message["inflight"]
    return follows is not None and follows["model_id"] == model_id
