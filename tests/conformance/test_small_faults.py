"""Each check there is has a fault that it sees: a server with one field ignored, one formula or one answer wrong."""

import conformance_faults
import conformance_number_faults
import conformance_wire_faults
import pytest
from conformance_wire_faults import answers, asks, says

from weaver.conformance.catalog import CHECKS
from weaver.conformance.checks import Outcome, run_checks
from weaver.conformance.lab import Lab

MODEL = "tiny/llama"
FAULTS = conformance_number_faults.FAULTS | conformance_wire_faults.FAULTS
SAYS_NOTHING = {"wrap_app": conformance_faults.SaysNothing}
REFUSALS = [check.name for check in CHECKS if check.group == "errors" and check.name not in FAULTS]
SEEN_BY_THE_SDK = {"metrics_are_named_with_their_reduction", "a_refused_call_does_not_block_the_next"}


@pytest.fixture
def outcomes(rates):
    def run(url, *names):
        lab = Lab(url, "tml-test", MODEL)
        vars(lab).update(rates)
        return {one.check.name: one for one in run_checks([check for check in CHECKS if check.name in names], lab)}

    return run


@pytest.mark.parametrize("name", FAULTS)
def test_a_small_fault_is_seen(with_fault, outcomes, tmp_path, name):
    fault = FAULTS[name]
    with with_fault(**(fault(tmp_path) if callable(fault) else fault)) as url:
        found = outcomes(url, name)[name]
    assert found.outcome is Outcome.FAILED, found
    assert name in SEEN_BY_THE_SDK or "Error" not in found.detail.partition(":")[0]


def test_refusals_that_name_nothing_are_seen(with_fault, outcomes):
    with with_fault(**SAYS_NOTHING) as url:
        found = outcomes(url, *REFUSALS)
    assert {name for name in REFUSALS if found[name].outcome is Outcome.FAILED} == set(REFUSALS)


def test_every_check_has_a_fault_that_it_sees():
    assert {*FAULTS, *REFUSALS} == {check.name for check in CHECKS}
    assert not conformance_number_faults.FAULTS.keys() & conformance_wire_faults.FAULTS.keys()


def test_a_server_that_leaves_custom_losses_to_the_client_is_not_checked_for_them(with_fault, outcomes):
    name = "a_custom_loss_on_the_server_is_the_clients"
    with with_fault(**answers("client/config", says(custom_loss_server_side=False))) as url:
        found = outcomes(url, name)[name]
    assert (found.outcome, "custom_loss_server_side" in found.detail) == (Outcome.SKIPPED, True)


def test_a_server_that_refuses_an_optimizer_by_name_fails_its_check_with_that_sentence(with_fault, outcomes):
    name = "dimuon_is_another_optimizer"
    with with_fault(**asks("create_model", says(optimizer_config={"type": "sgd"}))) as url:
        found = outcomes(url, name)[name]
    assert (found.outcome, "sgd" in found.detail) == (Outcome.FAILED, True), found
