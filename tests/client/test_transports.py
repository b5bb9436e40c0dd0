"""Both ways lead to one service: what one client does, another sees; refusals are the same."""

import pickle

import pytest

import weaver
import weaver.compat.tinker as tinker

from .conftest import MODEL, datum, new_model

types = weaver.types
DATA = [datum([5, 9, 3, 7]), datum([11, 3, 3])]


def test_what_weavers_client_saves_tinkers_client_samples(service, where, monkeypatch):
    monkeypatch.setenv("TINKER_API_KEY", "tml-any")
    trainer = new_model(service)
    trainer.forward_backward(DATA, "cross_entropy")
    trainer.optim_step(types.AdamParams(learning_rate=1e-2))
    path = trainer.save_weights_for_sampler(name="shared")
    tokens = [5, 9, 3, 7]
    ours = service.create_sampling_client(model_path=path).compute_logprobs(prompt=types.ModelInput.from_ints(tokens))
    run, name = trainer.model_id.replace("-train-", ":train:"), path.rpartition("/")[2]
    other = (
        tinker.ServiceClient(**where)
        .create_sampling_client(model_path=f"tinker://{run}/sampler_weights/{name}")
        .result()
    )
    theirs = other.compute_logprobs(tinker.ModelInput.from_ints(tokens)).result()
    assert ours[1:] == pytest.approx(theirs[1:], abs=1e-6)


