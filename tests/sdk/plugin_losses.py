"""A plugin as a test installs it: losses that see the batch, give arrays back, or break the contract."""

import torch

from weaver.hookspecs import hookimpl
from weaver.loss import ConfigField, Loss, LossInput, LossOutput, OutputField

REWARDS = LossInput("reward", shape="scalar")
seen = []
"""How many data each call of `bradley_terry` got."""


def bradley_terry(logprobs, inputs, config):
    """Data come in pairs, the better one first: -log sigmoid(beta · (its log probability - the other's))."""
    seen.append(len(logprobs))
    sums = torch.stack([lp.sum() for lp in logprobs])
    margins = config["beta"] * (sums[::2] - sums[1::2])
    loss = -torch.nn.functional.logsigmoid(margins).sum()
    outputs = {"sum": list(sums)}
    return LossOutput(loss, {"margin:mean": margins.detach().mean(), "pairs:sum": len(margins)}, outputs)


def telling(logprobs, inputs, config):
    """-lp · weights, squared where asked, with what it made of each token and of the sequence."""
    weighted = logprobs * inputs.get("weights", torch.ones_like(logprobs))
    loss = -weighted.sum() if config["form"] == "plain" else (weighted**2).sum()
    outputs = {"weighted": weighted, "length": torch.tensor(len(logprobs) * config["times"])}
    return LossOutput(loss, outputs=outputs)


def centred(logprobs, inputs, config):
    """REINFORCE with the mean reward of the batch taken off."""
    rewards = torch.stack([one["reward"] for one in inputs])
    return -((rewards - rewards.mean()) * torch.stack([lp.sum() for lp in logprobs])).sum()


def vector(logprobs, inputs, config):
    return logprobs


def not_finite(logprobs, inputs, config):
    return logprobs.sum() / 0


def constant(logprobs, inputs, config):
    return torch.tensor(1.0)


def raising(logprobs, inputs, config):
    raise KeyError("oh")


def raising_batch(logprobs, inputs, config):
    raise KeyError("oh")


def steep(logprobs, inputs, config):
    """Finite, but its gradient is not: sqrt at 0."""
    return sum((lp - lp.detach()).abs().sqrt().sum() for lp in logprobs)


def misshapen(logprobs, inputs, config):
    return LossOutput(-logprobs.sum(), outputs={"weighted": logprobs[:-1]})


@hookimpl
def weaver_losses():
    beta = ConfigField("beta", 0.1, minimum=0.0)
    yield Loss(
        "bradley_terry", bradley_terry, config=(beta,), batch=True, outputs=(OutputField("sum", "scalar"),),
        description="preferences", source="Bradley and Terry 1952",
    )  # fmt: skip
    yield Loss("centred", centred, (REWARDS,), batch=True)
    form = ConfigField("form", "plain", type="text", choices=("plain", "squared"))
    times = ConfigField("times", 1, 1, 3, type="int")
    yield Loss(
        "telling", telling, (LossInput("weights", optional=True),), (form, times),
        outputs=(OutputField("weighted"), OutputField("length", "scalar")),
    )  # fmt: skip
    for function in (vector, not_finite, constant, raising):
        yield Loss(function.__name__, function)
    for function in (raising_batch, steep):
        yield Loss(function.__name__, function, batch=True)
    yield Loss("misshapen", misshapen, outputs=(OutputField("weighted"),))
