"""The sampler on a vLLM server that runs already."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from attached_servers import VllmServer, attach, serving, until_begun
from engines import DRAWN, ask, draw, tokens
from safetensors.numpy import load_file, save_file
from weaver_vllm.attached_server import attached, check_urls

from weaver.domain import AdapterRef, Inflight, ModelSource, PromptTargets, StopReason
from weaver.errors import CheckpointDamaged, InvalidInput
from weaver.sampler import SamplerFactory
from weaver.testing import check_sampler
from weaver.testing.reference import END_TOKEN, FAMILIES
from weaver.testing.samplers import CHECKS

pytestmark = pytest.mark.timeout(1800)
REFUSED = {"it_stops_where_it_should": "temperature is 3.0", "newer_weights_are_followed": "inflight"}
"""Checks of the contract that ask for what vLLM's HTTP interface cannot do."""


@pytest.fixture(scope="module")
def server(vllm_python, folder):
    with serving(VllmServer(folder)) as [started]:
        yield started


@pytest.fixture(scope="module")
def sampler(server):
    opened = attach(server)
    yield opened
    opened.close()


def off(result, request, reference):
    """How far logprobs of drawn tokens are from those of transformers and peft."""
    [sequence] = result.sequences
    expected = reference.drawn_logprobs(request.prompt_n, sequence.tokens, request.params)
    return np.abs(sequence.logprobs - expected).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_attached_sampler_keeps_the_contract(vllm_python, family):
    servers = []

    def opened(source):
        servers.append(VllmServer(source.location))
        return attach(servers[-1].wait())

    try:
        checks = CHECKS.keys() - REFUSED.keys()
        check_sampler(SamplerFactory("vllm", opened), families=[family], tolerance=1e-4, only=checks)
    finally:
        for started in servers:
            started.kill()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (ask(0, prompt_targets=PromptTargets((8, 1), np.arange(8), np.zeros(8, int), np.arange(8))), "target_prompt"),
        (ask(0, prompt_alternatives=2), "prompt_alt_tokens_k"),
        (ask(0, inflight=Inflight("a:train:0", 1, "a:sample:0")), "inflight: .* Save without inflight"),
        (ask(0, DRAWN, temperature=3.0), r"sampling_params.temperature is 3.0; .* 0 \(greedy\), or 0.01 to 2.0"),
        (ask(0, DRAWN, temperature=0.005), "sampling_params.temperature is 0.005"),
        (ask(0, DRAWN, max_tokens=250), "9 tokens and sampling_params.max_tokens 250 are more than the 256"),
        (ask(0, DRAWN, sampling_mask=True, top_p=0.9), "return_sampling_mask: the sampler 'vllm' does not tell"),
        (ask(0, DRAWN, min_tokens=2), r"sampling_params.min_tokens: .* keep the end tokens \[1\] back too"),
        (ask(0, DRAWN, min_tokens=2, stop_token_ids=(5,)), r"keep the end tokens \[1\] back too"),
        (ask(0, DRAWN, stop_strings=("a",)), "sampling_params.stop: .* tokenizer"),
        (ask(0, prompt_logprobs=True, prompt_temperature=0.7), r"loss_fn_config\['temperature'\] is 0.7"),
    ],
)  # fmt: skip
def test_what_vllm_cannot_do_over_http_is_refused_by_name(sampler, asked, named):
    with pytest.raises(InvalidInput, match=named):
        draw(sampler, asked)
    assert len(tokens(draw(sampler, ask(0))[0])[0]) == 12


def test_it_stops_at_the_tokens_given_at_the_models_own_or_at_none(sampler, references):
    likeliest = references[None].greedy(ask(4).prompt_n, 12)
    first = likeliest.index(likeliest[5]) + 1
    [result] = draw(sampler, ask(4, stop_token_ids=(likeliest[5],)))
    assert tokens(result) == [likeliest[:first]]
    assert result.sequences[0].stop_reason is StopReason.STOP
    own, none = draw(
        sampler,
        ask(4, DRAWN, max_tokens=100, temperature=2.0, samples=16, stop_token_ids=None),
        ask(4, DRAWN, max_tokens=100, temperature=2.0, samples=16),
    )
    ended = [each for each in own.sequences if each.stop_reason is StopReason.STOP]
    assert ended
    assert all(each.tokens.tolist().index(END_TOKEN) == len(each.tokens) - 1 for each in ended)
    assert all(len(each.tokens) == 100 for each in none.sequences)
    assert any(END_TOKEN in each.tokens[:-1] for each in none.sequences)