def test_what_tinkers_client_saves_weavers_client_loads(service, where, monkeypatch):
    monkeypatch.setenv("TINKER_API_KEY", "tml-any")
    other = tinker.ServiceClient(**where).create_lora_training_client(base_model=MODEL, rank=4, seed=3).result()
    data = [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints([5, 9, 3]),
            loss_fn_inputs={"target_tokens": [9, 3, 7], "weights": [1.0, 1.0, 1.0]},
        )
    ]
    other.forward_backward(data, "cross_entropy").result()
    other.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    other.save_state("theirs").result()
    expected = -sum(other.forward(data, "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist())
    trainer = new_model(service)
    model_id = other.model_id.replace(":train:", "-train-")
    trainer.load_state(f"weaver://{model_id}/checkpoints/theirs")
    found = trainer.forward([datum([5, 9, 3, 7])], "cross_entropy")["result"]["metrics"]["loss"]
    assert found == pytest.approx(expected, rel=1e-5)


REFUSALS = {
    "a loss there is not": lambda service, trainer: trainer.forward(DATA, "no_such_loss"),
    "a loss input too few": lambda service, trainer: trainer.forward_backward(DATA, "importance_sampling"),
    "a model there is not": lambda service, trainer: service.get_model("not-there"),
    "all weights": lambda service, trainer: service.create_model(base_model=MODEL, training_mode="full_ft"),
    "a tier there is not": lambda service, trainer: service.create_model(base_model=MODEL, performance_tier="flash"),
    "no rank": lambda service, trainer: service.create_model(base_model=MODEL, lora_config={"rank": 0}),
    "an unread field": lambda service, trainer: service.create_model(base_model=MODEL, lora_config={"rank": 4, "r": 1}),
    "a negative rate": lambda service, trainer: trainer.optim_step(types.AdamParams(learning_rate=-1.0)),
    "a checkpoint there is not": lambda service, trainer: trainer.load_state("weaver://a/checkpoints/b"),
    "datasets": lambda service, trainer: service.datasets.list(),
    "quotas": lambda service, trainer: service.get_quota_balance(),
    "a temperature of 0": lambda service, trainer: trainer.forward(DATA, "forward_logprob", {"temperature": 0.0}),
    "a token beyond the vocabulary": lambda service, trainer: trainer.forward([datum([5, 97])], "cross_entropy"),
    "masks on a shared disk": lambda service, trainer: service.create_sampling_client(base_model=MODEL).sample(
        prompt=types.ModelInput.from_ints([5]), return_sampling_mask=True, sampling_mask_transport="ref"
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_the_same_in_both_places(name, local, server):
    told = []
    for where in ({}, {"base_url": server}):
        with weaver.ServiceClient(**where) as service:
            trainer = new_model(service)
            with pytest.raises(weaver.WeaverAPIError) as caught:
                REFUSALS[name](service, trainer)
            error = caught.value
            assert error.request_id
            told.append((error.status_code, error.code, error.message, error.retryable))
            assert trainer.forward(DATA, "cross_entropy"), "and nothing has changed"
    assert told[0] == told[1]
    assert 400 <= told[0][0] < 500
    assert len(told[0][2]) > 10


def test_what_is_no_number_is_refused_by_name(trainer):
    with pytest.raises(weaver.WeaverAPIError, match=r"^\[400\] invalid_request: .*adam_params\.eps is (nan|null)"):
        trainer.optim_step(types.AdamParams(eps=float("nan")))


def test_a_server_with_keys_wants_one(serve):
    url, _ = serve(api_keys=["sk-right"])
    with weaver.ServiceClient(base_url=url, api_key="sk-right") as service:
        assert service.list_supported_models() == [MODEL]
    client = weaver.ServiceClient(base_url=url, api_key="sk-wrong")
    with pytest.raises(weaver.WeaverAPIError, match=r"^\[401\] unauthorized: ") as caught:
        client.connect()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), vars(again)) == (str(caught.value), vars(caught.value))
    client.close()


@pytest.mark.parametrize("compression", ["raw", "zstd"])
def test_packed_tensors_train_like_listed_ones(server, compression):
    found = []
    for transport in ("default", "http-binary"):
        with weaver.ServiceClient(
            base_url=server, tensor_transport=transport, tensor_compression=compression
        ) as service:
            assert (service.tensor_transport, service.tensor_compression) == (transport, compression)
            trainer = new_model(service)
            first = trainer.forward_backward(DATA, "cross_entropy")
            step = trainer.optim_step(types.AdamParams())
            found.append((first["result"], step["metrics"]["grad_norm"], trainer.forward(DATA, "cross_entropy")))
    assert found[0] == found[1]


def test_a_transport_there_is_not_is_refused_when_a_client_is_made(monkeypatch):
    with pytest.raises(ValueError, match=r"^Unsupported tensor transport 'pigeon'. Supported: default, http-binary$"):
        weaver.ServiceClient(tensor_transport="pigeon")
    monkeypatch.setenv("WEAVER_TENSOR_COMPRESSION", "none")
    with pytest.raises(ValueError, match=r"^Unsupported tensor compression 'none'. Supported: raw, zstd$"):
        weaver.ServiceClient()


def test_lists_tell_what_there_is(service, trainer):
    assert MODEL in service.list_supported_models()
    details = service.list_supported_models(detailed=True)
    assert all(isinstance(one, types.SupportedModel) for one in details)
    assert [one.name for one in details] == service.list_supported_models()
    assert service.get_supported_model_config("no/such") is None
    assert service.get_supported_model_config(MODEL)["name"] == MODEL
    assert service.get_training_run(trainer.training_run_id)["id"] == trainer.model_id
    assert trainer.model_id in {one["id"] for one in service.list_models(limit=100)["items"]}
    assert trainer.model_id in {one["id"] for one in service.list_training_runs(limit=100)["items"]}
    [organization] = service.list_organizations()
    [project] = service.list_projects()
    scope = service.resolve_scope(organization["id"], project["id"])
    assert (scope["organization"]["id"], scope["project"]["id"]) == (organization["id"], project["id"])
    assert service.get_scheduling_options()
    trainer.log_metrics({"reward": 0.5}, step=3, labels={"split": "train"})
    trainer.terminate(["trainer"])
    with pytest.raises(weaver.WeaverAPIError, match="not in memory"):
        trainer.forward(DATA, "cross_entropy")


def test_the_engine_is_paused_for_models_of_their_own_only(service, trainer):
    sampler = trainer.save_weights_and_get_sampling_client()
    with pytest.raises(ValueError, match=r"only supported for full fine-tuning models.*training_mode='lora'"):
        sampler.pause_generation()
    with pytest.raises(ValueError, match="invalid pause mode 'stop': expected one of abort, retract, in_place"):
        sampler.pause_generation(mode="stop")
    with (
        pytest.raises(ValueError, match="samples no model of its own"),
        service.create_sampling_client(base_model=MODEL).paused(),
    ):
        pass


def test_what_sampling_can_tell_it_tells(service, trainer):
    sampler = trainer.save_weights_and_get_sampling_client()
    prompt = types.ModelInput.from_ints([5, 9, 3])
    params = types.SamplingParams(max_tokens=4, seed=1)
    found = sampler.sample(
        prompt=prompt, sampling_params=params, num_samples=2, include_prompt_logprobs=True, return_old_logprob=True
    )
    assert len(found["sequences"]) == 2
    for one in found["sequences"]:
        assert one["old_logprobs"] == one["logprobs"]
        assert one["weight_version"] == sampler.model_path
    assert found["raw_result"]["prompt_logprobs"][1:] == pytest.approx(
        sampler.compute_logprobs(prompt=prompt)[1:], abs=1e-6
    )
    assert found["usage"]["prompt_tokens"] == 3
    head = types.ScoreCenteringConfig(head_size=5)
    centred = sampler.sample(prompt=prompt, sampling_params=types.SamplingParams(max_tokens=2, score_centering=head))[
        "sequences"
    ][0]
    assert len(centred["sampler_topk_ids"][0]) == 5
    handle = sampler.sample(prompt=prompt, sampling_params=params, wait=False)
    assert handle.result()["result"]["sequences"][0]["tokens"]
    hot = types.LogprobsParams(loss_fn_config={"temperature": 2.0})
    assert sampler.compute_logprobs(prompt=prompt, logprobs_params=hot) != sampler.compute_logprobs(prompt=prompt)
