"""vLLM's own faults with adapters, each of which would show here: see the patches in `engine_side`."""

import json
import shutil
import threading

import numpy as np
import pytest
from engines import GREEDY, SECONDS, ask, draw, open_engine, tokens, write_adapter

from weaver.domain import AdapterRef, Inflight
from weaver.errors import CheckpointDamaged, InvalidInput

pytestmark = pytest.mark.timeout(900)


def check(result, request, reference):
    """Tokens as peft's, and all logprobs within 1e-4."""
    assert tokens(result) == [reference.greedy(request.prompt_n, request.params.max_tokens)]
    [sequence] = result.sequences
    expected = reference.drawn_logprobs(request.prompt_n, sequence.tokens, request.params)
    assert np.abs(sequence.logprobs - expected).max() < 1e-4
    if result.prompt_logprobs_n is not None:
        of_prompt_nV = reference.logits(request.prompt_n).log_softmax(1).numpy()[:-1]
        found = of_prompt_nV[np.arange(len(of_prompt_nV)), request.prompt_n[1:]]
        assert np.abs(result.prompt_logprobs_n[1:] - found).max() < 1e-4


def test_rows_without_an_adapter_get_none_also_when_every_slot_is_taken(vllm_python, folder, adapters, references):
    """Fault 1: on CPUs they got the last slot's."""
    two = open_engine(folder, max_loras=2)
    names = ["small", "whole", None]
    requests = [ask(1, adapter=adapters.get(name)) for name in names]
    for name, request, result in zip(names, requests, draw(two, *requests), strict=True):
        check(result, request, references[name])
    two.close()


def test_newer_weights_do_not_meet_the_columns_of_older_ones(sampler, adapters, references):
    """Fault 2: the prefix cache knew an adapter by its name, whatever had taken its place."""
    first, second = (Inflight("run:1", version, "session:1") for version in (1, 2))
    old = ask(2, length=150, adapter=adapters["small"], inflight=first)
    new = ask(2, length=150, adapter=adapters["whole"], inflight=second)
    check(draw(sampler, old)[0], old, references["small"])
    again = draw(sampler, old)[0]
    assert again.cached_prompt_tokens == 128
    sampler.publish("run:1", 2, adapters["whole"])
    found = draw(sampler, new)[0]
    check(found, new, references["whole"])
    assert found.cached_prompt_tokens == 0
    snapshot = ask(2, length=150, adapter=adapters["small"])
    check(draw(sampler, snapshot)[0], snapshot, references["small"])


def test_prompts_are_scored_with_the_output_layer_of_their_own_adapter(sampler, adapters, references):
    """Fault 3: two at once ended the engine on CPUs, and lost the output layer's adapter on GPUs."""
    names = ["whole", "head", None, "small", "whole"]
    requests = [
        ask(seed, length=9 + 30 * seed, adapter=adapters.get(name), prompt_logprobs=True)
        for seed, name in enumerate(names)
    ]
    for name, request, result in zip(names, requests, draw(sampler, *requests), strict=True):
        check(result, request, references[name])


