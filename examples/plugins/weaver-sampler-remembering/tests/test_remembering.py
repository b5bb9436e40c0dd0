"""`remembering` keeps the contract of samplers, and computes what has one answer once."""

from dataclasses import replace

import numpy as np
import pytest
from weaver_peft import weaver_samplers as embedded_samplers
from weaver_sampler_remembering import RememberingSampler, weaver_samplers

from weaver.domain import Inflight, ModelSource, SampleRequest, SamplingParams
from weaver.testing import check_sampler
from weaver.testing.reference import write_model

GREEDY = SampleRequest(np.array([3, 5, 7]), 2, SamplingParams(6, temperature=0.0))
SEEDED = replace(GREEDY, params=SamplingParams(6, seed=4))
DRAWN = replace(GREEDY, params=SamplingParams(6))


class Counting:
    """The sampler `embedded`, which counts what it is asked."""

    def __init__(self, source):
        [embedded] = embedded_samplers()
        self.inner, self.asked = embedded.open(source), 0

    def sample(self, request):
        self.asked += 1
        return self.inner.sample(request)

    def close(self):
        self.inner.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return ModelSource("tiny/llama", str(write_model("llama", tmp_path_factory.mktemp("tiny") / "llama")), "cpu")


@pytest.fixture
def counting(source):
    made = Counting(source)
    yield made
    made.close()


def tokens(sampler, request):
    return [sequence.tokens.tolist() for sequence in sampler.sample(request).result(60).sequences]


@pytest.mark.parametrize("request_", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_request_with_one_answer_is_computed_once(counting, request_):
    sampler = RememberingSampler(counting)
    first, again = sampler.sample(request_).result(60), sampler.sample(request_).result(60)
    assert counting.asked == 1
    assert [one.tokens.tolist() for one in first.sequences] == [one.tokens.tolist() for one in again.sequences]
    assert again.cached_prompt_tokens == 3


def test_what_may_have_another_answer_is_computed_again(counting):
    sampler = RememberingSampler(counting)
    asked = [
        DRAWN, DRAWN, GREEDY, SEEDED, replace(GREEDY, num_samples=1), replace(GREEDY, prompt_n=np.array([3, 5])),
        replace(GREEDY, prompt_logprobs=True), replace(SEEDED, params=SamplingParams(6, seed=5)),
    ]  # fmt: skip
    drawn = [tokens(sampler, request) for request in asked]
    assert counting.asked == len(asked)
    assert drawn[0] != drawn[1]
    follows = replace(GREEDY, inflight=Inflight("session:train:0", 1, "session:sample:0"))
    assert tokens(sampler, follows) == tokens(sampler, follows)
    assert counting.asked == len(asked) + 2


def test_the_oldest_result_is_forgotten_first(counting):
    sampler = RememberingSampler(counting, most=1)
    for request in (GREEDY, SEEDED, SEEDED, GREEDY):
        tokens(sampler, request)
    assert counting.asked == 3


def test_it_keeps_the_contract():
    [factory] = weaver_samplers()
    check_sampler(factory, families=["llama"])


def test_it_is_found_where_it_is_installed(weaver_registry):
    [loaded] = [one for one in weaver_registry.plugins if one.names.get("weaver_samplers") == ("remembering",)]
    assert loaded.name == "weaver-sampler-remembering 0.1.0"
