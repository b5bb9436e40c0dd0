"""Several vLLM servers: which one a request goes to, and what happens when one ends."""

import asyncio
from dataclasses import dataclass, replace

import pytest
from attached_servers import VllmServer, attach, free_port, until_begun
from engines import DRAWN, SECONDS, ask, draw, tokens
from weaver_vllm.attached import AttachedSampler
from weaver_vllm.attached_base import base_of
from weaver_vllm.attached_engine import AttachedEngine
from weaver_vllm.attached_fleet import MUCH, Fleet

from weaver.domain import ModelSource
from weaver.errors import InvalidInput, ServerError, Stopped, WorkerLost

pytestmark = pytest.mark.timeout(1800)


@dataclass
class Server:
    url: str
    load: int = 0


def fleet_of(count):
    servers = [Server(f"http://{number}") for number in range(count)]
    return Fleet(servers), servers


def test_prompts_go_where_their_beginning_is_known_and_others_in_turn():
    fleet, servers = fleet_of(3)
    chosen = {seed: fleet.choose(ask(seed, length=64), servers).url for seed in range(6)}
    assert sorted(chosen.values()) == sorted([server.url for server in servers] * 2)
    for seed, url in reversed(chosen.items()):
        longer = ask(seed, length=200)
        assert (longer.prompt_n[:64] == ask(seed, length=64).prompt_n).all()
        assert fleet.choose(longer, servers).url == url


def test_the_same_tokens_with_other_weights_are_another_beginning(adapters):
    fleet, servers = fleet_of(2)
    base = fleet.choose(ask(0, length=64), servers)
    assert fleet.choose(ask(0, length=64, adapter=adapters["small"]), servers) is not base


def test_a_server_that_has_much_more_to_do_is_left_alone():
    fleet, servers = fleet_of(2)
    known = fleet.choose(ask(0, length=64), servers)
    [other] = [server for server in servers if server is not known]
    known.load = MUCH
    assert fleet.choose(ask(0, length=64), servers) is known
    known.load = MUCH + 1
    assert fleet.choose(ask(0, length=64), servers) is other


@pytest.fixture(scope="module")
def servers(vllm_python, folder):
    """Two, which tests may put others in the place of."""
    started = [VllmServer(folder), VllmServer(folder)]
    try:
        yield [server.wait() for server in started]
    finally:
        for server in started:
            server.kill()


def test_servers_that_were_started_otherwise_than_the_others_are_refused(servers):
    base = base_of(ModelSource("tiny", str(servers[0].model)))

    async def attach_to_another():
        engine = AttachedEngine(servers[0].url, base, None)
        await engine.attach(None)
        other = replace(engine.facts, max_rank=8)
        with pytest.raises(InvalidInput, match=r"started otherwise than the others: .* Start all of a model alike"):
            await engine.attach(other)
        await engine.close()

    asyncio.run(attach_to_another())


def test_what_a_server_had_when_it_was_killed_the_other_answers_and_it_takes_part_again(servers, adapters):
    """With a seed the same tokens; with adapters the same weights, also in the server that has come back."""
    sampler = attach(*servers)
    try:
        requests = [ask(seed, DRAWN, max_tokens=60, samples=2) for seed in range(4)]
        requests += [ask(seed, adapter=adapters[name], max_tokens=60) for seed in (6, 7) for name in adapters]
        expected = [tokens(result) for result in draw(sampler, *requests)]
        assert all(server.served() > 3 for server in servers), "both draw"
        futures = [sampler.sample(request) for request in requests]
        until_begun(futures[0], futures[-1])
        servers[0].kill()
        assert [tokens(future.result(SECONDS)) for future in futures] == expected
        servers[0] = servers[0].again().wait()
        servers[1].kill()
        assert [tokens(result) for result in draw(sampler, *requests)] == expected
        assert servers[0].served() > 6
    finally:
        sampler.close()


def test_requests_wait_for_the_only_server_to_come_back_but_not_for_ever(servers, references):
    base, nowhere = base_of(ModelSource("tiny", str(servers[0].model))), f"http://127.0.0.1:{free_port()}"
    sampler = attach(servers[0])
    impatient = AttachedSampler([nowhere, servers[0].url], base, patience=0.5)
    try:
        running = sampler.sample(ask(1, max_tokens=200))
        until_begun(running)
        servers[0].kill()
        waiting = sampler.sample(ask(2))
        with pytest.raises(WorkerLost, match=f"no vLLM server came back in 0 seconds: {nowhere}.*; {servers[0].url}"):
            draw(impatient, ask(0))
        servers[0] = servers[0].again()
        assert servers[0].url in waiting.waits_for()
        servers[0].wait()
        assert tokens(running.result(SECONDS)) == [references[None].greedy(ask(1).prompt_n, 200)]
        assert tokens(waiting.result(SECONDS)) == [references[None].greedy(ask(2).prompt_n, 12)]
        servers[0].kill()
        gone = sampler.sample(ask(3))
    finally:
        sampler.close()
        impatient.close()
    assert isinstance(gone.exception(SECONDS), Stopped)


def test_a_place_without_a_server_is_named(folder):
    base, nowhere = base_of(ModelSource("tiny", str(folder))), f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerError, match=f"no vLLM server answers: {nowhere} does not answer"):
        AttachedSampler([nowhere], base)