def test_stop_tokens_wait_for_min_tokens(sampler, references):
    """Half of the vocabulary stops, the model's own end too; the logprobs are of the other half."""
    stops = tuple(range(1, 128, 2))
    for temperature in (0.0, 1.0):
        request = ask(3, DRAWN, samples=4, temperature=temperature, min_tokens=6, stop_token_ids=stops)
        [result] = draw(sampler, request)
        for sequence in result.sequences:
            *before, last = sequence.tokens.tolist()
            assert len(before) >= 6
            assert not {*before} & {*stops}
            assert sequence.stop_reason is (StopReason.STOP if last % 2 else StopReason.LENGTH)
            expected = references[None].drawn_logprobs(request.prompt_n, sequence.tokens, request.params)
            assert np.abs(sequence.logprobs - expected).max() < 1e-4


def test_adapters_and_the_base_model_do_not_meet(sampler, adapters, references):
    """All slots of the engine get taken, and then a row without an adapter would get the last one's."""
    asked = [(name, ask(seed, adapter=adapters.get(name), max_tokens=20)) for seed in range(3) for name in references]
    results = draw(sampler, *(request for _, request in asked))
    for (name, request), result in zip(asked, results, strict=True):
        assert tokens(result) == [references[name].greedy(request.prompt_n, 20)], name
        assert off(result, request, references[name]) < 1e-4, name


def test_prompts_are_scored_with_an_adapted_output_layer_while_others_draw(server, sampler, adapters, references):
    """Two in one step would end the engine, and so would one beside a request that draws."""
    beside = [sampler.sample(ask(seed, DRAWN, max_tokens=30, samples=2)) for seed in range(2)]
    asked = [(name, ask(20, adapter=adapters.get(name), prompt_logprobs=True, length=40)) for name in references]
    for (name, request), result in zip(asked, draw(sampler, *(each for _, each in asked)), strict=True):
        logprobs_nV = references[name].logits(request.prompt_n).log_softmax(1).numpy()
        expected = logprobs_nV[:-1][np.arange(39), request.prompt_n[1:]]
        np.testing.assert_allclose(result.prompt_logprobs_n[1:], expected, atol=1e-4, err_msg=str(name))
    assert all(len(future.result(100).sequences) == 2 for future in beside)
    assert server.process.poll() is None


def test_a_prompt_is_scored_right_after_a_request_was_cancelled(server, sampler):
    """What was cancelled must have left the engine: the two would end it."""
    before = server.metric("vllm:generation_tokens_total")
    for seed in range(3):
        running = sampler.sample(ask(seed, DRAWN, max_tokens=240, samples=4))
        until_begun(running)
        scored = sampler.sample(ask(seed, prompt_logprobs=True))
        assert running.cancel()
        assert np.isfinite(scored.result(60).prompt_logprobs_n[1:]).all()
    assert server.metric("vllm:generation_tokens_total") - before < 1000, "what was cancelled goes on"
    assert server.process.poll() is None


def test_adapters_take_turns_in_too_few_slots(server, adapters, references):
    one_slot = attach(server, slots=1)
    try:
        asked = [(name, ask(seed, adapter=adapters[name])) for seed in range(3) for name in adapters]
        for (name, request), result in zip(asked, draw(one_slot, *(each for _, each in asked)), strict=True):
            assert tokens(result) == [references[name].greedy(request.prompt_n, 12)], name
        ours = [card["id"] for card in server.get("/v1/models").json()["data"] if card["id"].startswith("weaver-")]
        one_slot.forget("small")
        assert len([name for name in ours if name.startswith(ours[-1].rpartition("-")[0])]) == 1
    finally:
        one_slot.close()


