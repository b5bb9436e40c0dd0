"""The requests that unmodified NexRL 1.4.0 makes through unmodified nex-weaver 1.19.2 in two steps, made again.

`nexrl_two_steps.json` was recorded by `recording.py` between the two and this server; it has the shapes of bodies.
"""

import json
import math
from pathlib import Path

import httpx
import pytest

from tests.integrations.conftest import MODEL
from tests.integrations.recording import KINDS, restored

RECORDED = json.loads(Path(__file__).with_name("nexrl_two_steps.json").read_text())
SERVED = "HuggingFaceTB/SmolLM2-135M-Instruct"
VOCABULARY = 250


class Replay:
    """Sends the requests in their order, with the ids that this server gave in the place of the recorded ones."""

    def __init__(self, url):
        self.http = httpx.Client(base_url=url, headers={"X-WEAVER-API-KEY": "local"}, timeout=60)
        self.ids = {}
        self.answers = []

    def run(self):
        for asked in RECORDED:
            text = json.dumps(restored(asked, VOCABULARY)).replace(SERVED, MODEL)
            for name, found in self.ids.items():
                text = text.replace(name, found)
            request = json.loads(text)
            answer = self.http.request(request["method"], request["path"], json=request.get("body"))
            assert answer.is_success, (request, answer.text)
            self.answers.append((asked, self._settled(asked, answer.json() if answer.content else None)))
        return self.answers

    def _settled(self, asked, answer):
        kind = asked["path"].rsplit("/", 1)[-1]
        if asked["method"] == "POST" and kind in KINDS:
            number = sum(name.startswith(f"{{{kind}-") for name in self.ids) + 1
            self.ids[f"{{{kind}-{number}}}"] = answer["id"]
            return answer
        if not isinstance(answer, dict) or "status" not in answer or kind == "terminate":
            return answer
        while answer["status"] not in ("done", "error"):
            answer = self.http.get(f"/api/v1/operations/{answer['id']}").json()
        assert answer["status"] == "done", (asked, answer)
        return answer["response"]


@pytest.fixture(scope="module")
def answers(url):
    return Replay(url).run()


def of(answers, ending):
    return [(asked, answer) for asked, answer in answers if asked["path"].endswith(ending)]


def test_the_recording_is_of_two_whole_steps():
    paths = [asked["path"].rsplit("/", 1)[-1] for asked in RECORDED]
    assert paths[:5] == ["sessions", "heartbeat", "models", "export-sampler", "sampling-sessions"]
    assert paths[-1] == "terminate"
    assert [path for path in paths[5:] if path not in ("samples", "heartbeat", "terminate")] == 2 * [
        "forward-backward-passes",
        "optimizer-steps",
        "export-sampler",
        "sampling-sessions",
    ]


def test_a_model_says_what_it_is_and_where_its_tokenizer_is(answers):
    ((_, model),) = of(answers, "/models")
    assert model["id"]
    assert model["tokenizer_path"]


def test_weights_for_sampling_have_a_path_under_the_name_they_were_given(answers):
    saved = of(answers, "/export-sampler")
    assert [asked["body"]["path"] for asked, _ in saved] == ["initial", "step_000001", "step_000002"]
    for asked, answer in saved:
        path = answer.get("model_path") or answer["path"]
        assert path.startswith("weaver://")
        assert path.endswith(f"/checkpoints/{asked['body']['path']}")


def test_samples_have_tokens_a_logprob_for_each_and_their_text(answers, tokenizer):
    found = of(answers, "/samples")
    assert len(found) >= 8
    for asked, answer in found:
        (sequence,) = answer["result"]["sequences"]
        assert (
            0 < len(sequence["tokens"]) == len(sequence["logprobs"]) <= asked["body"]["sampling_params"]["max_tokens"]
        )
        assert all(isinstance(one, float) and one <= 0 for one in sequence["logprobs"])
        assert sequence["text"] == tokenizer.decode(sequence["tokens"])
        assert sequence["stop_reason"] in ("stop", "length")


def test_passes_tell_a_loss_and_the_logprobs_of_their_targets(answers):
    for asked, answer in of(answers, "/forward-backward-passes"):
        data = asked["body"]["payload"]["forward_backward_input"]["data"]
        told = answer["result"]
        assert math.isfinite(told["metrics"]["loss"])
        lengths = [one["loss_fn_inputs"]["target_tokens"]["data"]["$tokens"] for one in data]
        assert [len(one["logprobs"]["data"]) for one in told["loss_fn_outputs"]] == lengths


def test_steps_tell_their_metrics_on_top(answers):
    steps = of(answers, "/optimizer-steps")
    assert len(steps) == 2
    for _, answer in steps:
        assert answer["metrics"]
        assert all(isinstance(value, int | float) for value in answer["metrics"].values())
