"""Tiny random models of each architecture, and what transformers and peft compute with them."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

VOCABULARY = 131
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "mistral": MistralConfig(**SIZES, head_dim=12, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES | {"tie_word_embeddings": True}),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, head_dim=16, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True,
        mlp_only_layers=[],
    ),
}  # fmt: skip


class Folders:
    """Saves each model when it is first asked for."""

    def __init__(self, root):
        self._root, self._made = root, {}

    def __getitem__(self, name):
        if name not in self._made:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(CONFIGS[name])
            for key, tensor in model.named_parameters():
                if key.endswith(("bias", "norm.weight")):  # as made, biases are 0 and norms 1: nothing would show
                    tensor.data.add_(0.1 * torch.randn(tensor.shape))
            self._made[name] = self._root / name
            model.save_pretrained(self._made[name], max_shard_size="60KB")
        return self._made[name]


class OneByOne(nn.Module):
    """Experts as linear modules of their own, by which peft can adapt them; transformers keeps them in one tensor."""

    class Expert(nn.Module):
        def __init__(self, gate_up, down):
            super().__init__()
            gate, up = gate_up.chunk(2)
            for name, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                linear.weight.data.copy_(weight)
                setattr(self, name, linear)

        def forward(self, hidden):
            return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))

    def __init__(self, experts):
        super().__init__()
        for number, pair in enumerate(zip(experts.gate_up_proj.data, experts.down_proj.data)):
            self.add_module(str(number), self.Expert(*pair))

    def forward(self, hidden, chosen, shares):
        result = torch.zeros_like(hidden)
        for number, expert in self.named_children():
            token, place = (chosen == int(number)).nonzero(as_tuple=True)
            result = result.index_add(0, token, expert(hidden[token]) * shares[token, place, None])
        return result


def reference(folder, dtype=torch.float32):
    """The model as transformers computes it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    for layer in model.model.layers:
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts = OneByOne(layer.mlp.experts)
            model.config.model_type = "qwen3"  # or peft would turn the experts' adapters into its own for one tensor
    return model


def adapted(folder, adapter):
    """The model with an adapter, as peft computes it."""
    names = sorted({name.split(".lora_")[0].removeprefix("base_model.model.") for name in adapter.tensors})
    config = LoraConfig(r=adapter.lora.rank, lora_alpha=adapter.lora.alpha, target_modules=names)
    model = get_peft_model(reference(folder), config)
    parameters = dict(model.named_parameters())
    for name, array in adapter.tensors.items():
        parameters[name.replace(".weight", ".default.weight")].data.copy_(torch.from_numpy(array))
    return model


def scores(model, datum, temperature=1.0):
    """(T,) or (T, K) log probabilities of a datum's targets and (T,) entropies, with a graph."""
    logits = model(input_ids=torch.from_numpy(datum.tokens_T)[None], use_cache=False).logits[0]
    targets = torch.from_numpy(datum.loss_fn_inputs["target_tokens"])
    if datum.sampling_mask is not None:
        kept = torch.stack([keeps(row, logits.shape[1]) for row in datum.sampling_mask.lists()])
        logits = logits.masked_fill(~kept, -1e9)
    whole = torch.log_softmax(logits.float() / temperature, -1)
    found = whole.gather(1, targets.reshape(len(targets), -1))
    return found if targets.ndim == 2 else found[:, 0], -(whole.exp() * whole).sum(1)


def keeps(row, vocabulary):
    """(V,), true where a row of a sampling mask keeps a token: everywhere, if it is empty."""
    found = torch.zeros(vocabulary, dtype=torch.bool)
    found[row or slice(None)] = True
    return found


def gradients(model):
    """By the names of peft's files."""
    return {
        name.replace(".default.", "."): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
