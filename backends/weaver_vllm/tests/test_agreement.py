"""On the demo model: tokens as the embedded sampler's, logprobs as the trainer's, for the base and what was trained."""

import numpy as np
import pytest
from engines import SECONDS, draw, open_engine, tokens
from transformers import AutoTokenizer
from weaver_peft.demo_model import demo_model_folder
from weaver_peft.sampler import open_sampler
from weaver_peft.trainer import open_backend

from weaver.backend import Pass
from weaver.checkpoints import write_checkpoint
from weaver.domain import AdamParams, AdapterRef, Datum, LoraSpec, ModelSource, SampleRequest, SamplingParams
from weaver.registry import load_registry

pytestmark = [pytest.mark.demo_model, pytest.mark.timeout(900)]
SOURCE = ModelSource("demo", "demo", "cpu", "float32")
CROSS_ENTROPY = load_registry().loss("cross_entropy")
RANKS = (4, 8, 32)
QUESTIONS = ("What is the capital of France?", "Say something about the sea.", "Count from one to nine.")
TRAINED = "The tide went out at noon, and the boats lay in the mud until the evening brought the water back."


class Place:
    """The demo model's trainer, its embedded sampler, vLLM, and the snapshots that were saved."""

    def __init__(self, folder):
        self.folder, self.tokenizer = folder, AutoTokenizer.from_pretrained(demo_model_folder())
        self.trainer, self.embedded = open_backend(SOURCE), open_sampler(SOURCE)
        self.vllm = open_engine(demo_model_folder(), kv_cache_memory_bytes=256 << 20)

    def ids(self, text):
        return np.array(self.tokenizer(text)["input_ids"])

    def train(self, model_id, steps, rate):
        ids = self.ids(TRAINED)
        targets = {"target_tokens": ids[1:].copy(), "weights": np.ones(len(ids) - 1, np.float32)}
        for _ in range(steps):
            self.trainer.forward_backward([self._pass(model_id, Datum(ids[:-1].copy(), targets), True)])
            self.trainer.optim_step(model_id, AdamParams(rate))

    def snapshot(self, model_id, name):
        write_checkpoint(self.folder / name, self.trainer.export_state(model_id, optimizer=False))
        return AdapterRef(name, self.folder / name)

    def trainers_logprobs(self, model_id, ids):
        """Of all tokens but the first."""
        datum = Datum(ids[:-1].copy(), {"target_tokens": ids[1:].copy(), "weights": np.ones(len(ids) - 1, np.float32)})
        [result] = self.trainer.forward_backward([self._pass(model_id, datum, False)])
        return result.logprobs[0]

    def _pass(self, model_id, datum, backward):
        return Pass(model_id, [datum], CROSS_ENTROPY, {}, backward)

    def close(self):
        self.vllm.close()
        self.embedded.close()
        self.trainer.close()


@pytest.fixture(scope="module")
def place(vllm_python, tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("snapshots"))
    made.trainer.create_model("base", LoraSpec(1, 1.0, seed=0))  # B is zero: the base model itself
    for rank in RANKS:
        made.trainer.create_model(f"rank {rank}", LoraSpec(rank, 32.0, seed=rank))
        made.train(f"rank {rank}", 3, 1e-3 * rank**0.5)
    yield made
    made.close()


@pytest.fixture(scope="module")
def snapshots(place):
    """By model; Tinker's default trains the output layer too."""
    found = {f"rank {rank}": place.snapshot(f"rank {rank}", f"snapshot {rank}") for rank in RANKS}
    return {"base": None, **found}


def ask(place, text, adapter, **params):
    params = {"max_tokens": 24, "temperature": 0.0, "stop_token_ids": ()} | params
    return SampleRequest(place.ids(text), 1, SamplingParams(**params), adapter, prompt_logprobs=True)


def test_the_base_and_three_ranks_at_once_agree_with_the_embedded_sampler_and_the_trainer(place, snapshots, capsys):
    asked = [(name, ask(place, text, adapter)) for text in QUESTIONS for name, adapter in snapshots.items()]
    requests = [request for _, request in asked]
    found, expected = draw(place.vllm, *requests), draw(place.embedded, *requests)
    assert list(map(tokens, found)) == list(map(tokens, expected))
    assert len({float(result.prompt_logprobs_n[-1]) for result in found[:4]}) == 4
    off = {}
    for (name, request), result in zip(asked, found, strict=True):
        [sequence] = result.sequences
        trainers = place.trainers_logprobs(name, np.concatenate([request.prompt_n, sequence.tokens]))
        told = np.concatenate([result.prompt_logprobs_n[1:], sequence.logprobs])
        off[name] = max(off.get(name, 0.0), float(np.abs(told - trainers).max()))
    with capsys.disabled():
        print(" largest difference of logprobs from the trainer's:", {name: f"{one:.1e}" for name, one in off.items()})
    assert max(off.values()) < 1e-4


