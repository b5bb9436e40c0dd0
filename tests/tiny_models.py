"""Random models of two layers, as folders, which take no time to train."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, CONTEXT = 97, 256
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def write_llama(folder, **changes):
    """A Llama, always the same, with an output layer of its own."""
    torch.manual_seed(0)
    shape = SHAPE | {"tie_word_embeddings": False} | changes
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    return folder


def write_words(folder):
    """Beside a model, a tokenizer whose tokens are the words w0, w1, ..."""
    words = {f"w{index}": index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1").save_pretrained(folder)
    return folder
