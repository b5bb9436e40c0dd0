"""Chat and completions through the official client: exactly the tokens that Tinker's SDK samples, in OpenAI's shape."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import tinker

from .conftest import CONTEXT, MODEL

MESSAGES = [{"role": "system", "content": "Be the thing."}, {"role": "user", "content": "Häagen 東?"}]


def chat(client, **more):
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 24, "seed": 7} | more
    return client.chat.completions.create(**asked)


def prompt_of(tokenizer, messages=MESSAGES):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def assert_same(record, expected):
    """The same tokens; logprobs may differ in their last bits by what else was in the batch."""
    assert {**record, "response_logprobs": 0} == {**expected, "response_logprobs": 0}
    assert record["response_logprobs"] == pytest.approx(expected["response_logprobs"], abs=1e-4)


@pytest.fixture(scope="module")
def sampler(trainer):
    return trainer.create_sampling_client(base_model=MODEL).result()


def drawn(sampler, tokens, samples=1, **params):
    asked = tinker.SamplingParams(**({"max_tokens": 24, "seed": 7} | params))
    return sampler.sample(tinker.ModelInput.from_ints(tokens), samples, asked).result().sequences


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.5, "top_p": 0.6},
        {"top_k": 3, "seed": 11},
        {"temperature": 1.7, "top_k": 0},
    ],
)
def test_what_is_trained_on_is_what_the_sampler_drew(params, client, sampler, tokenizer):
    extra = {name: params[name] for name in params if name == "top_k"}
    answer = chat(client, **{name: one for name, one in params.items() if name != "top_k"}, extra_body=extra)
    [expected] = drawn(sampler, prompt_of(tokenizer), **params | ({"top_k": -1} if extra == {"top_k": 0} else {}))
    record = answer.nexrl_train
    assert record["prompt_tokens"] == prompt_of(tokenizer)
    assert record["response_tokens"] == list(expected.tokens)
    assert record["response_logprobs"] == pytest.approx(list(expected.logprobs), abs=1e-4)
    assert answer.usage.completion_tokens == len(record["response_tokens"]) == len(record["response_logprobs"])


def test_an_answer_has_openais_shape(client, tokenizer):
    answer = chat(client)
    [choice] = answer.choices
    assert (answer.object, answer.model, choice.index, choice.message.role) == (
        "chat.completion",
        MODEL,
        0,
        "assistant",
    )
    assert answer.id.startswith("chatcmpl-")
    assert choice.message.content == tokenizer.decode(answer.nexrl_train["response_tokens"], skip_special_tokens=True)
    assert (choice.finish_reason, choice.logprobs, choice.message.tool_calls) == ("length", None, None)
    prompt = len(prompt_of(tokenizer))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (prompt, prompt + 24)
    assert answer.weight_version == MODEL


def test_the_stop_token_is_trained_on_and_is_no_text(client, sampler, tokenizer):
    [expected] = drawn(sampler, prompt_of(tokenizer), temperature=0.0)
    stop = list(expected.tokens)[5]
    first = list(expected.tokens).index(stop) + 1
    answer = chat(client, temperature=0, logprobs=True, extra_body={"stop_token_ids": [stop]})
    assert answer.nexrl_train["response_tokens"] == list(expected.tokens)[:first]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == tokenizer.decode(list(expected.tokens)[: first - 1])
    assert len(answer.choices[0].logprobs.content) == first


def test_the_models_end_ends_unless_it_shall_be_ignored(client, tool_user, tokenizer):
    asked = {"model": tool_user, "messages": [{"role": "user", "content": "What is 2 + 3?"}], "temperature": 0}
    ended = chat(client, **asked, max_tokens=110)
    assert ended.choices[0].finish_reason == "stop"
    assert ended.nexrl_train["response_tokens"][-1] == tokenizer.eos_token_id
    kept = chat(client, **asked, max_tokens=110, extra_body={"skip_special_tokens": False, "no_stop_trim": True})
    assert kept.choices[0].message.content.endswith("<|im_end|>")
    on = chat(client, **asked, max_tokens=110, extra_body={"ignore_eos": True, "skip_special_tokens": False})
    assert (on.usage.completion_tokens, on.choices[0].finish_reason) == (110, "length")
    assert "<|im_end|>" in on.choices[0].message.content


@pytest.mark.parametrize("keeps", [False, True])
def test_a_stop_string_ends_and_is_cut_off_unless_it_shall_stay(keeps, client, sampler, tokenizer):
    [expected] = drawn(sampler, prompt_of(tokenizer), max_tokens=60, temperature=0.3)
    text = tokenizer.decode(expected.tokens)
    place = next(place for place in range(8, len(text)) if "\ufffd" not in text[place : place + 2])
    stop = text[place : place + 2]
    begin = text.find(stop)
    answer = chat(
        client,
        max_tokens=60,
        temperature=0.3,
        stop=["never said", stop],
        extra_body={"include_stop_str_in_output": keeps},
    )
    content = answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert content.startswith(text[:begin])
    assert (stop in content) == keeps
    tokens = answer.nexrl_train["response_tokens"]
    assert tokens == list(expected.tokens)[: len(tokens)]
    assert stop in tokenizer.decode(tokens)


def test_logprobs_are_those_drawn_with_and_name_tokens_as_text(client, tokenizer):
    answer = chat(client, logprobs=True, top_logprobs=3, temperature=0.8)
    content, record = answer.choices[0].logprobs.content, answer.nexrl_train
    assert [entry.logprob for entry in content] == record["response_logprobs"]
    assert b"".join(bytes(entry.bytes) for entry in content).decode(errors="replace") == tokenizer.decode(
        record["response_tokens"]
    )
    for entry in content:
        assert entry.token in (
            bytes(entry.bytes).decode(errors="replace"),
            "".join(f"\\x{b:02x}" for b in entry.bytes),
        ) or (entry.token.startswith("bytes:\\x"))
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == max(top.logprob for top in entry.top_logprobs) >= entry.logprob


def test_tokens_are_named_by_their_ids_where_that_is_asked_for(client):
    answer = chat(client, logprobs=True, extra_body={"return_tokens_as_token_ids": True, "return_token_ids": True})
    drawn = answer.nexrl_train["response_tokens"]
    assert [entry.token for entry in answer.choices[0].logprobs.content] == [f"token_id:{token}" for token in drawn]
    assert answer.choices[0].token_ids == drawn
    assert answer.prompt_token_ids == answer.nexrl_train["prompt_tokens"]


def test_several_choices_are_the_samples_of_one_request_each_with_its_record(client, sampler, tokenizer):
    answer = chat(client, n=3)
    expected = drawn(sampler, prompt_of(tokenizer), samples=3)
    assert [choice.nexrl_train["response_tokens"] for choice in answer.choices] == [
        list(one.tokens) for one in expected
    ]
    assert answer.nexrl_train == answer.choices[0].nexrl_train
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == len(prompt_of(tokenizer))
    assert answer.usage.completion_tokens == sum(len(one.tokens) for one in expected)


def test_without_a_seed_each_request_draws_its_own(client):
    first, second = (chat(client, seed=openai.omit).nexrl_train["response_tokens"] for _ in range(2))
    assert first != second


def test_without_a_limit_a_chat_goes_on_to_the_end_of_the_context(client, tokenizer):
    answer = chat(client, max_tokens=openai.omit, extra_body={"ignore_eos": True})
    assert answer.usage.total_tokens == CONTEXT


def test_what_was_computed_before_is_told_as_cached(client):
    fresh = [{"role": "user", "content": "A conversation of its own. " * 6}]
    first, again = (chat(client, messages=fresh).usage for _ in range(2))
    assert (
        first.prompt_tokens_details.cached_tokens < again.prompt_tokens_details.cached_tokens == again.prompt_tokens - 1
    )


def test_parts_of_text_and_developers_are_read(client, tokenizer):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    answer = chat(client, messages=[{"role": "developer", "content": "Be."}, {"role": "user", "content": parts}])
    as_template = [{"role": "system", "content": "Be."}, {"role": "user", "content": "a\nb"}]
    assert answer.nexrl_train["prompt_tokens"] == prompt_of(tokenizer, as_template)


def test_what_changes_nothing_is_accepted(client):
    harmless = {
        "user": "local_1",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "presence_penalty": 0,
    }
    more = {
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "parallel_tool_calls": True,
    }
    extra = {"min_p": 0, "repetition_penalty": 1.0, "min_tokens": 0, "top_k": None, "prompt_cache_key": "x"}
    answer = chat(client, **harmless, **more, extra_body=extra, max_completion_tokens=24)
    assert_same(answer.nexrl_train, chat(client).nexrl_train)


def test_fifty_clients_at_once_get_what_each_gets_alone(client):
    with ThreadPoolExecutor(50) as pool:
        together = list(pool.map(lambda seed: chat(client, seed=seed, max_tokens=8 + seed % 9), range(50)))
    for seed in (0, 17, 49):
        alone = chat(client, seed=seed, max_tokens=8 + seed % 9)
        assert together[seed].nexrl_train["response_tokens"] == alone.nexrl_train["response_tokens"]
    assert len({tuple(answer.nexrl_train["response_tokens"]) for answer in together}) == 50


# Completions


def complete(client, **more):
    return client.completions.create(**({"model": MODEL, "prompt": "the thing", "seed": 7} | more))


def test_a_completion_draws_sixteen_tokens_after_the_text(client, sampler, tokenizer):
    answer = complete(client)
    [expected] = drawn(sampler, tokenizer.encode("the thing"), max_tokens=16)
    assert answer.nexrl_train["response_tokens"] == list(expected.tokens)
    assert answer.choices[0].text == tokenizer.decode(expected.tokens, skip_special_tokens=True)
    assert (answer.object, answer.choices[0].finish_reason) == ("text_completion", "length")


def test_a_prompt_may_be_token_ids(client, tokenizer):
    as_text, as_ids = (complete(client, prompt=prompt) for prompt in ("the thing", tokenizer.encode("the thing")))
    assert_same(as_text.nexrl_train, as_ids.nexrl_train)


@pytest.mark.parametrize("kind", ["texts", "ids"])
def test_several_prompts_have_their_choices_in_order(kind, client, tokenizer):
    texts = ["the thing", "a"]
    prompts = texts if kind == "texts" else [tokenizer.encode(text) for text in texts]
    answer = complete(client, prompt=prompts, n=2, max_tokens=5, extra_body={"return_token_ids": True})
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for place, text in enumerate(texts):
        alone = complete(client, prompt=text, n=2, max_tokens=5)
        for own, choice in zip(alone.choices, answer.choices[2 * place : 2 * place + 2], strict=True):
            assert_same(choice.nexrl_train, own.nexrl_train)
            assert choice.prompt_token_ids == tokenizer.encode(text)
            assert choice.token_ids == own.nexrl_train["response_tokens"]
    assert answer.usage.prompt_tokens == sum(len(tokenizer.encode(text)) for text in texts)


def test_a_completions_logprobs_are_four_lists(client, tokenizer):
    answer = complete(client, logprobs=2, max_tokens=6, extra_body={"return_tokens_as_token_ids": True})
    told, drawn = answer.choices[0].logprobs, answer.nexrl_train
    assert told.tokens == [f"token_id:{token}" for token in drawn["response_tokens"]]
    assert told.token_logprobs == drawn["response_logprobs"]
    for top, token, logprob in zip(told.top_logprobs, told.tokens, told.token_logprobs, strict=True):
        assert top[token] == logprob
        assert len(top) in (2, 3)
    assert told.text_offset[0] == 0
    assert told.text_offset == sorted(told.text_offset)
