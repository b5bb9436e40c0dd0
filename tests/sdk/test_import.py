"""Training that starts from a folder which peft wrote, through the vendor's SDK, against transformers + peft."""

import json
import os

import httpx
import numpy as np
import pytest
import tinker
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

LLAMA, QWEN = "tiny/llama", "tiny/qwen3"
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEP = tinker.AdamParams(learning_rate=0.01)


@pytest.fixture(scope="module")
def allowed(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def server(server_class, folders, allowed, tmp_path_factory):
    running = server_class(folders, tmp_path_factory.mktemp("data"), import_dirs=(allowed,))
    yield running
    running.stop()


@pytest.fixture
def adapter(folders, allowed, request):
    """A maker of folders by peft itself, whose B is not zero."""

    def make(base_model=LLAMA, name="adapter", into=None, dtype=torch.float32, save=None, **settings):
        torch.manual_seed(3)
        base = AutoModelForCausalLM.from_pretrained(folders[base_model], dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.1)
        folder = (into or allowed) / f"{request.node.name.replace('/', '-')}-{name}"
        model.to(dtype).save_pretrained(folder, **(save or {}))
        return folder

    return make


def start(service_client, folder, **options):
    return service_client.create_training_client_from_state(f"file:{folder}", **options).result()


def refusal(service_client, path, **options):
    with pytest.raises((tinker.APIStatusError, tinker.RequestFailedError)) as refused:
        service_client.create_training_client_from_state(str(path), **options).result()
    return str(refused.value)


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(config))
    return folder


