"""Runs a custom loss's graph, node by node, with the functions that `graph_operations` lists.

Before a node runs, torch's meta device tells the size of what it will make from the shapes of its arguments alone, so
nothing is allocated that has not been bounded. A graph has no loops, so its nodes bound its work.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from weaver.domain import GraphNode, LossGraph, NodeRef, TorchConstant
from weaver.errors import InvalidInput
from weaver.loss import LossOutput
from weaver.plugins import graph_operations as allowed

MAXIMUM_ELEMENTS: Final = 2**24
MAXIMUM_TOTAL: Final = 2**27
"""Of one value, and of all values of one datum, which autograd keeps."""
MAXIMUM_WORK: Final = 2**30
"""Multiplications in matrix products, for one datum."""
MAXIMUM_EXPONENT: Final = 64

Values = dict[str, Any]
_MODULES: Final = {"torch": torch, "operator": operator, "math": math}


class Interpreter:
    """A `LossFunction`. It computes on the CPU: an index out of range there is an error, on a GPU the end of it."""

    def __init__(self, graph: LossGraph) -> None:
        self._graph = graph
        self._bounded: set[object] = set()

    def __call__(
        self, logprobs: torch.Tensor, inputs: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> LossOutput:
        given = [logprobs.cpu(), *(inputs[one.name].cpu() for one in self._graph.inputs[1:])]
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in given)
        values: Values = {}
        budget = None if shapes in self._bounded else _Budget()
        tensors = iter(given)
        for node in self._graph.nodes[:-1]:
            try:
                values[node.name] = next(tensors) if node.op == "placeholder" else _run(node, values, budget)
            except Exception as error:
                why = str(error) if isinstance(error, InvalidInput) else f"{type(error).__name__}: {error}"
                raise InvalidInput(f"the node {node.name!r}, {node.target}, failed: {why}") from error
        if budget is not None and not budget.depends_on_values:
            self._bounded.add(shapes)  # the same shapes lead to the same sizes
        loss, metrics = _resolve(self._graph.nodes[-1].args[0], values)
        return LossOutput(loss, {name: float(value.detach()) for name, value in metrics.items()})


class _Budget:
    """Counts what one datum's values and matrix products add up to."""

    def __init__(self) -> None:
        self._elements = self._work = 0
        self.depends_on_values = False

    def check(self, node: GraphNode, args: Any, kwargs: Any) -> None:
        """Raises InvalidInput where the node would make too much, or more than its arguments' shapes can tell."""
        operands = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        broadcast = _broadcast_elements(operands)
        if _has_mask(node, args):
            self.depends_on_values = True
            self._add(broadcast)
            return
        made = _shapes_made(node, args, kwargs)
        if made and node.target.removeprefix("torch.").removeprefix("operator.") in allowed.MATRIX_PRODUCTS:
            self._multiply(operands, made[0].numel())
        elif made:
            self._add(max(broadcast, sum(tensor.numel() for tensor in made)))

    def _add(self, elements: int) -> None:
        self._elements += elements
        if elements > MAXIMUM_ELEMENTS:
            raise InvalidInput(f"it makes {elements} elements; at most {MAXIMUM_ELEMENTS} may be made at once")
        if self._elements > MAXIMUM_TOTAL:
            raise InvalidInput(
                f"with it the graph makes {self._elements} elements; at most {MAXIMUM_TOTAL} may be made"
            )

    def _multiply(self, operands: Sequence[torch.Tensor], elements: int) -> None:
        """(n, k) times (k, m) takes n·k·m multiplications: the root of the three sizes' product."""
        self._add(elements)
        self._work += math.isqrt(math.prod(tensor.numel() for tensor in operands) * elements)
        if self._work > MAXIMUM_WORK:
            raise InvalidInput(
                f"with it all matrix products take {self._work} multiplications; at most {MAXIMUM_WORK} are done"
            )


def _shapes_made(node: GraphNode, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """What the node will make, without numbers. Raises InvalidInput where that depends on values."""
    try:
        with torch.no_grad(), torch.device("meta"):
            made = _call(node, _as_meta(args), _as_meta(kwargs))
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, NotImplementedError) or "meta tensor" in str(error):
            raise InvalidInput("the size of its result depends on values, not on shapes alone") from error
        raise
    return [value for value in (made if isinstance(made, tuple) else (made,)) if isinstance(value, torch.Tensor)]


