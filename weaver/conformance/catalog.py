"""Every check there is, group by group."""

from weaver.conformance import (
    checkpoints,
    errors,
    gradients,
    isolation,
    losses,
    optimizer,
    ordering,
    prompts,
    protocol,
    sampling,
)
from weaver.conformance.checks import Check

_MODULES = (protocol, ordering, gradients, losses, optimizer, isolation, sampling, prompts, checkpoints, errors)

CHECKS = tuple(Check(module.GROUP, function) for module in _MODULES for function in module.CHECKS)
