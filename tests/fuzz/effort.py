"""How much is tried: a fixed set of requests with `make test`, fresh ones for longer with `make fuzz`."""

import os

from hypothesis import HealthCheck, Phase, settings

EFFORT = int(os.environ.get("WEAVER_FUZZ", "1"))
"""How many times the requests of `make test`; beyond that they differ from run to run."""


def effort(examples, once=False):
    """The settings of one property; `once`: the same with either command."""
    fixed = once or EFFORT == 1
    return settings(
        max_examples=examples if fixed else examples * EFFORT,
        derandomize=fixed,
        database=None,
        deadline=None,
        phases=[Phase.generate] if fixed else [Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
