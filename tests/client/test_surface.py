"""Every name, parameter, field and default of nex-weaver 1.19.2's public API, compared with ours."""

import json
from pathlib import Path

import pytest

from .surface import surface

THEIRS = json.loads((Path(__file__).parent / "nex_weaver_1_19_2.json").read_text())
HANDLES = ("AsyncOperationHandle", "OperationHandle")
METHODS = "async clients' methods are functions that return coroutines: what they do is written once for both clients"
BESIDE = "the async client is beside the blocking one, for one stub says what both return"
RECORD = "handles are no dataclasses: nobody makes them by hand, and `operation_id` is a property"

# Where a path begins so, the two differ, and why.
DIFFERENCES = {
    **{(module, name, "fields"): RECORD for name in HANDLES for module in ("weaver", "weaver.operations")},
    **{(module, name, "frozen"): RECORD for name in HANDLES for module in ("weaver", "weaver.operations")},
    **{(module, name, "parameters"): RECORD for name in HANDLES for module in ("weaver", "weaver.operations")},
    **{
        (module, name, "members", "operation_id"): RECORD
        for name in HANDLES
        for module in ("weaver", "weaver.operations")
    },
    ("weaver.sampling_client", "AsyncSamplingClient"): BESIDE,
    ("weaver.training_client", "AsyncTrainingClient"): BESIDE,
    ("weaver.training_pipeline", "T"): "a type variable of its own making",
}


def differences(theirs, ours, path=()):
    """The paths at which two descriptions differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        missing = object()
        for name in sorted(theirs.keys() | ours.keys()):
            yield from differences(theirs.get(name, missing), ours.get(name, missing), (*path, name))
    elif theirs != ours:
        yield path, theirs, ours


def is_known(path, theirs, ours):
    if path[-1] == "kind" and path[1].startswith("Async") and (theirs, ours) == ("coroutine", "method"):
        return METHODS
    return path in DIFFERENCES


def test_the_public_api_differs_only_where_a_reason_is_given():
    found = [one for one in differences(THEIRS, surface()) if not is_known(*one)]
    assert found == []


def test_every_difference_that_is_listed_is_there():
    found = {path for path, _, _ in differences(THEIRS, surface())}
    assert DIFFERENCES.keys() <= found


@pytest.mark.parametrize("module", THEIRS)
def test_the_record_has_something_to_compare(module):
    assert len(THEIRS[module]) >= 1
    assert sum(len(names) for names in THEIRS.values()) > 50


def test_a_change_of_ours_would_be_seen():
    ours = surface()
    ours["weaver.types"]["AdamParams"]["fields"]["weight_decay"] = "0.0"
    ours["weaver.training_client"]["TrainingClient"]["members"].pop("load_state")
    found = {path[1] for path in (one[0] for one in differences(THEIRS, ours)) if not is_known(path, None, None)}
    assert {"AdamParams", "TrainingClient"} <= found


def test_the_names_of_weaver_are_those_it_lists():
    import weaver

    assert set(THEIRS["weaver"]) | {"__version__"} == set(weaver.__all__)
    for name in weaver.__all__:
        assert getattr(weaver, name) is not None
    assert set(weaver.__all__) <= set(dir(weaver))
    with pytest.raises(AttributeError, match="no attribute 'TrainingClients'"):
        weaver.TrainingClients  # noqa: B018
