"""What a server holds in memory of what is over: results for a while, and nothing that grows with the steps."""

import gc
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from weaver.backend import ModelSource
from weaver.config import Config
from weaver.domain import (
    AdamParams,
    Datum,
    ForwardBackward,
    LoraSpec,
    OptimStep,
    SampleRequest,
    SampleResult,
    SaveForSampler,
)
from weaver.service import Service, meter
from weaver.service.housekeeping import give_back_memory

MODEL = "some/echo"
SECONDS = 600.0
GIVE_BACK = give_back_memory.__module__


@pytest.fixture
def service(tmp_path):
    source = ModelSource(MODEL, "echo:vocab=100,context=64")
    made = Service(Config(models=(source,), data_dir=tmp_path, backend="echo", sampler="echo"))
    yield made
    made.close()


class Loop:
    """A client that draws, trains, steps and saves, over and over."""

    def __init__(self, service):
        self.service, self.session_id = service, service.create_session(user_metadata={})
        self.numbers = itertools.count(1)
        self.model_id = self.result(service.create_model(self.session_id, 0, MODEL, LoraSpec(rank=2))).model_id

    def result(self, ticket):
        return self.service.future(ticket.request_id).result(60)

    def ask(self, operation):
        return self.result(self.service.submit(self.model_id, next(self.numbers), operation))

    def step(self, prompts=4):
        sampler = self.ask(SaveForSampler()).sampling_session_id
        prompt = np.arange(1, 9)
        asked = [self.service.sample(sampler, n, prompt=prompt, max_tokens=4) for n in range(prompts)]
        drawn = [self.result(ticket) for ticket in asked]
        data = tuple(self.datum(np.concatenate([prompt, one.sequences[0].tokens])) for one in drawn)
        self.ask(ForwardBackward(data, "cross_entropy"))
        self.ask(OptimStep(AdamParams(0.1)))
        return sampler

    def datum(self, tokens):
        inputs = {"target_tokens": tokens[1:], "weights": np.ones(len(tokens) - 1, np.float32)}
        return Datum(tokens[:-1], inputs)


def alive(*kinds):
    """How many there are of each in the whole process, once the threads that read adapters are done."""
    for thread in threading.enumerate():
        if thread.name == "weaver-check-adapter":
            thread.join(60)
    gc.collect()
    found = [type(one) for one in gc.get_objects()]
    return {kind.__name__: found.count(kind) for kind in kinds}


def test_of_what_is_done_only_the_results_are_kept(service):
    before = alive(Datum, SampleRequest, SampleResult)
    loop = Loop(service)
    for _ in range(3):
        loop.step(prompts=4)
    after = alive(Datum, SampleRequest, SampleResult)
    assert {name: after[name] - before[name] for name in after} == {"Datum": 0, "SampleRequest": 0, "SampleResult": 12}


def test_results_go_when_their_time_is_over(tmp_path):
    source = ModelSource(MODEL, "echo:vocab=100,context=64")
    config = Config(models=(source,), data_dir=tmp_path, backend="echo", sampler="echo", result_seconds=1e-9)
    service = Service(config)
    try:
        before = alive(SampleResult)
        Loop(service).step()
        service._futures._swept -= SECONDS  # as if so long ago
        service.create_model(service.create_session(user_metadata={}), 0, MODEL, LoraSpec(rank=2))
        assert alive(SampleResult) == before
    finally:
        service.close()


def sizes(service):
    """Of all that remembers requests, sessions or models."""
    sampling, training, engine = service._sampling, service._training, service._base_models.engine(MODEL)
    return {
        "created": len(sampling._created),
        "seen": len(sampling._seen),
        "logs": len(sampling.completions._logs),
        "models": len(training._models),
        "lanes": len(engine._lanes),
        "leases": len(service.sessions._leases._heard) + len(service.sessions._leases._made),
        "requests": len(service.archive._requests),
        "checked": len(service._base_models.sampler(MODEL)._adapters),
        "watched": len(service._sampling._watch._drawn) + len(service._sampling._watch._adapters),
        "counted": len(service.meter._counted),
    }


def test_a_session_that_has_ended_leaves_nothing_in_memory(service):
    Loop(service).step()
    lasting = Loop(service)
    before = sizes(service)
    for _ in range(3):
        loop = Loop(service)
        loop.service.create_sampling_session(loop.session_id, 0, base_model=MODEL)
        loop.step()
        service.finish_session(loop.session_id, "success")
        lasting.ask(OptimStep(AdamParams(0.1)))  # the engine has gone on, and dropped what has ended
    service.tidy()
    assert sizes(service) == before | {"requests": 0, "counted": 0}


def test_a_client_that_never_asks_which_samples_have_settled_fills_no_log(service):
    loop = Loop(service)
    sampler = loop.step()
    service.tidy()
    told, cursor, _ = service.settled_samples(sampler, 0, 0)
    assert len(told) == 4
    service.drop_samples([one.request_id for one in told[:3]])
    service.tidy()
    left, after, _ = service.settled_samples(sampler, 0, 0)
    assert ([one.request_id for one in left], after) == ([told[3].request_id], cursor)


def test_traces_are_bounded_over_all_sessions(service, monkeypatch):
    monkeypatch.setattr(meter, "TRACED_ALTOGETHER", 20)
    loops = [Loop(service) for _ in range(3)]
    for loop in loops:
        loop.step(prompts=4)
    kept = [len(service.meter.spans(loop.session_id)) for loop in loops]
    assert kept == [0, 8, 8]


PROGRAM = f"""
import numpy as np
from pathlib import Path
from {GIVE_BACK} import give_back_memory

def resident():
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS")).split()[1])

arrays = [np.ones(8000) for _ in range(5000)]  # 64 KB each: of the heap, not of pages of their own
del arrays[:-1]
before = resident()
give_back_memory()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the C library has no such call")
def test_memory_that_was_freed_goes_back_to_the_system():
    """One piece at the end keeps the C library from giving anything back by itself."""
    printed = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout
    assert int(printed) > 200 * 1024, "of 320 MB"
