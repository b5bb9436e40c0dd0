"""Training tokens per second against a padded transformers + peft loop that does the same computation."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from weaver_peft.trainer import open_backend

from weaver.backend import Pass
from weaver.domain import Datum, LoraSpec, ModelSource
from weaver.plugins.losses import weaver_losses

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
CROSS_ENTROPY = next(loss for loss in weaver_losses() if loss.name == "cross_entropy")
BATCHES = {
    "8 sequences of 128": [128] * 8,
    "12 sequences of 16 to 160": [133, 108, 89, 54, 60, 22, 26, 18, 41, 133, 109, 147],
}


@pytest.mark.parametrize("batch", BATCHES)
def test_training(side_by_side, demo, batch):
    lengths, rng = BATCHES[batch], np.random.default_rng(0)
    sequences = [rng.integers(0, 49152, length + 1) for length in lengths]
    ours, theirs = _weaver(demo, sequences), _padded(demo, sequences)
    assert ours() == pytest.approx(theirs(), rel=1e-5)
    side_by_side(ours, theirs, sum(lengths))


def _weaver(folder, sequences):
    backend = open_backend(ModelSource("demo", folder, "cpu"))
    backend.create_model("m", LoraSpec(rank=32, seed=1))
    data = [
        Datum(each[:-1], {"target_tokens": each[1:], "weights": np.ones(len(each) - 1, np.float32)})
        for each in sequences
    ]

    def run():
        [result] = backend.forward_backward([Pass("m", data, CROSS_ENTROPY, {}, True)])
        return result.metrics["loss:sum"]

    return run


def _padded(folder, sequences):
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=32, lora_alpha=32, target_modules=LINEAR))
    longest = max(len(each) for each in sequences) - 1
    ids, labels = torch.zeros(len(sequences), longest, dtype=torch.long), torch.full((len(sequences), longest), -100)
    for row, each in enumerate(sequences):
        ids[row, : len(each) - 1], labels[row, : len(each) - 1] = torch.tensor(each[:-1]), torch.tensor(each[1:])
    mask = (labels != -100).long()

    def run():
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        loss.backward()
        return float(loss.detach())

    return run