def _broadcast_elements(operands: Sequence[torch.Tensor]) -> int:
    """What the operands have when each is as large as all together: some functions make that before they reduce it."""
    try:
        return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in operands)))
    except RuntimeError:
        return 0


def _run(node: GraphNode, values: Values, budget: _Budget | None) -> Any:
    args, kwargs = _resolve(node.args, values), _resolve(dict(node.kwargs), values)
    if budget is not None:
        budget.check(node, args, kwargs)
    return _checked(_call(node, args, kwargs))


def _call(node: GraphNode, args: Any, kwargs: Any) -> Any:
    """The one place where a name becomes a call; every name has been looked up in the allow-list."""
    if node.op == "call_method":
        assert node.target in allowed.METHODS
        if not args or not isinstance(args[0], torch.Tensor):
            raise InvalidInput("methods are called on tensors only")
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    assert node.target in allowed.FUNCTIONS
    if node.target == "getattr":
        return _attribute(*args)
    module, _, name = node.target.partition(".")
    if module != "torch":
        _check_operands(name, args)
    return operator.attrgetter(name)(_MODULES[module])(*args, **kwargs)


def _attribute(value: Any, name: str) -> Any:
    wanted = allowed.TENSOR_ATTRIBUTES if isinstance(value, torch.Tensor) else allowed.TUPLE_ATTRIBUTES
    if name not in wanted or not isinstance(value, torch.Tensor | tuple):
        raise InvalidInput(f"a {type(value).__name__} has no attribute {name!r} that custom losses may read")
    return getattr(value, name)


def _check_operands(name: str, args: Any) -> None:
    """Python's operators work on tensors and numbers: on lists and strings they would make as much as they please."""
    if name == "getitem":
        if not isinstance(args[0], torch.Tensor | tuple):
            raise InvalidInput(f"a {type(args[0]).__name__} cannot be indexed")
        return
    for arg in args:
        if not isinstance(arg, torch.Tensor | int | float):
            raise InvalidInput(f"{name} takes tensors and numbers, not a {type(arg).__name__}")
    if name == "pow" and not any(isinstance(arg, torch.Tensor) for arg in args) and abs(args[1]) > MAXIMUM_EXPONENT:
        raise InvalidInput(f"a number's exponent is at most {MAXIMUM_EXPONENT}")


def _checked(value: Any) -> Any:
    """Numbers stay those that torch can hold; nothing but values leaves a node."""
    match value:
        case bool() | float() | torch.Tensor() | torch.dtype() | torch.device() | torch.Size():
            return value
        case int() if -(2**63) <= value < 2**63:
            return value
        case tuple() if all(isinstance(one, torch.Tensor | int) for one in value):
            return value
    raise InvalidInput(f"it makes a {type(value).__name__} that custom losses cannot use")


def _has_mask(node: GraphNode, args: Any) -> bool:
    """Picks elements by a boolean tensor: how many it picks depends on values, and is at most how many there are."""
    if node.target == "operator.getitem":
        return isinstance(args[0], torch.Tensor) and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool
    return node.target in ("torch.masked_select", "masked_select")


def _resolve(value: Any, values: Values) -> Any:
    match value:
        case NodeRef(name):
            return values[name]
        case TorchConstant("device", name):
            return torch.device(name)
        case TorchConstant(_, name):
            return getattr(torch, name)
        case tuple():
            return tuple(_resolve(one, values) for one in value)
        case list():
            return [_resolve(one, values) for one in value]
        case dict():
            return {key: _resolve(one, values) for key, one in value.items()}
        case slice():
            return slice(*(_resolve(one, values) for one in (value.start, value.stop, value.step)))
    return value


def _as_meta(value: Any) -> Any:
    """The same arguments, as shapes without numbers."""
    match value:
        case torch.Tensor():
            return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
        case torch.device():
            return torch.device("meta")
        case torch.Size():
            return value
        case tuple() if hasattr(value, "values") and not callable(value.values):
            return type(value)([_as_meta(one) for one in value])
        case tuple():
            return tuple(_as_meta(one) for one in value)
        case list():
            return [_as_meta(one) for one in value]
        case dict():
            return {key: _as_meta(one) for key, one in value.items()}
        case slice():
            return slice(*(_as_meta(one) for one in (value.start, value.stop, value.step)))
    return value
