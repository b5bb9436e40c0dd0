"""An agent of two turns over the OpenAI endpoint and over tokens: what it said becomes data with exactly its tokens."""

import json

import numpy as np
import openai
import pytest
from weaver_nexau.model import datum
from weaver_nexau.task import TOOL, conversation, lookup, question, reward
from weaver_nexau.token_client import TokenClient, message
from weaver_nexau.train import data_of, run_agent, train
from weaver_nexau.train import datum as datum_of
from weaver_nexau.turns import Turn, traces

from tests.integrations.conftest import MODEL
from weaver import types

NAME = "Ada"
STEPS = 50


@pytest.fixture(scope="module")
def trained(client, tokenizer):
    """A model that has learned one conversation by heart, and the path of its weights."""
    training = client.create_model(base_model=MODEL, lora_config={"rank": 32, "seed": 1})
    for _ in range(STEPS):
        training.forward_backward([datum(tokenizer, NAME)], "cross_entropy")
        training.optim_step(types.AdamParams(learning_rate=1e-2, weight_decay=0.0))
    return training, training.save_weights_for_sampler(name="learned")


@pytest.fixture(scope="module")
def endpoint(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0) as connected:
        yield connected


@pytest.fixture(scope="module")
def episode(trained, endpoint):
    return run_agent(endpoint, trained[1], NAME, max_tokens=160, temperature=0.0)


def test_the_agent_calls_the_tool_and_says_what_it_got(episode):
    assert len(episode.turns) == 2
    assert lookup(NAME) in episode.answer
    assert episode.reward == 1.0


def test_a_turn_was_shown_the_conversation_as_the_template_writes_it(episode, tokenizer):
    for turn, count in zip(episode.turns, (2, 4), strict=True):
        shown = tokenizer.apply_chat_template(
            conversation(NAME)[:count], tools=[TOOL], add_generation_prompt=True, return_dict=False
        )
        assert list(turn.prompt) == shown


def test_both_turns_are_one_trace_for_the_template_gives_answers_back_token_for_token(episode):
    (trace,) = traces(episode.turns)
    first, second = episode.turns
    assert trace.tokens == second.prompt + second.response
    assert trace.tokens[: len(first.prompt) + len(first.response)] == first.prompt + first.response
    assert sum(trace.sampled) == len(first.response) + len(second.response)


def test_the_endpoint_tells_the_tokens_and_logprobs_that_the_sampler_drew(trained, client, endpoint, tokenizer):
    """The same request and seed, once as messages and once as tokens."""
    sampler = client.create_sampling_client(model_path=trained[1], base_model=MODEL)
    messages = conversation(NAME)[:2]
    told = endpoint.chat.completions.create(
        model=trained[1], messages=messages, tools=[TOOL], max_tokens=40, seed=11, temperature=1.0
    )
    turn = Turn.of(told.model_extra["nexrl_train"])
    drawn = sampler.sample(
        prompt=types.ModelInput.from_ints(list(turn.prompt)),
        sampling_params=types.SamplingParams(max_tokens=40, seed=11, temperature=1.0),
    )["sequences"][0]
    assert list(turn.response) == drawn["tokens"]
    assert list(turn.logprobs) == pytest.approx(drawn["logprobs"], abs=1e-5)
    scored = sampler.compute_logprobs(prompt=types.ModelInput.from_ints(list(turn.prompt + turn.response)))
    assert list(turn.logprobs) == pytest.approx(scored[len(turn.prompt) :], abs=1e-4)


def test_the_trainer_computes_the_logprobs_that_the_sampler_drew_by(trained, episode):
    """The endpoint's logprobs are what importance_sampling compares with: the ratio is 1 before the first step."""
    (trace,) = traces(episode.turns)
    answer = trained[0].forward([datum_of(trace, 1.0)], "forward_logprob")
    found = np.array(answer["result"]["loss_fn_outputs"][0]["logprobs"]["data"])
    sampled = np.array(trace.sampled[1:], bool)
    assert found[sampled] == pytest.approx(np.array(trace.logprobs[1:])[sampled], abs=1e-3)


