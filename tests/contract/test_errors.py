"""What is wrong is told by the same exception class, whichever way it was asked for."""

import numpy as np
import pytest
import torch

MODEL = "tiny/llama"


def test_a_loss_that_is_not_there_is_a_bad_request(way, trainer):
    with pytest.raises(way.tinker.BadRequestError, match="nonsense"):
        trainer.forward_backward([way.datum(5)], "nonsense").result()


def test_arrays_of_the_wrong_shape_are_a_bad_request(way, trainer):
    datum = way.tinker.Datum(way.prompt(2, 3, 4), {"target_tokens": [3, 4], "weights": [1.0, 1.0, 1.0]})
    with pytest.raises(way.tinker.BadRequestError, match=r"data\[0\]"):
        trainer.forward_backward([datum], "cross_entropy").result()


@pytest.mark.parametrize(
    ("tokens", "what"), [(range(2, 90), "max sequence length|context"), ([96, 97], "token ids"), ([], "empty")]
)
def test_inputs_that_the_model_cannot_read_are_a_bad_request(way, trainer, tokens, what):
    tokens = list(tokens) * (4 if len(tokens) > 50 else 1)
    datum = way.tinker.Datum(way.prompt(*tokens), {"target_tokens": [2] * len(tokens), "weights": [1.0] * len(tokens)})
    with pytest.raises(way.tinker.BadRequestError, match=what):
        trainer.forward_backward([datum], "cross_entropy").result()


def test_an_image_is_a_bad_request(way, trainer):
    chunk = way.tinker.types.ImageChunk(data=b"png", format="png", expected_tokens=1)
    datum = way.tinker.Datum(way.tinker.ModelInput(chunks=[chunk]), {"target_tokens": [2], "weights": [1.0]})
    with pytest.raises(way.tinker.BadRequestError, match="encoded_text only"):
        trainer.forward_backward([datum], "cross_entropy").result()


def test_what_only_a_sampler_could_find_is_refused_by_the_future(way, trainer):
    pointer = way.tinker.types.ImageAssetPointerChunk(format="png", location="x", expected_tokens=1)
    datum = way.tinker.Datum(way.tinker.ModelInput(chunks=[pointer]), {"target_tokens": [2], "weights": [1.0]})
    future = trainer.forward_backward([datum], "cross_entropy")
    with pytest.raises(ValueError):
        future.result()


def test_a_refused_operation_leaves_the_next_ones_alone(way, trainer):
    bad = trainer.forward_backward([way.datum(5)], "nonsense")
    step = trainer.optim_step(way.tinker.AdamParams(learning_rate=float("nan")))
    good = trainer.forward_backward([way.datum(5)], "cross_entropy")
    assert good.result(timeout=60).metrics["loss:sum"] != 0
    for future in (bad, step):
        with pytest.raises(way.tinker.BadRequestError):
            future.result()


def test_no_data_is_told_at_once(way, trainer):
    for call in (trainer.forward, trainer.forward_backward):
        with pytest.raises(ValueError, match="No data provided"):
            call([], "cross_entropy")
    with pytest.raises(ValueError, match="No data provided"):
        trainer.forward_backward_custom([], lambda data, logprobs: (torch.zeros(()), {}))


def test_optim_step_takes_its_parameters_and_nothing_else(way, trainer):
    params = way.tinker.AdamParams()
    with pytest.raises(TypeError):
        trainer.optim_step()
    with pytest.raises(TypeError):
        trainer.optim_step({"learning_rate": 1e-4})
    with pytest.raises(ValueError):
        trainer.optim_step(params, adam_params=params)
    with pytest.raises(way.tinker.BadRequestError, match="optimizer"):
        trainer.optim_step(way.tinker.types.DimuonParams(learning_rate=0.1)).result()


def test_a_model_that_is_not_there_is_a_bad_request(way, client):
    with pytest.raises(way.tinker.BadRequestError, match="no/such-model"):
        client.create_lora_training_client("no/such-model").result()
    with pytest.raises(way.tinker.BadRequestError, match="no/such-model"):
        client.create_sampling_client(base_model="no/such-model").result()


def test_settings_that_cannot_be_are_a_bad_request(way, client):
    with pytest.raises(way.tinker.BadRequestError, match="rank"):
        client.create_lora_training_client(MODEL, rank=0).result()
    with pytest.raises(AssertionError):
        client.create_lora_training_client(MODEL, train_mlp=False, train_attn=False, train_unembed=False)


def test_paths_that_are_not_there_are_not_found(way, client):
    for path in ("tinker://nobody:train:0/weights/a", "tinker://nobody:train:0/sampler_weights/a"):
        rest = way.rest()
        with pytest.raises(way.tinker.NotFoundError):
            rest.delete_checkpoint_from_tinker_path(path).result()
        with pytest.raises(way.tinker.NotFoundError):
            rest.get_weights_info_by_tinker_path(path).result()
    with pytest.raises(way.tinker.NotFoundError):
        client.create_training_client_from_state("tinker://nobody:train:0/weights/a").result()
    with pytest.raises(way.tinker.NotFoundError):
        client.create_sampling_client("tinker://nobody:train:0/sampler_weights/a").result()
    with pytest.raises(way.tinker.NotFoundError):
        way.rest().get_training_run("nobody:train:0").result()


def test_what_is_no_path_is_told_at_once(way, client):
    with pytest.raises(ValueError, match="Either model_path or base_model"):
        client.create_sampling_client()
    with pytest.raises(ValueError):
        way.rest().delete_checkpoint_from_tinker_path("weights/a")
    with pytest.raises(ValueError):
        way.rest().get_external_weights_urls("tinker://a:train:0/weights/a")


