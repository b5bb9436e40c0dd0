"""What results should be, from transformers and peft alone: tiny random models, one unpadded sequence at a time.

Shapes: T tokens of one datum, K targets per token, V vocabulary, n tokens of a prompt.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from weaver.backend import Pass
from weaver.domain import Adapter, Datum, FloatArray, IntArray, SamplingParams, TokenRows
from weaver.loss import ENTROPY, TARGET_TOKENS, LossOutput

VOCABULARY: Final = 128
CONTEXT: Final = 256
END_TOKEN: Final = 1
FAMILIES: Final = ("llama", "qwen3")
_SIZES: Final[Mapping[str, Any]] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": END_TOKEN,
    "pad_token_id": END_TOKEN,
}
"""Every size divides by two, for backends that shard; vLLM's attention on CPUs takes no smaller head."""


def write_model(family: str, folder: Path, seed: int = 0) -> Path:
    """A tiny random model: `llama` has an output layer of its own, `qwen3` shares its embeddings."""
    torch.manual_seed(seed)
    if family == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=False))
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**_SIZES, tie_word_embeddings=True))
    else:
        raise ValueError(f"there is no tiny model {family!r}; there are: {', '.join(FAMILIES)}")
    model.save_pretrained(folder)
    return folder


def write_adapter(model: Path, folder: Path, *, rank: int, seed: int) -> Path:
    """An adapter on the decoder's linear layers with nothing zero in it, written by peft."""
    torch.manual_seed(seed)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, task_type="CAUSAL_LM")
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(folder)
    return folder


class TrainingReference:
    """One adapter on the base model, by peft, with autograd through everything."""

    def __init__(self, model: Path, adapter: Adapter) -> None:
        names = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in adapter.tensors})
        config = LoraConfig(r=adapter.lora.rank, lora_alpha=adapter.lora.alpha, target_modules=names)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._model: Any = get_peft_model(base, config).eval()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(adapter.tensors[name]))

    @property
    def parameters(self) -> dict[str, Any]:
        """The trained tensors by the names that PEFT's files have."""
        named = self._model.named_parameters()
        return {name.replace(".default", ""): parameter for name, parameter in named if "lora_" in name}

    def scores(self, datum: Datum, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprobs of the targets and the entropy of each token's distribution, of whole log-softmaxes, or of what its
        sampling mask keeps of them."""
        targets = torch.from_numpy(datum.loss_fn_inputs[TARGET_TOKENS])
        columns_TK = targets if targets.ndim == 2 else targets[:, None]
        logits_TV = self._model(input_ids=torch.from_numpy(datum.tokens_T)[None]).logits[0]
        if datum.sampling_mask is not None:
            logits_TV = _kept_alone(logits_TV, datum.sampling_mask)
        distributions_TV = (logits_TV / temperature).log_softmax(-1)
        found_TK = distributions_TV.gather(1, columns_TK)
        entropy_T = -(distributions_TV.exp() * distributions_TV).sum(1)
        return found_TK if targets.ndim == 2 else found_TK[:, 0], entropy_T

    def run(self, one: Pass) -> tuple[float, list[FloatArray], dict[str, FloatArray]]:
        """The value of the loss, the logprobs, and the gradient of every trained tensor, zero of a pass without a
        backward part."""
        self._model.zero_grad()
        scores = [self.scores(datum, one.temperature) for datum in one.data]
        value = _total(one, scores)
        if one.backward:
            value.backward()
        gradients = {
            name: np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy().copy()
            for name, parameter in self.parameters.items()
        }
        return float(value.detach()), [found.detach().numpy() for found, _ in scores], gradients


def _kept_alone(logits_TV: torch.Tensor, mask: TokenRows) -> torch.Tensor:
    """Logits so low for what was dropped that its probability is 0, and still a number to multiply with."""
    kept = torch.zeros(logits_TV.shape, dtype=torch.bool)
    for row, tokens in zip(kept, mask.lists(), strict=True):
        row[tokens or slice(None)] = True
    return logits_TV.masked_fill(~kept, -1e9)


def _total(one: Pass, scores: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    function: Any = one.loss.function
    logprobs, inputs = [found for found, _ in scores], [_inputs(one, datum) for datum in one.data]
    if one.wants_entropy:
        for mine, (_, entropy_T) in zip(inputs, scores, strict=True):
            mine[ENTROPY] = entropy_T
    if one.loss.batch:
        return _value(function(logprobs, inputs, one.config))
    values = [_value(function(lp, mine, one.config)) for lp, mine in zip(logprobs, inputs, strict=True)]
    return torch.stack(values).sum()


def _value(returned: Any) -> torch.Tensor:
    value: torch.Tensor = returned.loss if isinstance(returned, LossOutput) else returned
    return value


def _inputs(one: Pass, datum: Datum) -> dict[str, torch.Tensor]:
    given = datum.loss_fn_inputs
    arrays = {declared.name: declared for declared in one.loss.inputs_of(given) if declared.name in given}
    tensors = {name: torch.from_numpy(np.array(datum.loss_fn_inputs[name])) for name in arrays}
    return {name: one.reshape(()) if arrays[name].shape == "scalar" else one for name, one in tensors.items()}


class SamplingReference:
    """A model, with an adapter or without, whole prompts at once."""

    def __init__(self, model: Path, adapter: Path | None = None) -> None:
        base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._model = (base if adapter is None else PeftModel.from_pretrained(base, adapter)).eval()

    def logits(self, tokens_n: Sequence[int] | IntArray) -> torch.Tensor:
        """(n, V), in float64."""
        with torch.no_grad():
            found: torch.Tensor = self._model(torch.as_tensor(np.asarray(tokens_n))[None]).logits[0].double()
        return found

    def greedy(self, prompt_n: IntArray, count: int) -> list[int]:
        tokens = prompt_n.tolist()
        for _ in range(count):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt_n) :]

    def drawn_logprobs(self, prompt_n: IntArray, drawn: IntArray, params: SamplingParams) -> list[float]:
        """What each drawn token's logprob is under the distribution it was drawn from."""
        rows = self._distributions(prompt_n, drawn, params)
        return [float(row[token].log()) for row, token in zip(rows, drawn.tolist(), strict=True)]

    def drawn_among(self, prompt_n: IntArray, drawn: IntArray, params: SamplingParams) -> list[NDArray[np.bool_]]:
        """For each drawn token, which of the vocabulary could come."""
        return [(row > 0).numpy() for row in self._distributions(prompt_n, drawn, params)]

    def _distributions(self, prompt_n: IntArray, drawn: IntArray, params: SamplingParams) -> list[torch.Tensor]:
        logits = self.logits([*prompt_n.tolist(), *drawn.tolist()][:-1])[len(prompt_n) - 1 :]
        stops = (END_TOKEN,) if params.stop_token_ids is None else params.stop_token_ids
        logits[: params.min_tokens, list(stops)] = -torch.inf
        return [distribution(row, params) for row in logits]


def distribution(logits_V: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Temperature, then top_k, then top_p on what is left; at temperature 0 the model's own."""
    if params.temperature == 0:
        return logits_V.softmax(0)
    kept = (logits_V / params.temperature).softmax(0)
    ranked = kept.argsort(descending=True)
    if params.top_k > 0:
        kept[ranked[params.top_k :]] = 0
        kept /= kept.sum()
    before = kept[ranked].cumsum(0) - kept[ranked]
    kept[ranked[before >= params.top_p]] = 0
    return kept / kept.sum()
