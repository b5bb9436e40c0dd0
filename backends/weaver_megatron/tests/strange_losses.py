"""Losses like those that others write, by name in every rank."""

import torch

from weaver.loss import Loss, LossInput, LossOutput, OutputField


def _raising(logprobs, inputs, config):
    if len(logprobs) == 14:
        raise RuntimeError("fourteen")
    return -(logprobs * inputs["weights"]).sum()


def _infinite(logprobs, inputs, config):
    return ((logprobs - logprobs.detach()).abs().sqrt()).sum()


def _drawing(logprobs, inputs, config):
    return (logprobs * torch.rand(len(logprobs))).sum()


def _contrast(logprobs, inputs, config):
    """Of a whole batch: log of the sum over data of exp(their mean logprob), and each datum's share in it."""
    means = torch.stack([(each * one["weights"]).mean() for each, one in zip(logprobs, inputs, strict=True)])
    loss = means.logsumexp(0)
    shares = [share.reshape(1) for share in (means - loss).exp()]
    return LossOutput(loss, {"spread:max": float(means.max() - means.min())}, {"share": shares})


WEIGHTS = (LossInput("weights"),)
RAISING = Loss("raising", _raising, WEIGHTS)
INFINITE = Loss("infinite", _infinite, WEIGHTS)
DRAWING = Loss("drawing", _drawing, WEIGHTS)
CONTRAST = Loss("contrast", _contrast, WEIGHTS, batch=True, outputs=(OutputField("share", "scalar"),))