CASES = {
    "all linear layers": (LLAMA, {"r": 4, "lora_alpha": 7, "target_modules": EVERY}),
    "peft's usual two": (QWEN, {"r": 3, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}),
    "full names": (QWEN, {"r": 2, "lora_alpha": 32, "target_modules": ["self_attn.o_proj", "mlp.up_proj"]}),
    "an output layer of its own": (LLAMA, {"r": 8, "lora_alpha": 2, "target_modules": ["q_proj", "lm_head"]}),
    "a tied output layer": (QWEN, {"r": 5, "lora_alpha": 64, "target_modules": ["down_proj", "lm_head"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_training_starts_from_the_function_that_the_folder_describes(
    server, service_client, folders, adapter, reference_of, measured, data, assert_same_gradients, case
):
    base_model, settings = CASES[case]
    folder, batch = adapter(base_model, **settings), data.supervised(13, 40, 2)
    client = start(service_client, folder)
    info = httpx.post(f"{server.url}/api/v1/get_info", json={"model_id": client.model_id}).json()
    config = info["lora_config"]
    assert (info["model_name"], config["rank"], config["alpha"]) == (base_model, settings["r"], settings["lora_alpha"])
    assert config["only_modules"] == sorted(name.rpartition(".")[2] for name in settings["target_modules"])

    expected = reference_of(folders[base_model], folder, settings["lora_alpha"])
    _, logprobs, gradients = expected.loss_and_gradients(batch, lambda lp, given: -(lp * given["weights"]).sum())
    output = client.forward_backward(batch, "cross_entropy").result()
    for found, wanted in zip(output.loss_fn_outputs, logprobs, strict=True):
        np.testing.assert_allclose(found["logprobs"].to_numpy(), wanted, atol=1e-5)
    assert_same_gradients(measured(client), gradients)


def test_what_is_saved_later_keeps_alpha_and_modules(server, service_client, folders, adapter, reference_of, data):
    client = start(service_client, adapter(QWEN, r=4, lora_alpha=11, target_modules=["k_proj", "down_proj"]))
    batch = data.supervised(9, 17)
    client.forward_backward(batch, "cross_entropy").result()
    client.optim_step(STEP).result()
    path = client.save_state("later").result().path
    found = client.forward(batch, "cross_entropy").result()
    resumed = service_client.create_training_client_from_state_with_optimizer(path).result()
    again = resumed.forward(batch, "cross_entropy").result()
    expected = reference_of(folders[QWEN], server.folder(path), 11)
    for datum, one, two in zip(batch, found.loss_fn_outputs, again.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(one["logprobs"].to_numpy(), expected.logprobs(datum).detach().numpy(), atol=1e-5)
        np.testing.assert_array_equal(one["logprobs"].to_numpy(), two["logprobs"].to_numpy())
    sampler = client.save_weights_for_sampler("sampler").result().path
    tokens = batch[0].model_input
    scored = service_client.create_sampling_client(model_path=sampler).result().compute_logprobs(tokens).result()
    logits = expected.model(input_ids=torch.tensor([tokens.to_ints()])).logits[0].log_softmax(-1)
    wanted = logits[:-1].gather(1, torch.tensor(tokens.to_ints())[1:, None])[:, 0].detach().numpy()
    np.testing.assert_allclose(scored[1:], wanted, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_widened_and_nothing_else(server, service_client, adapter, dtype):
    folder = adapter(QWEN, r=4, lora_alpha=32, target_modules=EVERY, dtype=dtype)
    written = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {dtype}
    found = server.tensors(start(service_client, folder).save_state("wide").result().path)
    assert found.keys() == written.keys()
    for name, tensor in written.items():
        np.testing.assert_array_equal(found[name], tensor.float().numpy())


def test_an_output_layer_written_along_must_be_the_base_models(service_client, adapter):
    folder = adapter(LLAMA, r=2, lora_alpha=4, target_modules=["lm_head"], save={"save_embedding_layers": True})
    tensors = load_file(folder / "adapter_model.safetensors")
    [beside] = [name for name in tensors if "lora_" not in name]
    start(service_client, folder)
    tensors[beside][3, 4] += 0.01
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    assert "neither LoRA nor the base model's own weight" in refusal(service_client, f"file:{folder}")


REFUSED = {
    "peft_type": ("IA3", "peft_type='IA3'"),
    "task_type": ("SEQ_CLS", "task_type='SEQ_CLS'"),
    "use_dora": (True, "use_dora=True, which cannot be trained here"),
    "use_rslora": (True, "the same numbers without it: use_rslora=false and lora_alpha=24.0"),
    "lora_dropout": (0.1, "lora_dropout=0.1; training here drops nothing out"),
    "bias": ("lora_only", "bias='lora_only'"),
    "modules_to_save": (["embed_tokens"], r"modules_to_save=['embed_tokens']"),
    "rank_pattern": ({"q_proj": 2}, "rank_pattern="),
    "alpha_pattern": ({"q_proj": 2}, "alpha_pattern="),
    "layers_to_transform": ([0], "layers_to_transform=[0]"),
    "init_lora_weights": ("pissa", "init_lora_weights='pissa'"),
    "fan_in_fan_out": (True, "fan_in_fan_out=True"),
    "from_the_future": ({"x": 1}, "from_the_future="),
    "r": (5, "sets r=5"),
    "lora_alpha": (None, "lora_alpha=None; it must be a number"),
    "target_modules": (["q_proj"], "weights for 'model.layers.0.self_attn.v_proj', which is not in target_modules"),
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_would_be_computed_otherwise_is_refused_by_name(service_client, adapter, field):
    value, message = REFUSED[field]
    folder = edit(adapter(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"]), **{field: value})
    assert message in refusal(service_client, f"file:{folder}")


def test_modules_that_are_named_but_not_there_are_refused(service_client, adapter):
    folder = edit(adapter(r=4, target_modules=["q_proj"]), target_modules=["q_proj", "v_proj"])
    assert "has no weights for 'v_proj', which is in target_modules" in refusal(service_client, f"file:{folder}")
    folder = edit(adapter(r=4, target_modules=["q_proj"]), target_modules="all-linear")
    assert "must be a list of modules' names" in refusal(service_client, f"file:{folder}")


def test_an_adapter_of_some_layers_or_of_embeddings_is_refused(service_client, adapter):
    folder = adapter(r=4, target_modules=["model.layers.0.self_attn.q_proj"])
    assert "lacks tensor 'base_model.model.model.layers.1.self_attn.q_proj" in refusal(service_client, f"file:{folder}")
    folder = adapter(name="embeddings", r=4, target_modules=["q_proj", "embed_tokens"])
    assert "lora_embedding_A', which cannot be trained here" in refusal(service_client, f"file:{folder}")


def test_an_adapter_of_another_model_is_refused_by_shape_or_module(service_client, adapter):
    folder = adapter(QWEN, r=4, target_modules=["q_proj"])
    edit(folder, base_model_name_or_path="elsewhere/model")
    assert "this model's has" in refusal(service_client, f"file:{folder}", base_model=LLAMA)
    for file in folder.glob("*.safetensors"):
        tensors = {name.replace("q_proj", "query"): tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file)
    edit(folder, target_modules=["query"])
    assert "'query' is no linear layer of 'tiny/llama'" in refusal(service_client, f"file:{folder}", base_model=LLAMA)


def test_pickles_damaged_and_missing_files_are_refused(service_client, adapter, allowed):
    folder = adapter(r=4, target_modules=["q_proj"])
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-5])
    assert "adapter_model.safetensors cannot be read" in refusal(service_client, f"file:{folder}")
    weights.rename(folder / "adapter_model.bin")
    assert "adapter_model.bin, which runs code when it is read" in refusal(service_client, f"file:{folder}")
    (folder / "adapter_config.json").write_text("{")
    assert "adapter_config.json cannot be read" in refusal(service_client, f"file:{folder}")
    (folder / "adapter_config.json").unlink()
    assert "it has no adapter_config.json" in refusal(service_client, f"file:{folder}")
    assert "it has no adapter_config.json" in refusal(service_client, f"file:{allowed / 'nowhere'}")


def test_weights_that_are_not_finite_are_refused(service_client, adapter):
    folder = adapter(r=4, target_modules=["q_proj"])
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    assert "that are not finite" in refusal(service_client, f"file:{folder}")


def test_only_folders_below_the_allowed_directories_are_read(service_client, adapter, allowed, tmp_path):
    outside = adapter(into=tmp_path, r=4, target_modules=["q_proj"])
    inside = adapter(r=4, target_modules=["q_proj"])
    link, half = allowed / "link", allowed / "half"
    link.symlink_to(outside)
    half.mkdir(exist_ok=True)
    (half / "adapter_config.json").write_bytes((inside / "adapter_config.json").read_bytes())
    (half / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    not_below = "is not below a directory that --import-dir allows"
    assert not_below in refusal(service_client, f"file:{outside}")
    assert not_below in refusal(service_client, f"file:{tmp_path / 'nowhere'}")
    assert not_below in refusal(service_client, f"file:{allowed}-beside/x")
    assert not_below in refusal(service_client, f"file:{link}")
    assert "links out of the directories" in refusal(service_client, f"file:{half}")
    for path in (f"file:{allowed}/x/../{inside.name}", "file:adapter", "file://host/adapter", "file:", "file:/a\0b"):
        assert "an absolute path without '..'" in refusal(service_client, path)
    assert "is not of the form tinker://" in refusal(service_client, inside)
    (allowed / "within").symlink_to(inside)
    for path in (f"file://{inside}", f"file:{allowed / 'within'}"):
        assert service_client.create_training_client_from_state(path).result().get_info().lora_rank == 4


def test_a_server_without_allowed_directories_reads_none(start_server, folders, adapter):
    with start_server({LLAMA: folders[LLAMA]}).client() as service_client:
        said = refusal(service_client, f"file:{adapter(r=4, target_modules=['q_proj'])}")
    assert "this server imports no folders; start it with --import-dir DIRECTORY" in said


def test_the_base_model_is_the_one_the_folder_names_or_else_the_one_asked_for(service_client, adapter, folders):
    folder = adapter(r=4, target_modules=["q_proj"])

    def model_name(**options):
        return start(service_client, folder, **options).get_info().model_name

    assert model_name() == LLAMA  # by its location
    edit(folder, base_model_name_or_path=LLAMA)
    assert model_name() == model_name(base_model=LLAMA) == LLAMA
    said = refusal(service_client, f"file:{folder}", base_model=QWEN)
    assert f"base_model is '{QWEN}', but" in said
    assert "was trained on 'tiny/llama'" in said
    edit(folder, base_model_name_or_path="meta/other")
    said = refusal(service_client, f"file:{folder}")
    assert "was trained on 'meta/other', which is none of the models served here (tiny/llama, tiny/qwen3)" in said
    assert model_name(base_model=LLAMA) == LLAMA
    assert "base_model 'not/served' is not served here" in refusal(
        service_client, f"file:{folder}", base_model="not/served"
    )


def test_a_folder_has_no_optimizer_state(service_client, adapter):
    path = f"file:{adapter(r=4, target_modules=['q_proj'])}"
    with pytest.raises(tinker.APIStatusError, match="which has no optimizer state; load its weights only"):
        service_client.create_training_client_from_state_with_optimizer(path).result()
    client = service_client.create_training_client_from_state(path).result()
    with pytest.raises(tinker.APIStatusError, match="which has no optimizer state"):
        client.load_state_with_optimizer(path).result()


def test_a_model_of_the_same_shape_and_scale_can_load_a_folder(server, service_client, adapter):
    shape = {"r": 4, "target_modules": ["q_proj", "up_proj"]}
    client = start(service_client, adapter(lora_alpha=8, **shape))
    second = adapter(name="second", lora_alpha=8, **shape)
    tensors = {name: tensor * 2 for name, tensor in load_file(second / "adapter_model.safetensors").items()}
    save_file(tensors, second / "adapter_model.safetensors")
    client.load_state(f"file:{second}").result()
    now = server.tensors(client.save_state("now").result().path)
    assert all(np.array_equal(now[name], tensor.numpy()) for name, tensor in tensors.items())

    other = adapter(name="other", lora_alpha=16, **shape)
    with pytest.raises(tinker.RequestFailedError, match=r"has lora_alpha 16.0, this model 8.0"):
        client.load_state(f"file:{other}").result()
    saved = start(service_client, other).save_state("other").result().path
    with pytest.raises(tinker.RequestFailedError, match=r"has lora_alpha 16.0, this model 8.0"):
        client.load_state(saved).result()
    with pytest.raises(tinker.APIStatusError, match="is not below a directory"):
        client.load_state(f"file:{os.sep}etc").result()
    after = server.tensors(client.save_state("after").result().path)
    assert all(np.array_equal(now[name], tensor) for name, tensor in after.items())
