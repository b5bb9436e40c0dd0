"""peft may write the base model's own embedding beside an adapter of the output layer; anything else is refused."""

from dataclasses import replace

import torch

from weaver.domain import Adapter, ModelSource
from weaver.errors import InvalidInput
from weaver_megatron.adapter import PREFIX
from weaver_megatron.conversion import Checkpoint


def without_base_weights(adapter: Adapter, source: ModelSource) -> Adapter:
    """The adapter's LoRA tensors alone. Raises InvalidInput for others that the base model does not have."""
    beside = [name for name in adapter.tensors if ".lora_" not in name]
    if not beside:
        return adapter
    checkpoint = Checkpoint(source)
    for name in beside:
        own = name.removeprefix(PREFIX).replace(".base_layer.", ".")
        if own == "lm_head.weight" and own not in checkpoint.names():
            own = "model.embed_tokens.weight"
        weight = checkpoint.whole(own) if own in checkpoint.names() else None
        given = torch.from_numpy(adapter.tensors[name])
        if weight is None or weight.shape != given.shape or not torch.equal(weight, given.to(weight.dtype)):
            raise InvalidInput(f"the adapter has {name!r}, which is neither LoRA nor the base model's own weight")
    return replace(adapter, tensors={name: array for name, array in adapter.tensors.items() if name not in beside})
