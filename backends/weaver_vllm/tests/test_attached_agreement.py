"""On the demo model, a vLLM server draws what the embedded sampler draws: the base, and what Tinker's clients train."""

import numpy as np
import pytest
from attached_servers import VllmServer, attach, serving
from engines import draw, tokens
from transformers import AutoTokenizer
from weaver_peft.demo_model import demo_model_folder
from weaver_peft.sampler import open_sampler
from weaver_peft.trainer import open_backend

from weaver.backend import Pass
from weaver.checkpoints import write_checkpoint
from weaver.domain import AdamParams, AdapterRef, Datum, LoraSpec, ModelSource, SampleRequest, SamplingParams
from weaver.registry import load_registry

pytestmark = [pytest.mark.demo_model, pytest.mark.timeout(1500)]
SOURCE = ModelSource("demo", "demo", "cpu", "float32")
CROSS_ENTROPY = load_registry().loss("cross_entropy")
QUESTION = "Count from one to nine."


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """The base, and an adapter with its output layer after some steps."""
    place, trainer = tmp_path_factory.mktemp("snapshots"), open_backend(SOURCE)
    trainer.create_model("trained", LoraSpec(8, 32.0, seed=8))
    ids = np.random.default_rng(0).integers(10, 40_000, 24)
    datum = Datum(ids[:-1], {"target_tokens": ids[1:], "weights": np.ones(23, np.float32)})
    for _ in range(3):
        trainer.forward_backward([Pass("trained", [datum], CROSS_ENTROPY, {}, True)])
        trainer.optim_step("trained", AdamParams(3e-3))
    write_checkpoint(place / "trained", trainer.export_state("trained", optimizer=False))
    assert any("lm_head" in name for name in trainer.export_state("trained", optimizer=False).adapter.tensors)
    trainer.close()
    return {"base": None, "trained": AdapterRef("trained", place / "trained")}


@pytest.fixture(scope="module")
def embedded():
    opened = open_sampler(SOURCE)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def sampler(vllm_python):
    with serving(VllmServer(demo_model_folder(), max_model_len="512")) as started:
        opened = attach(*started)
        yield opened
        opened.close()


def ask(text, adapter, **params):
    ids = np.array(AutoTokenizer.from_pretrained(demo_model_folder())(text)["input_ids"])
    given = {"max_tokens": 20, "temperature": 0.0, "stop_token_ids": ()} | params
    return SampleRequest(ids, 1, SamplingParams(**given), adapter, prompt_logprobs=not given.get("stop_strings"))


def test_greedy_tokens_are_the_same_and_logprobs_within_a_ten_thousandth(sampler, embedded, snapshots, capsys):
    requests = [ask(QUESTION, adapter) for adapter in snapshots.values()]
    found, expected = draw(sampler, *requests), draw(embedded, *requests)
    assert list(map(tokens, found)) == list(map(tokens, expected))
    assert tokens(found[0]) != tokens(found[1])
    off = {}
    for name, one, other in zip(snapshots, found, expected, strict=True):
        told, wanted = (
            np.concatenate([result.prompt_logprobs_n[1:], result.sequences[0].logprobs]) for result in (one, other)
        )
        off[name] = float(np.abs(told - wanted).max())
    with capsys.disabled():
        print(" largest difference from the embedded sampler's:", {name: f"{one:.1e}" for name, one in off.items()})
    assert max(off.values()) < 1e-4


def test_stop_strings_of_the_first_min_tokens_are_text_to_both(sampler, embedded):
    ends = {"max_tokens": 40, "stop_token_ids": None}
    requests = [ask(QUESTION, None, **ends, stop_strings=(",", " "), min_tokens=least) for least in (0, 4, 9, 15)]
    found, expected = draw(sampler, *requests), draw(embedded, *requests)
    assert list(map(tokens, found)) == list(map(tokens, expected))
    assert [len(tokens(result)[0]) > least for result, least in zip(found, (0, 4, 9, 15), strict=True)] == [True] * 4
    assert len({len(tokens(result)[0]) for result in found}) > 2


def test_stop_strings_end_where_the_embedded_sampler_ends(sampler, embedded, snapshots):
    """The token that completes one is the last; a string may lie across tokens."""
    [free] = draw(sampler, ask(QUESTION, None, max_tokens=30))
    text = AutoTokenizer.from_pretrained(demo_model_folder()).decode(free.sequences[0].tokens)
    strings = (text[9:14], text[20:23], "never said")
    requests = [ask(QUESTION, None, max_tokens=30, stop_strings=(string,)) for string in strings]
    found, expected = draw(sampler, *requests), draw(embedded, *requests)
    assert list(map(tokens, found)) == list(map(tokens, expected))
    assert [one.sequences[0].stop_reason for one in found] == [one.sequences[0].stop_reason for one in expected]
    assert len(found[0].sequences[0].tokens) < 30 == len(found[2].sequences[0].tokens)