def test_an_adapter_that_vllm_cannot_load_fails_alone(sampler, adapters, references, tmp_path):
    """Fault 5: first met in a running batch, it ended the engine."""
    broken = shutil.copytree(adapters["small"].folder, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    process, running = sampler.pid, sampler.sample(ask(3, max_tokens=60))
    with pytest.raises(CheckpointDamaged, match=f"{broken}.*adapter_model.safetensors"):
        draw(sampler, ask(3, adapter=AdapterRef("broken", broken)))
    odd = shutil.copytree(adapters["small"].folder, tmp_path / "odd")
    config = json.loads((odd / "adapter_config.json").read_text())
    del config["lora_alpha"]
    (odd / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match=f"{odd}: vLLM does not load it: Missing required .*lora_alpha"):
        draw(sampler, ask(3, adapter=AdapterRef("odd", odd)))
    assert tokens(running.result(SECONDS)) == [references[None].greedy(ask(3).prompt_n, 60)]
    assert sampler.pid == process


def test_weights_that_changed_in_place_are_not_read_again_at_every_step(sampler, adapters, references, tmp_path):
    """Fault 6: while `load_inplace` stayed on the requests, the folder was read for each token."""
    gone = {name: shutil.copytree(adapters[name].folder, tmp_path / name) for name in ("small", "whole")}
    follows = Inflight("run:6", 1, "session:6")
    draw(sampler, ask(4, adapter=AdapterRef("small", gone["small"]), inflight=follows))
    sampler.publish("run:6", 2, AdapterRef("whole", gone["whole"]))
    newer = ask(4, adapter=AdapterRef("whole", gone["whole"]), inflight=Inflight("run:6", 2, "session:6"))
    check(draw(sampler, newer)[0], newer, references["whole"])
    for folder in gone.values():
        shutil.rmtree(folder)
    check(draw(sampler, newer)[0], newer, references["whole"])


def test_an_adapter_costs_little_beside_the_base_model(sampler, adapters):
    """Fault 7: on CPUs each token gathered a copy of the padded weights, some fifteen times slower than none."""
    long = {"params": GREEDY, "max_tokens": 60, "samples": 16}
    seconds = {}
    for name in (None, "whole", None, "whole"):
        seconds[name] = _seconds(sampler, ask(5, adapter=adapters.get(name), **long))
    assert seconds["whole"] < 5 * seconds[None]


def _seconds(sampler, request):
    """Of the engine's processor time."""
    stat = f"/proc/{sampler.pid}/stat"
    before = _ticks(stat)
    draw(sampler, request)
    return (_ticks(stat) - before) / 100


def _ticks(stat):
    with open(stat) as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "sets modules_to_save=\\['embed_tokens'\\], which the sampler 'vllm'"),
        ({"use_dora": True}, "sets use_dora=True, which the sampler 'vllm' does not compute"),
        ({"target_parameters": ["experts"]}, "sets target_parameters="),
        ({"r": 1024}, "has rank 1024; the sampler 'vllm' takes at most 512"),
    ],
)
def test_what_would_be_left_out_is_refused_by_name(sampler, adapters, tmp_path, changes, said):
    folder = shutil.copytree(adapters["small"].folder, tmp_path / "changed")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InvalidInput, match=said):
        draw(sampler, ask(6, adapter=AdapterRef(f"changed {said}", folder)))


def test_an_adapter_of_the_embeddings_is_refused(sampler, folder, tmp_path):
    adapter = write_adapter(folder, tmp_path / "embeddings", 4, ["q_proj", "embed_tokens"])
    with pytest.raises(InvalidInput, match=r"embed_tokens.*is no LoRA weight of a linear layer"):
        draw(sampler, ask(6, adapter=adapter))


def test_an_adapter_of_another_model_is_refused(sampler, tmp_path):
    """vLLM would copy what is smaller into a corner."""
    from safetensors.numpy import load_file, save_file

    from weaver.testing import reference

    model = reference.write_model("llama", tmp_path / "other")
    adapter = write_adapter(model, tmp_path / "cut", 4, ["q_proj"])
    file = adapter.folder / "adapter_model.safetensors"
    save_file(
        {name: np.ascontiguousarray(one[:, :16] if "lora_A" in name else one) for name, one in load_file(file).items()},
        file,
    )
    with pytest.raises(
        InvalidInput, match=r"weights of shapes \[4, 16\] and \[128, 4\] for .*q_proj', whose sizes are"
    ):
        draw(sampler, ask(6, adapter=adapter))


def test_more_adapters_than_slots_take_turns(vllm_python, folder, adapters, references):
    """The least recently used goes, and comes back by itself; those who wait are told why."""
    heard, waits = threading.Event(), []

    def listen(process, message):
        if message is not None and message["is"] == "obstacle" and message["text"]:
            waits.append(message["text"])
            heard.set()

    one = open_engine(folder, listen, max_loras=1)
    names = ["small", "whole", None, "head", "small"]
    requests = [ask(7, adapter=adapters.get(name), max_tokens=40) for name in names]
    for name, request, result in zip(names, requests, draw(one, *requests), strict=True):
        check(result, request, references[name])
    assert set(waits) == {"1 adapters are in use, as many as go at once"}
    one.close()
