"""Tinker's JSON bodies: what is read, what it means, and what is refused by name."""

import pytest

from weaver.compat.tinker import convert, requests
from weaver.domain import AdamParams, LoraSpec, SaveForSampler, SaveState
from weaver.errors import InvalidInput


@pytest.mark.parametrize(
    ("stop", "ids", "strings"),
    [
        (None, None, ()),
        ([], (), ()),
        ([2, 5], (2, 5), ()),
        ("\n\nUser:", None, ("\n\nUser:",)),
        (["a", "b"], None, ("a", "b")),
    ],
)
def test_stop_means_what_renderers_expect(stop, ids, strings):
    params = requests.parse(requests.SamplingParams, {"stop": stop})
    assert convert.stop_conditions(params.stop) == (ids, strings)


@pytest.mark.parametrize("stop", [[1, "a"], [True], 5, [1.0], [[1]], {"a": 1}])
def test_other_stops_are_refused(stop):
    with pytest.raises(
        InvalidInput, match=r"^stop must be a string, a list of strings or a list of token ids, not mixed"
    ):
        requests.parse(requests.SamplingParams, {"stop": stop})


SAMPLE = {
    "sampling_session_id": "s:sample:0",
    "seq_id": 524800771000000000,
    "prompt": {"chunks": [{"tokens": [1, 2]}, {"type": "encoded_text", "tokens": [3]}]},
    "sampling_params": {"max_tokens": None, "seed": 2**63 + 5, "temperature": 1},
    "prompt_logprobs": None,
    "record_stability_info": False,
    "prompt_alt_tokens_k": 0,
    "type": "sample",
}


def test_a_sample_request_with_large_numbers_and_nulls_is_read():
    body = requests.parse(requests.Sample, SAMPLE)
    assert convert.prompt_tokens(body.prompt).tolist() == [1, 2, 3]
    assert body.sampling_params.max_tokens is None
    assert body.sampling_params.seed == 2**63 + 5
    assert body.num_samples == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"target_prompt_logprobs": {"data": [], "dtype": "float32"}}, "target_prompt_logprobs.dtype is 'float32'"),
        ({"base_model": "x"}, "base_model must be absent: this server samples through sampling_session_id only"),
        ({"model_path": "x"}, "model_path must be absent"),
        ({"min_p": 0.1}, "min_p is not a field this server reads here"),
        ({"seq_id": 2**63}, "seq_id: input should be less than 9223372036854775808"),
        ({"seq_id": True}, "seq_id: input should be a valid integer, not True"),
        ({"num_samples": "2"}, "num_samples: input should be a valid integer, not '2'"),
        ({"sampling_session_id": None}, "sampling_session_id is missing"),
        ({"sampling_params": {"min_p": 0.1}}, "sampling_params.min_p is not a field"),
        ({"sampling_params": {"stop": [1, "a"]}}, "sampling_params.stop must be a string"),
        (
            {"prompt": {"chunks": [{"type": "image", "data": ""}]}},
            r"prompt.chunks\[0\] is of type 'image': this server reads",
        ),
        (
            {"prompt": {"chunks": [{"tokens": [1, -1]}]}},
            r"prompt.chunks\[0\].tokens\[1\]: input should be greater than",
        ),
        ({"prompt": {"chunks": [{"tokens": [2**31]}]}}, r"prompt.chunks\[0\].tokens\[0\]: input should be less than"),
    ],
)
def test_a_field_of_a_sample_that_cannot_be_honoured_is_refused_by_name(change, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        requests.parse(requests.Sample, SAMPLE | change)


@pytest.mark.parametrize(
    ("model", "body", "sentence"),
    [
        (
            requests.OptimStep,
            {"model_id": "m", "seq_id": 1, "optimizer_params": {}},
            r"optimizer_params.type is missing",
        ),
        (requests.OptimStep, {"model_id": "m", "seq_id": 1}, "one of adam_params and optimizer_params must be given"),
        (
            requests.OptimStep,
            {"model_id": "m", "seq_id": 1, "optimizer_params": {"type": "adamw", "learning_rate": 0.1}},
            "optimizer_params.type is 'adamw': the parameters of 'adamw' are adam_params",
        ),
        (requests.OptimizerConfig, {"type": "dimuon", "version": 2}, "version is 2: there is a version 1 of 'dimuon'"),
        (requests.OptimizerConfig, {"type": "adamw", "version": 1}, "has a version, which only the optimizer 'dimuon'"),
        (requests.OptimStep, {"model_id": "m", "seq_id": 1, "adam_params": {"lr": 1}}, "adam_params.lr is not a field"),
        (
            requests.CreateModel,
            {
                "session_id": "s",
                "model_seq_id": 0,
                "base_model": "b",
                "optimizer_config": {"type": "sgd"},
            },
            "optimizer_config.type is 'sgd': this server trains with 'adamw' or 'dimuon'",
        ),
        (
            requests.CreateModel,
            {"session_id": "s", "model_seq_id": 0, "base_model": "b", "lora_config": {"rank": 8, "alpha": 2}},
            "lora_config.alpha is not a field this server reads here",
        ),
        (
            requests.SaveWeightsForSampler,
            {"model_id": "m", "seq_id": 1, "path": "p", "kind": "inflight"},
            "an inflight sampler changes, so it is not kept under a path",
        ),
        (requests.SaveWeightsForSampler, {"model_id": "m", "seq_id": 1}, "one of path and sampling_session_seq_id"),
        (
            requests.LoadWeights,
            {"model_id": "m", "seq_id": 1, "path": "p", "optimizer": True, "weights_access_token": "t"},
            "weights_access_token must be absent: this server has no access tokens",
        ),
    ],
)
def test_a_training_field_that_cannot_be_honoured_is_refused_by_name(model, body, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        requests.parse(model, body)


def test_sessions_ignore_fields_they_do_not_know():
    assert requests.parse(requests.CreateSession, {"new": 1, "user_metadata": None, "tags": ["a"]}).tags == ["a"]


def test_absent_training_fields_mean_tinkers_defaults():
    step = requests.parse(requests.OptimStep, {"model_id": "m", "seq_id": 1, "adam_params": {"learning_rate": 1}})
    assert convert.optim_step(step).params == AdamParams(learning_rate=1.0)
    assert convert.lora_spec(None) == LoraSpec()
    lora = requests.parse(requests.LoraConfig, {"rank": 8, "seed": None, "train_mlp": False})
    assert convert.lora_spec(lora) == LoraSpec(rank=8, train_mlp=False)


def test_saves_keep_every_field():
    raw = {"model_id": "m", "seq_id": 1, "path": "n", "ttl_seconds": 3600, "user_metadata": {"k": "v"}}
    save = requests.parse(requests.SaveWeights, raw | {"overwrite": True})
    assert convert.save_state(save) == SaveState("n", True, 3600, {"k": "v"})
    sampler = requests.parse(requests.SaveWeightsForSampler, raw | {"kind": "snapshot"})
    assert convert.save_for_sampler(sampler) == SaveForSampler("n", 3600, {"k": "v"})
