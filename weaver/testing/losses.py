"""`check_loss`: what every backend relies on when it calls a loss."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.autograd.gradcheck import GradcheckError, gradcheck

from weaver.backend import Pass
from weaver.domain import Datum
from weaver.errors import WeaverError
from weaver.evaluation import evaluate, evaluate_batch
from weaver.loss import Loss, LossOutput
from weaver.testing.making import Making, config_of, without_optional

_TOLERANCE: Final = 1e-4
"""Of float32 against float64."""


def check_loss(
    loss: Loss,
    *,
    config: Mapping[str, float | str] | None = None,
    data: Sequence[Datum] | None = None,
    stops_gradients: bool = False,
    seed: int = 0,
) -> None:
    """Call a loss as backends do, on random data of the shapes that its record declares. Raise AssertionError where it

    - raises, returns no finite scalar, or none that depends on the logprobs; or other outputs than declared;
    - has a gradient that is not its value's derivative (in float64, by finite differences). For a loss that stops
      gradients on purpose say `stops_gradients`: its gradient is then compared between float32 and float64 only;
    - gives something else for a datum when others are computed before it, or when it is computed again;
    - gives another value where no gradient is asked for;
    - changes what it is given.

    `data` replaces the random data, for a loss that needs them to hang together; `config` is what a client would send.
    """
    effective = config_of(loss, config or {})
    making = Making(seed, vocabulary=50)
    sets = [data] if data is not None else _made(loss, making)
    for given in sets:
        one = Pass("model", given, loss, effective, backward=True)
        logprobs = [torch.from_numpy(making.logprobs(datum)) for datum in given]
        try:
            _check(one, logprobs, stops_gradients)
        except WeaverError as error:
            raise AssertionError(str(error)) from error


def _made(loss: Loss, making: Making) -> list[Sequence[Datum]]:
    sets: list[Sequence[Datum]] = []
    for rank in loss.target_ranks:
        made = making.data(loss, targets=None if rank == 1 else 3)
        sets += [made, without_optional(loss, made)]
    return sets


def _check(one: Pass, logprobs: Sequence[torch.Tensor], stops_gradients: bool) -> None:
    first = _run(one, logprobs)
    again = _run(one, logprobs, backwards=True)
    _same(one, first, again, "gives another result when data are computed in another order, or again: it keeps a state")
    forward = _run(Pass(one.model_id, one.data, one.loss, one.config, backward=False), logprobs)
    _same(one, first[:1], forward[:1], "gives another value where no gradient is asked for")
    _check_damage(one, logprobs)
    _check_gradients(one, logprobs, first[1], stops_gradients)


def _run(one: Pass, logprobs: Sequence[torch.Tensor], *, backwards: bool = False) -> list[list[Any]]:
    """Values, gradients and outputs, of each datum or of the batch."""
    if one.loss.batch:
        batch = evaluate_batch(one, logprobs)
        return [[batch.loss], list(batch.gradients), list(batch.outputs)]
    order = range(len(logprobs))
    found = {index: evaluate(one, index, logprobs[index]) for index in (reversed(order) if backwards else order)}
    each = [found[index] for index in order]
    return [[one.loss for one in each], [one.gradient for one in each], [one.outputs for one in each]]


def _same(one: Pass, first: list[list[Any]], second: list[list[Any]], broken: str) -> None:
    for these, those in zip(first, second, strict=True):
        for index, (this, that) in enumerate(zip(these, those, strict=True)):
            pairs = [(this[name], that[name]) for name in this] if isinstance(this, dict) else [(this, that)]
            assert all(np.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in pairs if a is not None and b is not None), (
                f"the loss {one.loss.name!r} {broken} (data[{index}]: {this} and {that})"
            )


def _check_damage(one: Pass, logprobs: Sequence[torch.Tensor]) -> None:
    """Called as it is, on what can be compared afterwards."""
    leaves = [lp.clone() for lp in logprobs]
    inputs = [_tensors(one, datum, torch.float32) for datum in one.data]
    kept = [{name: tensor.clone() for name, tensor in mine.items()} for mine in inputs]
    config = dict(one.config)
    function: Any = one.loss.function
    with torch.no_grad():
        calls = [(leaves, inputs)] if one.loss.batch else list(zip(leaves, inputs, strict=True))
        for leaf, mine in calls:
            function(leaf, mine, config)
    assert config == dict(one.config), f"the loss {one.loss.name!r} changes its config"
    for index, (leaf, before) in enumerate(zip(leaves, logprobs, strict=True)):
        assert torch.equal(leaf, before), f"the loss {one.loss.name!r} changes the logprobs of data[{index}] in place"
    for index, (mine, before_mine) in enumerate(zip(inputs, kept, strict=True)):
        assert mine.keys() == before_mine.keys(), f"the loss {one.loss.name!r} changes the inputs of data[{index}]"
        for name, tensor in mine.items():
            assert torch.equal(tensor.nan_to_num(7), before_mine[name].nan_to_num(7)), (
                f"the loss {one.loss.name!r} changes the input {name!r} of data[{index}] in place"
            )


def _check_gradients(
    one: Pass, logprobs: Sequence[torch.Tensor], found: Sequence[torch.Tensor], stops_gradients: bool
) -> None:
    leaves = [lp.double().requires_grad_() for lp in logprobs]
    inputs = [_tensors(one, datum, torch.float64) for datum in one.data]
    expected = torch.autograd.grad(_total(one, leaves, inputs), leaves, allow_unused=True)
    for index, (gradient, wanted) in enumerate(zip(found, expected, strict=True)):
        wanted = torch.zeros_like(leaves[index]) if wanted is None else wanted
        assert torch.allclose(gradient.double(), wanted, rtol=_TOLERANCE, atol=_TOLERANCE), (
            f"the loss {one.loss.name!r} has another gradient in float32 than in float64 for data[{index}]: "
            f"{gradient.tolist()} and {wanted.tolist()}"
        )
    if stops_gradients:
        return
    try:
        gradcheck(lambda *given: _total(one, given, inputs), leaves)
    except GradcheckError as error:
        raise AssertionError(
            f"the loss {one.loss.name!r}: its gradient is not the derivative of its value. If it stops gradients on "
            f"purpose, say stops_gradients=True. {error}"
        ) from error


def _total(one: Pass, leaves: Sequence[torch.Tensor], inputs: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    function: Any = one.loss.function
    if one.loss.batch:
        return _value(function(list(leaves), list(inputs), one.config))
    values = [_value(function(leaf, mine, one.config)) for leaf, mine in zip(leaves, inputs, strict=True)]
    return torch.stack(values).sum()


def _value(returned: Any) -> torch.Tensor:
    value: torch.Tensor = returned.loss if isinstance(returned, LossOutput) else returned
    return value


def _tensors(one: Pass, datum: Datum, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    found = {}
    for declared in one.loss.inputs:
        if declared.name in datum.loss_fn_inputs:
            tensor = torch.from_numpy(np.array(datum.loss_fn_inputs[declared.name]))
            tensor = tensor.reshape(()) if declared.shape == "scalar" else tensor
            found[declared.name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return found
