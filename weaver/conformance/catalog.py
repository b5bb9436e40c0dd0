"""Every check there is, group by group."""

from weaver.conformance import (
    checkpoints,
    dimuon,
    draws,
    errors,
    exports,
    gradients,
    isolation,
    losses,
    optimizer,
    ordering,
    policies,
    prompts,
    protocol,
    rest,
    sampling,
    scoring,
)
from weaver.conformance.checks import Check

_MODULES = (
    protocol,
    ordering,
    *(gradients, losses, policies),
    *(optimizer, dimuon),
    isolation,
    *(sampling, draws),
    *(prompts, scoring),
    checkpoints,
    *(rest, exports),
    errors,
)

CHECKS = tuple(Check(module.GROUP, function) for module in _MODULES for function in module.CHECKS)
