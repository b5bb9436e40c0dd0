"""Widens SmolLM2's GGUF file to a float32 folder that transformers loads. Run as a script: GGUF FOLDER.

What the GGUF import of transformers leaves wrong, and why each line below is there:
the tokenizer loses the splitter that makes every digit a token of its own (the text "2026" would be other tokens than
those the model was trained on); the model still says it is quantised, which `save_pretrained` refuses; and epsilon
comes back as the float32 nearest to 1e-5.
"""

import sys
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

CONTEXT_LENGTH = 8192


def convert(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer to `folder`."""
    _load_model(gguf).save_pretrained(folder)
    _load_tokenizer(gguf).save_pretrained(folder)


def _load_model(gguf: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.config.rms_norm_eps = 1e-5
    return model


def _load_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = CONTEXT_LENGTH
    return tokenizer


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
