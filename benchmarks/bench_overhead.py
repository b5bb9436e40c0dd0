"""What the server adds to an operation: the vendor's SDK over HTTP against the same calls on the backend directly."""

import numpy as np
import pytest
import tinker
from weaver_peft.trainer import open_backend

from weaver.backend import Pass
from weaver.domain import AdamParams, Datum, LoraSpec, ModelSource
from weaver.plugins.losses import weaver_losses

CROSS_ENTROPY = next(loss for loss in weaver_losses() if loss.name == "cross_entropy")
SEQUENCES = [np.arange(2, 66) + shift for shift in range(4)]


def test_a_training_step_over_http(side_by_side, served, tiny_folder):
    with tinker.ServiceClient(base_url=served, api_key="tml-bench") as service_client:
        client = service_client.create_lora_training_client("tiny", rank=8, seed=1).result()
        over_http, direct = _over_http(client), _direct(tiny_folder)
        assert over_http() == pytest.approx(direct(), rel=1e-5)
        side_by_side(over_http, direct, 1, "steps", rounds=30)


def _over_http(client):
    data = [
        tinker.Datum(
            tinker.ModelInput.from_ints(tokens[:-1].tolist()),
            {"target_tokens": tokens[1:], "weights": np.ones(len(tokens) - 1, np.float32)},
        )
        for tokens in SEQUENCES
    ]

    def run():
        passed = client.forward_backward(data, "cross_entropy")
        stepped = client.optim_step(tinker.AdamParams(learning_rate=0.0))
        stepped.result()
        return passed.result().metrics["loss:sum"]

    return run


def _direct(folder):
    backend = open_backend(ModelSource("tiny", folder, "cpu"))
    backend.create_model("m", LoraSpec(rank=8, seed=1))
    data = [
        Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": np.ones(len(tokens) - 1, np.float32)})
        for tokens in SEQUENCES
    ]

    def run():
        [result] = backend.forward_backward([Pass("m", data, CROSS_ENTROPY, {}, True)])
        backend.optim_step("m", AdamParams(learning_rate=0.0))
        return result.metrics["loss:sum"]

    return run