def test_an_adapter_that_cannot_be_read_or_is_too_large_fails_by_name_and_the_engine_lives(sampler, adapters, tmp_path):
    with pytest.raises(CheckpointDamaged, match=r"the adapter gone cannot be read: .*/gone/adapter_config.json"):
        draw(sampler, ask(0, adapter=AdapterRef("gone", tmp_path / "gone")))
    for name, changes, said in (
        ("large", {"r": 64}, "has rank 64; the vLLM servers were started for 32: .* --max-lora-rank"),
        ("dora", {"use_dora": True}, "sets use_dora=True, which vLLM does not compute"),
    ):
        copy = shutil.copytree(adapters["small"].folder, tmp_path / name)
        config = json.loads((copy / "adapter_config.json").read_text())
        (copy / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(InvalidInput, match=said):
            draw(sampler, ask(0, adapter=AdapterRef(name, copy)))
    assert len(tokens(draw(sampler, ask(0))[0])[0]) == 12


def test_an_adapter_of_another_model_is_refused(sampler, adapters, tmp_path):
    """vLLM would copy what is smaller into a corner."""
    copy = shutil.copytree(adapters["small"].folder, tmp_path / "other")
    tensors = load_file(copy / "adapter_model.safetensors")
    smaller = {name: tensor[:, :8] if "lora_A" in name else tensor for name, tensor in tensors.items()}
    save_file({name: tensor.copy() for name, tensor in smaller.items()}, copy / "adapter_model.safetensors")
    with pytest.raises(InvalidInput, match=r"has shapes \[4, 8\] and .* whose sizes are \[\d+, \d+\]"):
        draw(sampler, ask(0, adapter=AdapterRef("other", copy)))


def test_an_adapter_that_only_the_server_cannot_read_is_told_with_what_to_do(sampler, adapters, tmp_path):
    """As on another machine, which sees other folders: here it stumbles over what weaver does not read."""
    copy = shutil.copytree(adapters["small"].folder, tmp_path / "hidden")
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": "much"}))
    with pytest.raises(
        InvalidInput, match=r"the adapter hidden in .* was not loaded: .* share weaver's data directory"
    ):
        draw(sampler, ask(0, adapter=AdapterRef("hidden", copy)))
    assert len(tokens(draw(sampler, ask(0))[0])[0]) == 12


def test_seeds_near_each_other_draw_nothing_alike(sampler):
    """vLLM counts seeds up from sample to sample."""
    one, other = draw(sampler, ask(0, DRAWN, samples=4), ask(0, replace(DRAWN, seed=8), samples=4))
    assert len({tuple(each) for each in tokens(one) + tokens(other)}) == 8
    assert tokens(draw(sampler, ask(0, DRAWN))[0]) == tokens(one)[:1]


def test_what_was_cached_is_told_whatever_the_number_of_samples(sampler):
    asked = [ask(99, DRAWN, samples=samples, length=200, max_tokens=2) for samples in (3, 1, 3)]
    assert [draw(sampler, request)[0].cached_prompt_tokens for request in asked] == [0, 128, 128]


def changed(info, section, **fields):
    config = info["vllm_config"]
    return info | {"vllm_config": config | {section: None if fields.get("none") else config[section] | fields}}


@pytest.mark.parametrize(
    ("section", "fields", "named"),
    [
        ("model_config", {"logprobs_mode": "raw_logprobs"}, "its logprobs are raw_logprobs.*--logprobs-mode processed"),
        ("model_config", {"generation_config": "auto"}, "--generation-config vllm"),
        ("model_config", {"logits_processors": ["mine"]}, "no --logits-processors"),
        ("model_config", {"model": "/other"}, "serves '/other', not .*--served-model-name 'tiny'"),
        ("lora_config", {"none": True}, "it serves no adapters. Start it with --enable-lora"),
        ("lora_config", {"target_modules": ["q_proj"]}, "leave out parts of adapters .*no --lora-target-modules"),
        ("parallel_config", {"_api_process_count": 2}, "--api-server-count 1"),
        ("device_config", {"device": None}, "in a form that weaver does not know"),
    ],
)  # fmt: skip
def test_a_server_that_was_started_otherwise_is_refused_by_name(server, section, fields, named):
    source = ModelSource("tiny", str(server.model))
    info, served = server.get("/server_info?config_format=json").json(), server.get("/v1/models").json()
    assert attached(server.url, info, served, source).facts.adapters == 3
    with pytest.raises(InvalidInput, match=named):
        attached(server.url, changed(info, section, **fields), served, source)


def test_servers_of_another_model_and_places_without_a_server_are_refused(server, tmp_path):
    with pytest.raises(InvalidInput, match=f"serves '{server.model}', not '{tmp_path}'"):
        attached(server.url, server.get("/server_info?config_format=json").json(), server.get("/v1/models").json(),
                 ModelSource("tiny", str(tmp_path)))  # fmt: skip
    with pytest.raises(InvalidInput, match="--vllm-url host:8000 is no address"):
        check_urls(["host:8000"])
    with pytest.raises(InvalidInput, match="--vllm-url http://a:1 is given twice"):
        check_urls(["http://a:1", "http://a:1/"])
