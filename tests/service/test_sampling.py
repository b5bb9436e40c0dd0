"""The front door of samples: what is checked, what a repeat is, and what is handed on."""

import numpy as np
import pytest

from weaver.backend import ModelSource
from weaver.config import Config
from weaver.errors import InvalidInput, SequenceRefused
from weaver.service import Service

MODEL = "some/echo"
PROMPT = np.array([3, 4, 0])
"""Token 0 ends a text, and the sampler says the prompt over and over."""


@pytest.fixture
def service(tmp_path):
    source = ModelSource(MODEL, "echo:vocab=10,context=64")
    made = Service(Config(models=(source,), data_dir=tmp_path, backend="echo", sampler="echo"))
    yield made
    made.close()


@pytest.fixture
def sampler(service):
    return service.create_sampling_session(service.create_session(user_metadata={}), 0, base_model=MODEL)


def drawn(service, ticket):
    return service.future(ticket.request_id).result(timeout=60).sequences[0]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"min_tokens": -1}, r"sampling_params.min_tokens is -1; it must be from 0 to max_tokens, 5"),
        ({"min_tokens": 6}, r"sampling_params.min_tokens is 6; it must be from 0 to max_tokens, 5"),
        (
            {"min_tokens": 1, "stop_token_ids": (*range(10), 3)},
            "sampling_params.min_tokens is 1, but every token of 'some/echo' is a stop token",
        ),
    ],
)
def test_a_min_tokens_that_nothing_fits_is_refused_and_uses_up_no_number(service, sampler, asked, said):
    with pytest.raises(InvalidInput, match=said):
        service.sample(sampler, 1, prompt=PROMPT, max_tokens=5, **asked)
    assert len(drawn(service, service.sample(sampler, 1, prompt=PROMPT, max_tokens=2)).tokens) == 2


def test_all_that_fits_is_a_max_tokens_too(service, sampler):
    with pytest.raises(InvalidInput, match="from 0 to max_tokens, 61"):
        service.sample(sampler, 1, prompt=PROMPT, min_tokens=62)
    told = drawn(service, service.sample(sampler, 1, prompt=PROMPT, min_tokens=61, stop_token_ids=()))
    assert len(told.tokens) == 61


def test_min_tokens_and_masks_reach_the_sampler(service, sampler):
    told = drawn(service, service.sample(sampler, 1, prompt=PROMPT, max_tokens=5, top_p=0.5, sampling_mask=True))
    assert told.sampling_mask.lists() == [[3], [4], [0]]
    assert drawn(service, service.sample(sampler, 2, prompt=PROMPT, max_tokens=5, top_p=0.5)).sampling_mask is None
    with pytest.raises(InvalidInput, match="token 3 is the stop token 0"):
        drawn(service, service.sample(sampler, 3, prompt=PROMPT, max_tokens=5, min_tokens=3))


@pytest.mark.parametrize(
    ("other", "named"), [({"sampling_mask": True}, "another sampling_mask"), ({"min_tokens": 1}, "another params")]
)
def test_a_repeat_that_asks_for_more_is_another_request(service, sampler, other, named):
    asked = {"prompt": PROMPT, "max_tokens": 2}
    first = service.sample(sampler, 1, **asked)
    assert service.sample(sampler, 1, **asked) == first
    with pytest.raises(SequenceRefused, match=named):
        service.sample(sampler, 1, **asked, **other)
