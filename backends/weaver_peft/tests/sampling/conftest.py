import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from weaver_peft.base_model import load_base_model
from weaver_peft.decoding import DecodeLoop

from weaver.backend import ModelSource
from weaver.domain import AdapterRef

from .tiny import LIMITS, LINEARS, MODELS


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    MODELS[request.param]().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(folder):
    return load_base_model(ModelSource("tiny", str(folder), device="cpu"))


@pytest.fixture(scope="module")
def reference(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def adapters(folder, tmp_path_factory):
    """Adapters of different ranks and modules, random in A and B, written by peft itself."""
    configs = {
        "small": LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
        "all": LoraConfig(r=8, lora_alpha=4, target_modules=LINEARS, use_rslora=True),
        "head": LoraConfig(r=4, lora_alpha=6, target_modules=[*LINEARS, "lm_head"]),
        "patterns": LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=LINEARS,
            rank_pattern={"q_proj": 7},
            alpha_pattern={"layers.1.mlp.up_proj": 3},
        ),
    }
    written = {}
    for index, (name, config) in enumerate(configs.items()):
        torch.manual_seed(index + 1)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        written[name] = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(written[name])
    return {name: AdapterRef(name, path) for name, path in written.items()}


@pytest.fixture
def loop(base):
    return DecodeLoop(base, LIMITS)
