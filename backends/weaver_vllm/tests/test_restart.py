"""The process ends; requests are answered all the same."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from engines import DRAWN, SECONDS, ask, draw, open_engine, prompt, source_of, tokens, write_adapter
from weaver_vllm.opening import open_sampler

from weaver.domain import Inflight
from weaver.errors import InvalidInput, MissingPackage, ServerError, Stopped, WorkerLost

pytestmark = pytest.mark.timeout(900)  # each start of an engine imports vLLM


class Killer:
    """Ends the process when it says a thing for the first time(s); what it has said after that is lost."""

    def __init__(self, wanted, times=1):
        self.wanted, self.times, self.ended = wanted, times, []

    def __call__(self, process, message):
        if message is None:
            return ""
        if process.pid not in self.ended and len(self.ended) < self.times and self.wanted(message):
            self.ended.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
            return ""
        return "lost" if process.pid in self.ended else ""


def first_result(message):
    return message["is"] == "result"


def test_requests_that_were_being_drawn_are_drawn_again(vllm_python, folder, adapters, references):
    """With a seed the same tokens; with adapters the same weights; one that was answered is not asked again."""
    killer = Killer(first_result)
    sampler = open_engine(folder, killer)
    requests = [ask(0, max_tokens=1)]
    requests += [ask(seed, DRAWN, max_tokens=80, samples=2) for seed in range(1, 9)]
    requests += [ask(9, max_tokens=80, adapter=adapters[name]) for name in ("small", "whole", "head")]
    requests += [ask(9, DRAWN, seed=None, max_tokens=80)]
    found = draw(sampler, *requests)
    [ended] = killer.ended
    assert sampler.pid != ended
    undisturbed = draw(sampler, *requests)
    assert list(map(tokens, found))[:-1] == list(map(tokens, undisturbed))[:-1]
    assert tokens(found[-1]) != tokens(undisturbed[-1])
    for name, result in zip(("small", "whole", "head"), found[9:], strict=False):
        assert tokens(result) == [references[name].greedy(prompt(9), 80)]
    sampler.close()


def test_what_follows_a_model_goes_on_with_its_newest_weights(vllm_python, folder, adapters, references):
    killer = Killer(lambda message: message["is"] == "begun" and message["id"] == 2)
    sampler = open_engine(folder, killer)
    draw(sampler, ask(1, adapter=adapters["small"], inflight=Inflight("run", 1, "session")))
    sampler.publish("run", 2, adapters["whole"])
    [found] = draw(sampler, ask(1, adapter=adapters["small"], inflight=Inflight("run", 1, "session")))
    assert killer.ended
    assert tokens(found) == [references["whole"].greedy(prompt(1), 12)]
    sampler.close()


def test_a_request_that_ends_the_process_each_time_fails_and_others_do_not(vllm_python, folder, references):
    killer = Killer(lambda message: message["is"] == "begun" and message["id"] == 3, times=100)
    sampler = open_engine(folder, killer)
    futures = [sampler.sample(ask(seed, max_tokens=60)) for seed in range(5)]
    for seed in (0, 1, 3, 4):
        assert tokens(futures[seed].result(SECONDS)) == [references[None].greedy(prompt(seed), 60)]
    with pytest.raises(WorkerLost, match=r"the request has ended vLLM's process 3 times: .* by signal 9 \(SIGKILL\)"):
        futures[2].result(SECONDS)
    assert len(killer.ended) == 3
    alone = Killer(lambda message: message["is"] == "begun", times=100)
    killer.wanted, killer.times, killer.ended = alone.wanted, 100, []
    with pytest.raises(WorkerLost, match="2 times"):
        draw(sampler, ask(6))
    killer.times = 0
    assert tokens(draw(sampler, ask(6))[0]) == [references[None].greedy(prompt(6), 12)]
    sampler.close()


def test_a_larger_adapter_opens_the_engine_anew(vllm_python, folder, adapters, references, tmp_path):
    """Whoever is running is drawn again, and nobody fails for it."""
    sampler = open_engine(folder, rank=8)
    first = sampler.pid
    running = [sampler.sample(ask(seed, max_tokens=80)) for seed in range(3)]
    large = write_adapter(folder, tmp_path / "large", 20, ["q_proj", "lm_head"])
    [head, _] = draw(sampler, ask(4, adapter=adapters["head"]), ask(4, adapter=large))
    assert sampler.pid != first
    assert tokens(head) == [references["head"].greedy(prompt(4), 12)]
    for seed, future in enumerate(running):
        assert tokens(future.result(SECONDS)) == [references[None].greedy(prompt(seed), 80)]
    sampler.close()


def test_a_process_ends_with_its_sampler(vllm_python, folder):
    sampler = open_engine(folder)
    process = psutil.Process(sampler.pid)
    running = sampler.sample(ask(0, max_tokens=200))
    sampler.close()
    assert isinstance(running.exception(), Stopped | None)
    assert not process.is_running()
    with pytest.raises(Stopped):
        sampler.sample(ask(0)).result(10)


def test_a_process_ends_with_a_server_that_was_killed(vllm_python, folder):
    """It watches the socket, for such a server tells nobody."""
    program = (
        "import sys, time; sys.path[:0] = sys.argv[2:]; import engines\n"
        "sampler = engines.open_engine(sys.argv[1]); print(sampler.pid, flush=True); sys.stdin.read()"
    )
    here = os.path.dirname(__file__)
    server = subprocess.Popen(
        [sys.executable, "-c", program, str(folder), here], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    engine = psutil.Process(int(server.stdout.readline()))
    server.kill()
    server.communicate()
    psutil.wait_procs([engine], timeout=30)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def test_why_an_engine_does_not_start_is_said(vllm_python, folder, tmp_path):
    for arguments, error, said in (
        ({"max_lora_rank": 8}, InvalidInput, "--vllm-arg max_lora_rank: weaver sets it"),
        ({"max_batch": 8}, InvalidInput, "--vllm-arg max_batch: vLLM 0.32.0 has no such engine argument"),
        ({"kv_cache_memory_bytes": 1}, ServerError, "vLLM did not start: "),
    ):
        with pytest.raises(error, match=said):
            open_engine(folder, **arguments)
    with pytest.raises(ServerError, match="vLLM did not start: "):
        open_engine(tmp_path)


def test_a_restart_that_fails_is_told_to_those_who_wait(vllm_python, folder, tmp_path):
    """And the next request tries again."""
    import shutil

    moved = shutil.copytree(folder, tmp_path / "model")
    told = threading.Event()

    def listen(process, message):
        if message is None:
            told.set()

    sampler = open_engine(moved, listen)
    moved.rename(tmp_path / "away")
    os.kill(sampler.pid, signal.SIGKILL)
    assert told.wait(30)
    with pytest.raises(ServerError, match="vLLM did not start"):
        draw(sampler, ask(0))
    (tmp_path / "away").rename(moved)
    assert len(tokens(draw(sampler, ask(0))[0])[0]) == 12
    sampler.close()


def test_a_python_without_vllm_is_told_what_to_install(folder):
    from dataclasses import replace

    source = source_of(folder)
    without = replace(source, options={**source.options, "vllm_python": sys.executable})
    with pytest.raises(
        MissingPackage, match=r"needs vLLM .*No module named 'vllm'.*pip install 'vllm==0.32.*--vllm-py"
    ):
        open_sampler(without)
    nowhere = replace(source, options={**source.options, "vllm_python": "/no/python"})
    with pytest.raises(InvalidInput, match="--vllm-python /no/python cannot be run: No such file"):
        open_sampler(nowhere)