def test_a_name_that_is_taken_fails_the_operation(way, trainer):
    trainer.save_state("taken").result()
    with pytest.raises(way.tinker.RequestFailedError, match="exists") as caught:
        trainer.save_state("taken").result()
    assert caught.value.category == way.tinker.types.RequestErrorCategory.User
    assert caught.value.request_id
    trainer.save_state("taken", overwrite=True).result()
    with pytest.raises(way.tinker.BadRequestError, match="name"):
        trainer.save_state("a/b").result()
    with pytest.raises(way.tinker.BadRequestError, match="ttl_seconds"):
        trainer.save_weights_for_sampler("short", ttl_seconds=5).result()


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"max_tokens": 300}, "context window"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2, "temperature": -1.0}, "temperature"),
        ({"max_tokens": 2, "top_p": 2.0}, "top_p"),
        ({"max_tokens": 2, "stop": [97]}, "stop"),
    ],
)
def test_sampling_what_cannot_be_is_a_bad_request(way, client, fields, what):
    sampler = client.create_sampling_client(base_model=MODEL).result()
    with pytest.raises(way.tinker.BadRequestError, match=what):
        sampler.sample(way.prompt(2, 3), 1, way.tinker.SamplingParams(**fields)).result()


def test_a_temperature_that_is_no_number_is_refused(our_way):
    """The vendor's SDK fails to write it down."""
    sampler = our_way.client().create_sampling_client(base_model=MODEL).result()
    with pytest.raises(our_way.tinker.BadRequestError, match="temperature"):
        sampler.sample(
            our_way.prompt(2), 1, our_way.tinker.SamplingParams(max_tokens=2, temperature=float("nan"))
        ).result()


def test_questions_about_prompts_are_checked_at_once(way, client):
    sampler = client.create_sampling_client(base_model=MODEL).result()
    prompt, params, tensor = way.prompt(2, 3), way.tinker.SamplingParams(max_tokens=1), way.tinker.TensorData
    for wrong in (
        {"prompt_alt_tokens_k": -1},
        {"prompt_logprobs_last_n": 1},
        {"prompt_logprobs_last_n": 0, "include_prompt_logprobs": True},
        {"target_prompt_logprobs": tensor.from_numpy(np.ones((1, 1), np.float32))},
        {"target_prompt_logprobs": tensor.from_numpy(np.ones(1, np.int64))},
    ):
        with pytest.raises(ValueError):
            sampler.sample(prompt, 1, params, **wrong)


def test_a_loss_that_cannot_be_traced_is_told_at_once(way, client):
    for loss in (
        lambda logprobs: (logprobs.sum().item(), {}),
        lambda logprobs: logprobs.sum(),
        lambda logprobs: (logprobs.sum(), {"best": logprobs.max()}),
        lambda logprobs: (logprobs.sum() if logprobs.sum() > 0 else logprobs.max(), {}),
        lambda logprobs: (torch.nn.Linear(1, 1)(logprobs).sum(), {}),
    ):
        with pytest.raises(ValueError, match="create_custom_loss"):
            client.create_custom_loss(loss, {"logprobs": 1})
    with pytest.raises(ValueError, match="input_ranks"):
        client.create_custom_loss(lambda logprobs: (logprobs.sum(), {}), {"logprobs": 1, "weights": 1})


def test_a_traced_loss_wants_its_inputs_and_its_session(way, client, trainer):
    handle = client.create_custom_loss(
        lambda logprobs, scale: ((logprobs * scale).sum(), {}), {"logprobs": 1, "scale": 1}
    )
    handle = handle.result()
    with pytest.raises(ValueError, match="scale"):
        trainer.forward_backward_custom([way.datum(5)], handle)
    other = way.client().create_lora_training_client(MODEL, rank=2).result()
    with pytest.raises(ValueError, match="session"):
        other.forward_backward_custom([way.datum(5, scale=(0, 1))], handle)


def test_a_custom_loss_that_fails_poisons_its_client(way, trainer):
    def broken(data, logprobs):
        raise ZeroDivisionError("mine")

    failing = trainer.forward_backward_custom([way.datum(5)], broken)
    after = trainer.optim_step(way.tinker.AdamParams())
    with pytest.raises(ZeroDivisionError, match="mine"):
        failing.result(timeout=60)
    for future in (after, trainer.optim_step(way.tinker.AdamParams())):
        with pytest.raises(RuntimeError, match="poisoned"):
            future.result(timeout=60)


def test_a_closed_client_takes_nothing(our_way):
    client = our_way.client()
    trainer = client.create_lora_training_client(MODEL, rank=2).result()
    sampler = trainer.save_weights_and_get_sampling_client().result()
    client.close("success", "done").result(timeout=60)
    client.close("errored").result(timeout=60)
    for call in (lambda: client.create_lora_training_client(MODEL), client.__enter__, lambda: client.holder):
        with pytest.raises(RuntimeError, match="ServiceClient is closed"):
            call()
    with pytest.raises(RuntimeError, match="closed"):
        trainer.optim_step(our_way.tinker.AdamParams()).result(timeout=60)
    with pytest.raises(RuntimeError, match="closed"):
        sampler.compute_logprobs(our_way.prompt(2, 3)).result(timeout=60)


def test_errors_survive_a_trip_through_pickle(our_way, trainer_of):
    import pickle

    with pytest.raises(our_way.tinker.BadRequestError) as caught:
        trainer_of(our_way).forward_backward([our_way.datum(5)], "nonsense").result()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.status_code, str(again)) == (type(caught.value), 400, str(caught.value))
    assert again.response.json() == again.body


@pytest.fixture
def trainer_of():
    return lambda way: way.client().create_lora_training_client(MODEL, rank=2).result()
