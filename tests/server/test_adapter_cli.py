"""`weaver adapter`: folders in and out of a data directory, with and without a server on it."""

import json
import re

import pytest
import tinker
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.serving import serving
from weaver.backend import ModelSource
from weaver.config import Config
from weaver.server.cli import weaver
from weaver.service import Service

MODEL = "tiny/llama"
TOKENS = [5, 9, 33, 60, 2, 17]
LAYERS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads, **ends, initializer_range=0.2, tie_word_embeddings=False))
    made = tmp_path_factory.mktemp("model")
    model.save_pretrained(made)
    return str(made)


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    """An adapter that peft wrote, with an alpha that is not weaver's."""
    torch.manual_seed(1)
    settings = LoraConfig(r=4, lora_alpha=9, target_modules=[*LAYERS, "lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    made = tmp_path_factory.mktemp("adapters") / "mine"
    model.save_pretrained(made)
    return made


def run(*arguments):
    return CliRunner().invoke(weaver, ["adapter", *map(str, arguments)])


def done(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.split()


def refusal(*arguments):
    result = run(*arguments)
    assert result.exit_code == 1
    return result.output


def expected_logprobs(base, folder):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    return logits[:-1].gather(1, torch.tensor(TOKENS)[1:, None])[:, 0].tolist()


def found_logprobs(client, state, snapshot):
    """What is trained on, and what is sampled from."""
    trainer = client.create_training_client_from_state(state).result()
    inputs = {"target_tokens": TOKENS[1:], "weights": [1.0] * (len(TOKENS) - 1)}
    datum = tinker.Datum(tinker.ModelInput.from_ints(TOKENS[:-1]), inputs)
    trained = trainer.forward([datum], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy().tolist()
    sampler = client.create_sampling_client(model_path=snapshot).result()
    return trained, sampler.compute_logprobs(tinker.ModelInput.from_ints(TOKENS)).result()[1:]


def test_what_is_imported_is_trained_and_sampled_whether_a_server_runs_or_not(base, folder, tmp_path):
    place = ("--model", f"{MODEL}={base}", "--data-dir", tmp_path)
    before = done("import", folder, *place)
    assert [re.sub("//.*:train:0", "//RUN", path) for path in before] == [
        "tinker://RUN/weights/mine",
        "tinker://RUN/sampler_weights/mine",
    ]
    expected = expected_logprobs(base, folder)
    service = Service(Config(models=(ModelSource(MODEL, base, "cpu"),), data_dir=tmp_path))
    try:
        with serving(service) as url, tinker.ServiceClient(base_url=url, api_key="tml-test") as client:
            meanwhile = done("import", folder, *place, "--name", "again")
            service.tidy()
            for paths in (before, meanwhile):
                for found in found_logprobs(client, *paths):
                    assert found == pytest.approx(expected, abs=1e-5)
            with pytest.raises(tinker.RequestFailedError, match="holds no optimizer state; load its weights only"):
                client.create_training_client_from_state_with_optimizer(before[0]).result()
            rest = tinker.RestClient(base_url=url, api_key="tml-test")
            run_id = before[0].removeprefix("tinker://").partition("/")[0]
            assert rest.get_training_run(run_id).result().base_model == MODEL
    finally:
        service.close()


@pytest.mark.parametrize("kind", [0, 1], ids=["state", "snapshot"])
def test_an_export_is_a_plain_peft_folder_with_the_same_weights(base, folder, tmp_path, kind):
    path = done("import", folder, "--model", f"{MODEL}={base}", "--data-dir", tmp_path)[kind]
    out = tmp_path / "out"
    done("export", path, out, "--data-dir", tmp_path)
    assert {file.name for file in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], sorted(config["target_modules"])) == (4, 9, sorted([*LAYERS, "lm_head"]))
    written, given = (load_file(one / "adapter_model.safetensors") for one in (out, folder))
    assert given.keys() - written.keys() == {"base_model.model.lm_head.base_layer.weight"}  # the base model's own
    assert all(torch.equal(tensor, given[name]) for name, tensor in written.items())
    assert expected_logprobs(base, out) == expected_logprobs(base, folder)


@pytest.mark.parametrize("source", ["a checkpoint", "a folder"])
def test_a_merged_model_says_what_model_and_adapter_say(base, folder, tmp_path, source):
    path = folder
    if source == "a checkpoint":
        path = done("import", folder, "--model", f"{MODEL}={base}", "--data-dir", tmp_path)[0]
    out = tmp_path / "merged"
    done("merge", path, out, "--model", base, "--data-dir", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    found = logits[:-1].gather(1, torch.tensor(TOKENS)[1:, None])[:, 0].tolist()
    assert found == pytest.approx(expected_logprobs(base, folder), abs=1e-4)
    assert not list(tmp_path.glob(".merged*"))


def test_nothing_is_written_over_or_left_half(base, folder, tmp_path):
    [state, _] = done("import", folder, "--model", f"{MODEL}={base}", "--data-dir", tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for command in (("export", state, out), ("merge", state, out, "--model", base)):
        assert f"{out} is there already and not empty" in refusal(*command, "--data-dir", tmp_path)
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    done("export", state, out, "--data-dir", tmp_path)  # an empty folder is in nobody's way
    free = tmp_path / "free"
    broken = tmp_path / "broken"
    broken.mkdir()
    said = refusal("merge", state, free, "--model", f"{MODEL}={broken}", "--data-dir", tmp_path)
    assert f"the model '{MODEL}' cannot be read" in said
    assert not free.exists()
    assert not list(tmp_path.glob(".free*"))


def test_what_cannot_be_done_is_said_by_name(base, folder, tmp_path):
    [state, _] = done("import", folder, "--model", f"{MODEL}={base}", "--data-dir", tmp_path)
    place, out = ("--data-dir", tmp_path), tmp_path / "out"
    assert "there is no checkpoint" in refusal("export", state + "x", out, *place)
    assert "is not of the form tinker://" in refusal("export", "tinker://x", out, *place)
    assert "is an export already" in refusal("export", "tinker://a:train:0/external_weights/b", out, *place)
    assert "is no data directory of weaver" in refusal("export", state, out, "--data-dir", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    said = refusal("merge", state, out, "--model", f"other/model={base}", *place)
    assert f"was trained on '{MODEL}', not on 'other/model'; give --model {MODEL}=HUB_ID_OR_FOLDER" in said
    assert "this backend cannot merge" in refusal("merge", state, out, "--model", MODEL, "--backend", "echo", *place)
    assert "there is no backend 'none'" in refusal("merge", state, out, "--model", MODEL, "--backend", "none", *place)
    assert "--name '.hidden' must be" in refusal(
        "import", folder, "--model", f"{MODEL}={base}", "--name", ".hidden", *place
    )


def test_an_adapter_that_does_not_fit_is_not_imported(base, folder, tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    for file in folder.iterdir():
        (strange / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (strange / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    place = ("--model", f"{MODEL}={base}", "--data-dir", tmp_path / "data")
    assert "use_dora=True, which cannot be trained here" in refusal("import", strange, *place)
    wide = tmp_path / "wide"
    shape = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, tie_word_embeddings=False)).save_pretrained(wide)
    said = refusal("import", folder, "--model", f"wide={wide}", "--data-dir", tmp_path / "data")
    assert "neither LoRA nor the base model's own weight" in said
    assert not (tmp_path / "data" / "checkpoints").exists()
