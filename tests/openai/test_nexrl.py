"""What NexRL 1.4.0 with `backend: vllm` sends to an OpenAI endpoint, and how it reads the answers."""

import numpy as np
import pytest
import tinker

from .conftest import MODEL, QUESTION, lesson

END = "<|im_end|>"
WRITTEN = "Twenty threads"


@pytest.fixture(scope="module")
def taciturn(trainer, tokenizer):
    """The path of a snapshot that says nothing: its answers end with their first token."""
    tokens = tokenizer.encode(WRITTEN + END)
    weights = [0.0] * (len(tokens) - 2) + [1.0]
    silent = tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": weights})
    student = trainer.create_lora_training_client(MODEL, rank=8, seed=0).result()
    for _ in range(40):
        passed = student.forward_backward([lesson(tokenizer, [QUESTION], END), silent], "cross_entropy")
        student.optim_step(tinker.AdamParams(learning_rate=0.02))
        if passed.result().metrics["loss:sum"] < 1e-3:
            break
    return student.save_weights_for_sampler("taciturn").result().path


def chat(client, model, **more):
    """As `OpenAIInferenceServiceClient.generate` calls it."""
    return client.chat.completions.create(
        model=model, messages=[QUESTION], max_tokens=24, temperature=1.0, logprobs=True, **more
    )


CHAT = {
    "return_tokens_as_token_ids": True,
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
    "min_tokens": 2,
}


def complete(client, model, **more):
    """As `OpenAIInferenceServiceClient.completion` calls it: `logprobs` is true, which is no number."""
    return client.completions.create(model=model, prompt=WRITTEN, max_tokens=24, temperature=1.0, logprobs=True, **more)


TEXT = {
    "include_stop_str_in_output": True,
    "no_stop_trim": True,
    "min_tokens": 10,
    "skip_special_tokens": False,
    "return_tokens_as_token_ids": True,
}


def read_chat(answer):
    told = answer.choices[0].logprobs.content
    return [int(one.token.split(":")[1]) for one in told if one is not None], [float(one.logprob) for one in told]


def read_text(answer):
    told = answer.choices[0].logprobs
    tokens = [int(one.split(":")[1]) for one in told.tokens if one is not None]
    return tokens, [float(one) for one in told.token_logprobs if one is not None]


@pytest.mark.parametrize(
    ("ask", "extra", "read", "least"), [(chat, CHAT, read_chat, 2), (complete, TEXT, read_text, 10)]
)
def test_an_answer_has_at_least_the_tokens_nexrl_asks_for(ask, extra, read, least, client, taciturn, tokenizer):
    """From a model that would end at once; seeds, which NexRL sends none of, make it the same ones each time."""
    end = tokenizer.convert_tokens_to_ids(END)
    for seed in range(4):
        answer = ask(client, taciturn, seed=seed, extra_body=dict(extra))
        tokens, logprobs = read(answer)
        assert len(tokens) == len(logprobs) > least
        assert end not in tokens[:least]
        assert tokens == answer.nexrl_train["response_tokens"]
        assert logprobs == pytest.approx(answer.nexrl_train["response_logprobs"])
        assert np.isfinite(logprobs).all()
        assert (tokens[-1] == end) is (answer.choices[0].finish_reason == "stop")
        if ask is complete:
            assert answer.choices[0].text == tokenizer.decode(tokens, skip_special_tokens=False)
        free = ask(client, taciturn, seed=seed, extra_body={**extra, "min_tokens": 0})
        assert read(free)[0] == [end]
        assert read(free)[1] == pytest.approx([0.0], abs=0.1)


def test_the_logprobs_are_of_what_is_left(client, trainer, taciturn, tokenizer):
    """The first token's, against Tinker's SDK: its own logprob, renormalised without the end token's."""
    end = tokenizer.convert_tokens_to_ids(END)
    tokens, logprobs = read_text(complete(client, taciturn, seed=3, extra_body=TEXT))
    prompt = tokenizer.encode(WRITTEN)
    scorer = trainer.create_sampling_client(model_path=taciturn).result()
    first, ended = (
        scorer.compute_logprobs(tinker.ModelInput.from_ints([*prompt, last])).result()[-1] for last in (tokens[0], end)
    )
    assert logprobs[0] == pytest.approx(first - np.log1p(-np.exp(ended)), abs=0.05)
    assert logprobs[0] - first > 1


def test_what_ends_nothing_is_not_kept_back(client, taciturn, tokenizer):
    """`ignore_eos` takes the model's end token from what stops; so it may come from the beginning."""
    end = tokenizer.convert_tokens_to_ids(END)
    extra = {**CHAT, "ignore_eos": True, "min_tokens": 4}
    tokens, _ = read_chat(chat(client, taciturn, seed=1, extra_body=extra))
    assert tokens[0] == end
    assert len(tokens) == 24
    tokens, _ = read_chat(chat(client, taciturn, seed=1, extra_body={**extra, "stop_token_ids": [end]}))
    assert end not in tokens[:4]


def test_a_stop_string_among_the_first_tokens_is_text(client, tokenizer):
    """A character that comes early and comes again: it ends the text the second time, at once and in a stream."""
    extra = {"min_tokens": 8, "return_token_ids": True}
    told = {"model": MODEL, "prompt": WRITTEN, "max_tokens": 60, "seed": 1}
    [free] = client.completions.create(**told, extra_body=extra).choices
    text = tokenizer.decode(free.token_ids, clean_up_tokenization_spaces=False)
    completed = len(tokenizer.decode(free.token_ids[:8], clean_up_tokenization_spaces=False).rstrip("\ufffd"))
    early = next(letter for letter in text[:completed] if letter.isascii() and letter in text[completed:])
    for stream in (False, True):
        answer = client.completions.create(**told, extra_body=extra, stop=[early], stream=stream)
        found = "".join(one.choices[0].text for one in answer if one.choices) if stream else answer.choices[0].text
        assert found == text[: text.index(early, completed)]
        assert early in found
