"""`check_loss`: what every backend relies on when it calls a loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch.autograd.gradcheck import GradcheckError, gradcheck

from weaver.backend import Pass
from weaver.domain import Datum
from weaver.errors import WeaverError
from weaver.evaluation import evaluate, evaluate_batch
from weaver.loss import ENTROPY, Loss, LossOutput
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

    A loss with `spellings` is called with data of each; one whose config has an entropy's coefficient both without
    entropies and, where that is 0.5 or what `config` gives, with them. One that is `forward_only` has no gradients.

    `data` replaces the random data, for a loss that needs them to hang together; `config` is what a client would send.
    """
    making = Making(seed, vocabulary=50)
    for effective in _configs(loss, config or {}):
        for given in [data] if data is not None else _made(loss, making, loss.wants_entropy(effective)):
            one = Pass("model", given, loss, effective, backward=not loss.forward_only)
            try:
                _check(one, _scores(one, making), stops_gradients)
            except WeaverError as error:
                raise AssertionError(str(error)) from error


def _configs(loss: Loss, given: Mapping[str, float | str]) -> list[Mapping[str, float | str]]:
    """As given and, if that asks for no entropies and could, with them."""
    plain = config_of(loss, given)
    fields = [field.name for field in loss.config if field.role == "entropy" and field.name not in given]
    return [plain, *(config_of(loss, {**given, name: 0.5}) for name in fields)]


def _made(loss: Loss, making: Making, entropy: bool) -> list[Sequence[Datum]]:
    """Of each rank, or with entropies of the first: where tokens have several targets these are not theirs."""
    sets: list[Sequence[Datum]] = []
    for rank in loss.target_ranks[:1] if entropy else loss.target_ranks:
        for spelling in loss.spellings or ((),):
            made = making.data(loss, targets=None if rank == 1 else 3, spelling=spelling)
            sets += [made, without_optional(loss, made)]
    return sets


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """What a backend computes of the data: logprobs, (T,) or (T, K), and entropies, (T,), where they are wanted."""

    logprobs: Sequence[torch.Tensor]
    entropies: Sequence[torch.Tensor]

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [*self.logprobs, *self.entropies]

    def of(self, tensors: Sequence[torch.Tensor]) -> "_Scores":
        """Others of the same shapes."""
        return _Scores(tensors[: len(self.logprobs)], tensors[len(self.logprobs) :])

    def named(self) -> list[dict[str, torch.Tensor]]:
        """The entropies as the function finds them among its inputs."""
        return [{ENTROPY: each} for each in self.entropies] or [{} for _ in self.logprobs]


def _scores(one: Pass, making: Making) -> _Scores:
    logprobs = [torch.from_numpy(making.logprobs(datum)) for datum in one.data]
    wanted = one.data if one.wants_entropy else ()
    return _Scores(logprobs, [torch.from_numpy(making.entropies(datum)) for datum in wanted])


def _check(one: Pass, scores: _Scores, stops_gradients: bool) -> None:
    first = _run(one, scores)
    again = _run(one, scores, backwards=True)
    _same(one, first, again, "gives another result when data are computed in another order, or again: it keeps a state")
    forward = _run(replace(one, backward=False), scores)
    _same(one, first[:1], forward[:1], "gives another value where no gradient is asked for")
    _check_damage(one, scores)
    if one.backward:
        _check_gradients(one, scores, first[1] + first[2], stops_gradients)


def _run(one: Pass, scores: _Scores, *, backwards: bool = False) -> list[list[Any]]:
    """Values, gradients by logprobs and by entropies, and outputs, of each datum or of the batch."""
    if one.loss.batch:
        batch = evaluate_batch(one, scores.logprobs, scores.entropies)
        by_entropy = [gradient for gradient in batch.entropy_gradients if gradient is not None]
        return [[batch.loss], list(batch.gradients), by_entropy, list(batch.outputs)]
    order = range(len(one.data))
    entropies = scores.entropies or [None] * len(one.data)
    found = {
        index: evaluate(one, index, scores.logprobs[index], entropies[index])
        for index in (reversed(order) if backwards else order)
    }
    each = [found[index] for index in order]
    by_entropy = [one.entropy_gradient for one in each if one.entropy_gradient is not None]
    return [[one.loss for one in each], [one.gradient for one in each], by_entropy, [one.outputs for one in each]]


def _same(one: Pass, first: list[list[Any]], second: list[list[Any]], broken: str) -> None:
    for these, those in zip(first, second, strict=True):
        for index, (this, that) in enumerate(zip(these, those, strict=True)):
            pairs = [(this[name], that[name]) for name in this] if isinstance(this, dict) else [(this, that)]
            assert all(np.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in pairs if a is not None and b is not None), (
                f"the loss {one.loss.name!r} {broken} (data[{index}]: {this} and {that})"
            )


def _check_damage(one: Pass, scores: _Scores) -> None:
    """Called as it is, on what can be compared afterwards."""
    copies = scores.of([each.clone() for each in scores.tensors])
    leaves, logprobs = list(copies.logprobs), scores.logprobs
    inputs = _inputs(one, copies, torch.float32)
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


def _check_gradients(one: Pass, scores: _Scores, found: Sequence[torch.Tensor], stops_gradients: bool) -> None:
    leaves = [each.double().requires_grad_() for each in scores.tensors]
    expected = torch.autograd.grad(_total(one, scores.of(leaves)), leaves, allow_unused=True)
    for number, (gradient, wanted) in enumerate(zip(found, expected, strict=True)):
        wanted = torch.zeros_like(leaves[number]) if wanted is None else wanted
        where = f"data[{number % len(one.data)}]" + (" by entropy" if number >= len(one.data) else "")
        assert torch.allclose(gradient.double(), wanted, rtol=_TOLERANCE, atol=_TOLERANCE), (
            f"the loss {one.loss.name!r} has another gradient in float32 than in float64 for {where}: "
            f"{gradient.tolist()} and {wanted.tolist()}"
        )
    if stops_gradients:
        return
    try:
        gradcheck(lambda *given: _total(one, scores.of(given)), leaves)
    except GradcheckError as error:
        raise AssertionError(
            f"the loss {one.loss.name!r}: its gradient is not the derivative of its value. If it stops gradients on "
            f"purpose, say stops_gradients=True. {error}"
        ) from error


def _total(one: Pass, scores: _Scores) -> torch.Tensor:
    function: Any = one.loss.function
    inputs = _inputs(one, scores, torch.float64)
    if one.loss.batch:
        return _value(function(list(scores.logprobs), inputs, one.config))
    values = [_value(function(leaf, mine, one.config)) for leaf, mine in zip(scores.logprobs, inputs, strict=True)]
    return torch.stack(values).sum()


def _value(returned: Any) -> torch.Tensor:
    value: torch.Tensor = returned.loss if isinstance(returned, LossOutput) else returned
    return value


def _inputs(one: Pass, scores: _Scores, dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    """What the function gets of each datum beside its logprobs."""
    return [{**_tensors(one, datum, dtype), **entropy} for datum, entropy in zip(one.data, scores.named(), strict=True)]


def _tensors(one: Pass, datum: Datum, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    found = {}
    for declared in one.loss.inputs_of(datum.loss_fn_inputs):
        if declared.name in datum.loss_fn_inputs:
            tensor = torch.from_numpy(np.array(datum.loss_fn_inputs[declared.name]))
            tensor = tensor.reshape(()) if declared.shape == "scalar" else tensor
            found[declared.name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return found
