"""PATCH, of vLLM's workers (`worker_extension_cls`): what a prompt is asked about is computed by weaver.

vLLM 0.32 computes prompt logprobs of several prompts with a mapping of adapters to rows that is about the tokens to
draw: on CPUs that ends the engine, on GPUs an adapted output layer is left out. So vLLM is never asked for any. Here
each prompt's hidden states go through the output layer with the slot of its own adapter.
"""

from types import MethodType
from typing import Any, Final

import torch
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.platforms import current_platform
from vllm.v1.sample import sampler

from .cpu_lora import expand, replace_products, shrink
from .cpu_seeds import spare_seeds
from .questions import Questions, chunk_of

ASKED: Final = "weaver_asked"
"""In a request's extra arguments: the name of its questions."""


def _count_not_below(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The ranks beside the logprobs, which nobody reads: vLLM compiles this with a C++ compiler, for seconds."""
    return (x >= values).sum(-1)


if current_platform.is_cpu():
    replace_products()
    sampler.batched_count_greater_than = _count_not_below


class WorkerExtension:
    """Methods that vLLM's worker has besides its own; called by `collective_rpc`."""

    model_runner: Any

    def weaver_install(self) -> None:
        """Once the model is loaded."""
        self._weaver_asked: dict[str, Questions] = {}
        runner, asked = self.model_runner, self._weaver_asked

        def answer(runner: Any, hidden_TH: torch.Tensor, scheduled: dict[str, int]) -> dict[str, Any]:
            if asked:
                answer_questions(runner, hidden_TH, scheduled, asked)
            return {}

        runner._get_prompt_logprobs_dict = MethodType(answer, runner)
        if current_platform.is_cpu():
            spare_seeds(runner)

    def weaver_ask(self, name: str, message: dict[str, Any]) -> None:
        self._weaver_asked[name] = Questions(message)

    def weaver_answers(self, name: str) -> dict[str, Any] | None:
        """What has been found; the questions are forgotten."""
        questions = self._weaver_asked.pop(name, None)
        return None if questions is None else questions.answers()

    def weaver_layers(self) -> dict[str, tuple[int, int]]:
        """The sizes, in and out, of the linear layers that adapters may change, by their names in PEFT's files."""
        manager, found = self.model_runner.lora_manager._adapter_manager, {}
        for name, module in manager.modules.items():
            parts = manager.packed_modules_mapping.get(name.rpartition(".")[2])
            if not hasattr(module, "lora_a_stacked"):
                continue
            stacked = zip(_tuple(module.lora_a_stacked), _tuple(module.lora_b_stacked), strict=True)
            for index, (a, b) in enumerate(stacked):
                part = name if parts is None else f"{name.rpartition('.')[0]}.{parts[index]}"
                found[part] = (a.shape[-1], b.shape[-2])
        return found


def answer_questions(
    runner: Any, hidden_TH: torch.Tensor, scheduled: dict[str, int], asked: dict[str, Questions]
) -> None:
    """Take in the hidden states of a step: `scheduled` tokens of each request, one request after the other."""
    for request_id, count in scheduled.items():
        request = runner.requests[request_id]
        questions = asked.get((request.sampling_params.extra_args or {}).get(ASKED, ""))
        if questions is None:
            continue
        start = request.num_computed_tokens
        offset = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[request_id]])
        wanted = questions.wanted(start, count)
        size = chunk_of(hidden_TH.device.type, runner.model_config.get_vocab_size())
        for first in range(0, len(wanted), size):
            chosen = wanted[first : first + size]
            hidden_CH = hidden_TH[torch.from_numpy(offset + chosen).to(hidden_TH.device)]
            questions.add(start + 1 + chosen, output_logits(runner, hidden_CH, request.lora_request))


def output_logits(runner: Any, hidden_CH: torch.Tensor, lora_request: Any) -> torch.Tensor:
    """The output layer with the update of one adapter, whatever the batch's other rows use."""
    manager = runner.lora_manager._adapter_manager
    slot = None if lora_request is None else manager.lora_index_to_id.index(lora_request.lora_int_id)

    def add_lora_logits(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> Any:
        if slot is not None:
            expand(y, slice(None), shrink(x, a[slot, 0]) * scale, b[slot, 0])
        return y

    wrappers: set[PunicaWrapperBase] = set(manager.punica_wrapper_mapping.values())
    for wrapper in wrappers:
        wrapper.add_lora_logits = add_lora_logits
    try:
        logits_CV: torch.Tensor = runner.model.compute_logits(hidden_CH)
    finally:
        for wrapper in wrappers:
            del wrapper.add_lora_logits
    return logits_CV


def _tuple(stacked: Any) -> tuple[torch.Tensor, ...]:
    return (stacked,) if isinstance(stacked, torch.Tensor) else tuple(stacked)