def test_a_step_makes_what_did_better_than_its_group_likelier(client, endpoint, trained, tokenizer):
    training = client.create_model(base_model=MODEL, lora_config={"rank": 8})
    weights = training.save_weights_for_sampler(name="before")
    good, bad = (run_agent(endpoint, weights, NAME, max_tokens=12, temperature=1.0, seed=seed) for seed in (1, 2))
    assert good.turns != bad.turns
    group = [type(good)(good.turns, "", 1.0), bad]
    data = data_of(group)

    def likelihoods():
        result = training.forward(data, "forward_logprob")["result"]["loss_fn_outputs"]
        masks = [np.asarray(one.loss_fn_inputs["loss_mask"]) for one in data]
        return [float(mask @ np.array(one["logprobs"]["data"])) for mask, one in zip(masks, result, strict=True)]

    before = likelihoods()
    training.forward_backward(data, "importance_sampling")
    training.optim_step(types.AdamParams(learning_rate=1e-3, weight_decay=0.0))
    after = likelihoods()
    assert after[0] > before[0] + 0.1
    assert after[1] < before[1] - 0.1


def test_a_group_that_did_alike_teaches_nothing(episode):
    assert data_of([episode, episode]) == []


def test_the_loop_saves_the_weights_of_each_step_and_samples_from_them(client, endpoint):
    training = client.create_model(base_model=MODEL, lora_config={"rank": 8})
    rewards = list(train(training, endpoint, steps=2, people=2, attempts=2))
    assert rewards == [0.0, 0.0], "a random model calls no tool"
    saved = {model.id.rpartition("/")[2] for model in endpoint.models.list()}
    assert {"step-0000", "step-0001"} <= saved


def test_tokens_in_and_out_are_those_of_the_sampler(trained, client, tokenizer):
    """NexAU's way with `api_type: generate_with_token`: it writes the prompt and keeps the tokens."""
    sampler = client.create_sampling_client(model_path=trained[1], base_model=MODEL)
    asked = tokenizer.apply_chat_template(
        conversation(NAME)[:2], tools=[TOOL], add_generation_prompt=True, return_dict=False
    )
    params = {"max_new_tokens": 160, "temperature": 0.0}
    first = TokenClient(sampler).generate_with_token(model="m", input_ids=asked, sampling_params=params, tools=[TOOL])
    (call,) = first["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("lookup", {"name": NAME})
    said = first["nexrl_train"]
    assert said["prompt_tokens"] == asked
    assert len(said["response_tokens"]) == len(said["response_logprobs"]) == first["usage"]["completion_tokens"]

    result = [{"role": "tool", "content": lookup(NAME), "tool_call_id": call["id"]}]
    more = tokenizer.apply_chat_template(result, add_generation_prompt=True, return_dict=False)
    shown = [*asked, *said["response_tokens"], *more]
    second = TokenClient(sampler).generate_with_token(model="m", input_ids=shown, sampling_params=params)
    assert lookup(NAME) in second["choices"][0]["message"]["content"]
    whole = tokenizer.apply_chat_template(
        conversation(NAME)[:4], tools=[TOOL], add_generation_prompt=True, return_dict=False
    )
    assert shown == whole, "a part of a conversation is written as it is in the whole"
    assert len(traces([Turn.of(said), Turn.of(second["nexrl_train"])])) == 1


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"min_p": 0.1}, "sampling_params.min_p is 0.1, but weaver samples with 0 only"),
        ({"n": 2}, "sampling_params.n is 2, but weaver samples with 1 only"),
        ({"regex": "a*"}, "sampling_params.regex is not known here; leave it out"),
    ],
)
def test_what_tokens_are_not_drawn_by_is_refused(params, sentence):
    with pytest.raises(ValueError, match=sentence.replace("*", r"\*")):
        TokenClient(None).generate_with_token(model="m", input_ids=[1], sampling_params=params)


def test_text_that_is_no_call_stays_text():
    assert message("<tool_call>{broken</tool_call>") == {
        "role": "assistant",
        "content": "<tool_call>{broken</tool_call>",
    }
    found = message('Well: <tool_call>{"name": "lookup", "arguments": {"name": "Ada"}}</tool_call>')
    assert found["content"] == "Well:"
    assert [one["function"] for one in found["tool_calls"]] == [{"name": "lookup", "arguments": '{"name": "Ada"}'}]


def test_the_reward_wants_the_right_call_and_the_number():
    right = [("lookup", {"name": "Ada"})]
    assert reward("Ada", right, f"It is {lookup('Ada')}.") == 1.0
    assert reward("Ada", [("lookup", '{"name": "Ada"}')], "I do not know.") == 0.5
    assert reward("Ada", [("lookup", {"name": "Eva"})], lookup("Ada")) == 0.0
    assert reward("Ada", [*right, *right], lookup("Ada")) == 0.0
    assert reward("Ada", [], lookup("Ada")) == 0.0
    assert question("Ada") == "What is Ada's number?"