def test_a_snapshot_does_not_change_when_training_goes_on(place, snapshots):
    request = ask(place, QUESTIONS[0], snapshots["rank 8"])
    [before] = draw(place.vllm, request)
    place.train("rank 8", 3, 1e-2)
    later = ask(place, QUESTIONS[0], place.snapshot("rank 8", "later"))
    [new, again] = draw(place.vllm, later, request)
    assert tokens(again) == tokens(before)
    assert (again.sequences[0].logprobs == before.sequences[0].logprobs).all() or (
        np.abs(again.sequences[0].logprobs - before.sequences[0].logprobs).max() < 1e-4
    )
    assert tokens(new) == tokens(draw(place.embedded, later)[0]) != tokens(before)


def test_two_hundred_requests_at_once(place, snapshots):
    """Of the base and three ranks, with seeds: all come, and each as if it were alone."""
    adapters = list(snapshots.values())
    requests = [
        ask(place, f"{QUESTIONS[n % 3]} {n}", adapters[n % 4], temperature=1.0, seed=n, max_tokens=1 + n % 16)
        for n in range(200)
    ]
    futures = [place.vllm.sample(request) for request in requests]
    found = [future.result(SECONDS) for future in futures]
    assert [len(result.sequences[0].tokens) for result in found] == [1 + n % 16 for n in range(200)]
    alone = draw(place.vllm, requests[77])
    assert tokens(alone[0]) == tokens(found[77])


def test_stop_strings_end_where_the_embedded_sampler_ends(place, snapshots):
    """The token that completes one is the last; a string may lie across tokens."""
    [free] = draw(place.vllm, ask(place, QUESTIONS[2], None, max_tokens=40))
    text = place.tokenizer.decode(free.sequences[0].tokens)
    strings = [text[9:14], text[20:23], "never said"]
    requests = [ask(place, QUESTIONS[2], None, max_tokens=40, stop_strings=(string,)) for string in strings]
    requests.append(ask(place, QUESTIONS[2], snapshots["rank 4"], max_tokens=40, stop_strings=tuple(strings)))
    found, expected = draw(place.vllm, *requests), draw(place.embedded, *requests)
    assert list(map(tokens, found)) == list(map(tokens, expected))
    assert [one.sequences[0].stop_reason for one in found] == [one.sequences[0].stop_reason for one in expected]
    assert len(found[0].sequences[0].tokens) < 40 == len(found[2].sequences[0].tokens)
    assert all(len(one.sequences[0].logprobs) == len(one.sequences[0].tokens) for one in found)


def test_stop_strings_of_the_first_min_tokens_are_text_to_both(place):
    [free] = draw(place.vllm, ask(place, QUESTIONS[2], None, max_tokens=40))
    drawn = tokens(free)[0]
    early = place.tokenizer.decode(drawn[:8])[-3:]
    requests = [
        ask(place, QUESTIONS[2], None, max_tokens=40, stop_strings=strings, min_tokens=least)
        for strings in ((early,), (" ", early), (place.tokenizer.decode(drawn[7:9]),))
        for least in (0, 7, 8, 9)
    ]
    found, expected = draw(place.vllm, *requests), draw(place.embedded, *requests)
    assert list(map(tokens, found)) == list(map(tokens, expected))
    assert all(len(tokens(result)[0]) > request.params.min_tokens for request, result in zip(requests, found))
    assert len({len(tokens(result)[0]) for result in found}) > 3


def test_the_models_own_end_ends_it(place):
    chat = place.tokenizer.apply_chat_template([{"role": "user", "content": QUESTIONS[0]}], tokenize=False)
    request = ask(place, f"{chat}<|im_start|>assistant\n", None, max_tokens=60, stop_token_ids=None)
    [found], [expected] = draw(place.vllm, request), draw(place.embedded, request)
    assert tokens(found) == tokens(expected)
    assert found.sequences[0].stop_reason is expected.sequences[0].stop_reason
    assert found.sequences[0].tokens[-1] == place.tokenizer.eos_token_id
