"""What the drop-in's tests share: doing the same lines with the installed SDK and with ours, and comparing."""

import dataclasses

import numpy as np
import pydantic
import pytest
import tinker as theirs
import torch

import weaver.compat.tinker as ours


def plain(value):
    """A value as data that compare equal, whichever library's class it is an instance of."""
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, repr(value.tolist()))
    if isinstance(value, torch.Tensor):
        return ("torch", str(value.dtype), tuple(value.shape), repr(value.tolist()))
    if dataclasses.is_dataclass(value):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return (type(value).__name__, fields)
    if isinstance(value, pydantic.BaseModel):
        return (type(value).__name__, {name: plain(getattr(value, name)) for name in type(value).model_fields})
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(plain, value)]
    return (type(value).__name__, repr(value))


def outcome(make, library):
    try:
        return plain(make(library))
    except Exception as error:  # noqa: BLE001
        return type(error).__name__


@pytest.fixture(scope="session")
def as_plain():
    return plain


@pytest.fixture(scope="session")
def outcome_of():
    """What the lines give or which error they raise, in a form that can be compared."""
    return outcome


@pytest.fixture(scope="session")
def assert_same():
    """Lines that get a library give the same value with both, or an error of the same class."""

    def check(make):
        assert outcome(make, ours) == outcome(make, theirs)

    return check
