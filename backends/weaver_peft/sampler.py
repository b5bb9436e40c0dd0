"""The embedded sampler: a decode loop on the trainer's own weights, on a thread of its own.

torch counts threads per thread: a new one starts with as many OpenMP threads as `torch.set_num_threads` last asked
for, or the machine has cores. Trainer and sampler each have such a team; OMP_WAIT_POLICY=PASSIVE keeps the two from
spinning against each other.
"""

from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread

import psutil
import torch

from weaver.backend import ModelSource
from weaver.domain import AdapterRef, SampleRequest
from weaver.errors import Stopped
from weaver.sampler import SampleFuture
from weaver_peft.base_model import BaseModel, load_base_model
from weaver_peft.decoding import DecodeLoop, Limits
from weaver_peft.inflight import Published

GIB = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    request: SampleRequest
    future: SampleFuture


@dataclass(frozen=True, slots=True)
class _Publish:
    model_id: str
    published: Published


@dataclass(frozen=True, slots=True)
class _Forget:
    adapter_id: str


@dataclass(frozen=True, slots=True)
class _Close:
    pass


_Message = _Asked | _Publish | _Forget | _Close


class EmbeddedSampler:
    """Only its own thread touches the model; every method just leaves a message for it."""

    def __init__(self, base: BaseModel, limits: Limits) -> None:
        self._loop = DecodeLoop(base, limits)
        self._messages: SimpleQueue[_Message] = SimpleQueue()
        self._closing = Lock()  # no request may be queued behind the message that ends the thread
        self._closed = False
        self._thread = Thread(target=self._run, name="weaver-sampler", daemon=True)
        self._thread.start()

    def sample(self, request: SampleRequest) -> SampleFuture:
        future = SampleFuture(lambda: self._loop.obstacle)
        with self._closing:
            if self._closed:
                future.set_exception(_stopped())
            else:
                self._messages.put(_Asked(request, future))
        return future

    def publish(self, model_id: str, version: int, adapter: AdapterRef) -> None:
        self._messages.put(_Publish(model_id, Published(version, adapter)))

    def forget(self, adapter_id: str) -> None:
        self._messages.put(_Forget(adapter_id))

    def close(self) -> None:
        with self._closing:
            self._closed = True
            self._messages.put(_Close())
        self._thread.join()

    def _run(self) -> None:
        while self._take_messages():
            try:
                self._loop.step()
            except Exception as error:  # noqa: BLE001 - whatever it is, the requests it hit must hear of it
                self._loop.fail_running(error)
        self._loop.fail_all(_stopped())

    def _take_messages(self) -> bool:
        """Hand on what has arrived, waiting for something where there is nothing to do. False: close."""
        try:
            while True:
                match self._messages.get(block=self._loop.is_idle):
                    case _Asked(request, future):
                        self._loop.add(request, future)
                    case _Publish(model_id, published):
                        self._loop.publish(model_id, published)
                    case _Forget(adapter_id):
                        self._loop.forget(adapter_id)
                    case _Close():
                        return False
        except Empty:
            return True


def open_sampler(source: ModelSource) -> EmbeddedSampler:
    """A sampler on the base model of `source`, whose weights it shares with the trainer of this process."""
    base = load_base_model(source)
    return EmbeddedSampler(base, default_limits(base.device))


def default_limits(device: torch.device) -> Limits:
    """Rows and prefill pieces that keep the device busy, and a part of the memory that is free now: a quarter of the
    machine's, which the trainer uses too, or half of the GPU's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Limits(256, free // 2, 2 * GIB, prefill_tokens=16384, busy_prefill_tokens=2048)
    free = psutil.virtual_memory().available
    return Limits(64, free // 4, min(GIB, free // 32), prefill_tokens=1024, busy_prefill_tokens=256)


def _stopped() -> Stopped:
    return Stopped("the sampler is shutting down")
