"""Dimuon, the other optimizer, by what Muon is known for: the vendor's formula is not public."""

import tinker

from weaver.conformance.checks import require
from weaver.conformance.lab import A, B, Lab
from weaver.conformance.optimizer import TINY_EPS
from weaver.conformance.recipes import DimuonStep, Step, passes

GROUP = "optimizer fields"

BETA1 = 0.8


def dimuon_is_another_optimizer(lab: Lab) -> None:
    """Who asks for Dimuon must not get AdamW, and must be told what there is."""
    with lab.session() as session:
        info = session.model(optimizer=tinker.DimuonOptimizerConfig()).get_info()
    kind = info.optimizer_config.type
    require(kind == "dimuon", f"get_info of a model made with dimuon says its optimizer is {kind!r}")
    found = lab.after(passes(A), DimuonStep(lab.dimuon_rate))
    lab.differ(found, lab.after(passes(A), Step(lab.dimuon_rate, eps=TINY_EPS)), "a step of dimuon, against AdamW's")


def dimuon_steps_by_the_rate_alone(lab: Lab) -> None:
    """Muon orthogonalises the gradient: eight times as large it makes the same step, and the rate sets the size."""
    found = lab.after(passes(A), DimuonStep(lab.dimuon_rate))
    large = lab.after(passes(A.weighted(8)), DimuonStep(lab.dimuon_rate))
    lab.same(large, found, "a step of dimuon on eight times the gradient")
    lab.differ(lab.after(passes(A), DimuonStep(lab.dimuon_rate / 4)), found, "a quarter of dimuon's rate")
    still = lab.after(passes(A), DimuonStep(0.0, beta1=BETA1))
    lab.unchanged(still, lab.start, "a step of dimuon at learning rate zero")


def dimuon_remembers_by_its_beta1(lab: Lab) -> None:
    """The momentum is the step's own: with 0 an earlier gradient is forgotten, above 0 it counts."""
    alone, rate = lab.after(passes(B), DimuonStep(lab.dimuon_rate)), lab.dimuon_rate
    without, momentum = (
        lab.after(passes(A), DimuonStep(0.0, beta1), passes(B), DimuonStep(rate, beta1)) for beta1 in (0.0, BETA1)
    )
    lab.same(without, alone, "dimuon with beta1 = 0 after a step at rate zero, against a first step")
    lab.differ(momentum, alone, f"the same with beta1 = {BETA1}, against a first step")


CHECKS = (dimuon_is_another_optimizer, dimuon_steps_by_the_rate_alone, dimuon_remembers_by_its_beta1)
