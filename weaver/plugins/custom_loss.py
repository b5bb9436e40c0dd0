"""The loss `custom`: a function that a client traced into a graph, checked here and run by `graph_interpreter`.

Nothing is ever evaluated as code: a name that is not in `graph_operations` refuses the graph.
"""

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from weaver.domain import GraphInput, GraphNode, LossGraph, NodeRef, TorchConstant
from weaver.errors import InvalidInput, MissingPackage
from weaver.loss import Loss, LossFunction, LossInput, LossOutput
from weaver.plugins import graph_operations as allowed

if TYPE_CHECKING:
    from torch import Tensor

MAXIMUM_NODES: Final = 1000
MAXIMUM_ARGUMENTS: Final = 10_000
MAXIMUM_INPUTS: Final = 16
METRIC: Final = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")

_SHAPES: Final = {0: "scalar", 1: "token", 2: "table"}
_INPUT: Final = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_NODE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def custom(logprobs: "Tensor", inputs: Mapping[str, "Tensor"], config: Mapping[str, Any]) -> "Tensor":
    """The name `custom` alone computes nothing; `loss_of` makes the losses that do."""
    raise InvalidInput("the loss 'custom' needs a graph")


def loss_of(graph: LossGraph) -> Loss:
    """The loss that a graph computes. Raises InvalidInput naming the node or input that is not allowed."""
    _check_inputs(graph)
    _check_nodes(graph)
    return Loss(
        f"custom {graph.name}",
        _Traced(graph),
        inputs=tuple(_declared(one) for one in graph.inputs[1:]),
        description="a function that a client traced",
        target_ranks=(graph.inputs[0].rank,),
        carries_others=True,
        graph=graph,
    )


class _Traced:
    """A `LossFunction` whose interpreter, and torch with it, is imported when it is first called."""

    def __init__(self, graph: LossGraph) -> None:
        self._graph = graph
        self._interpreter: LossFunction | None = None

    def __call__(
        self, logprobs: "Tensor", inputs: Mapping[str, "Tensor"], config: Mapping[str, Any]
    ) -> "Tensor | LossOutput":
        if self._interpreter is None:
            self._interpreter = _interpreter(self._graph)
        return self._interpreter(logprobs, inputs, config)


def _interpreter(graph: LossGraph) -> LossFunction:
    try:
        module = import_module("weaver.plugins.graph_interpreter")
    except ModuleNotFoundError as error:
        raise MissingPackage(f"custom losses need {error.name}: pip install 'weaver-train[peft]'") from error
    interpreter: LossFunction = module.Interpreter(graph)
    return interpreter


def _declared(one: GraphInput) -> LossInput:
    shape: Any = _SHAPES[one.rank]
    return LossInput(one.name, "any", shape)


def _check_inputs(graph: LossGraph) -> None:
    names = [one.name for one in graph.inputs]
    if names[:1] != ["logprobs"] or graph.inputs[0].rank not in (1, 2):
        raise InvalidInput("inputs[0] must be 'logprobs' with rank 1 or 2")
    if len(names) > MAXIMUM_INPUTS:
        raise InvalidInput(f"inputs has {len(names)} entries; a custom loss takes at most {MAXIMUM_INPUTS}")
    for index, one in enumerate(graph.inputs):
        if not _INPUT.fullmatch(one.name) or one.name in names[:index]:
            raise InvalidInput(f"inputs[{index}].name is {one.name!r}; it must be a lowercase name of its own")
        if one.rank not in _SHAPES:
            raise InvalidInput(f"inputs[{index}].rank is {one.rank}; it must be 0, 1 or 2")
        if one.name == "target_tokens" and one.rank != graph.inputs[0].rank:
            raise InvalidInput(f"inputs[{index}].rank is {one.rank}; target_tokens has the rank of logprobs")


def _check_nodes(graph: LossGraph) -> None:
    if len(graph.nodes) > MAXIMUM_NODES:
        raise InvalidInput(f"graph.nodes has {len(graph.nodes)} entries; at most {MAXIMUM_NODES} are run")
    placeholders = [node.target for node in graph.nodes if node.op == "placeholder"]
    if placeholders != [one.name for one in graph.inputs]:
        raise InvalidInput(f"graph.nodes has the placeholders {placeholders}; they must be the inputs, in their order")
    if [node.op for node in graph.nodes].count("output") != 1 or graph.nodes[-1].op != "output":
        raise InvalidInput("graph.nodes must end with its one output")
    earlier: set[str] = set()
    arguments = 0
    for index, node in enumerate(graph.nodes):
        where = f"graph.nodes[{index}] ({node.name!r})"
        if not _NODE.fullmatch(node.name) or node.name in earlier:
            raise InvalidInput(f"{where} needs a name of its own, of letters, digits and underscores")
        arguments += _check_node(where, node, earlier)
        if arguments > MAXIMUM_ARGUMENTS:
            raise InvalidInput(f"graph.nodes has more than {MAXIMUM_ARGUMENTS} arguments")
        earlier.add(node.name)


def _check_node(where: str, node: GraphNode, earlier: set[str]) -> int:
    """How many arguments it has."""
    match node.op:
        case "placeholder":
            right = not node.args and not node.kwargs
            if not right:
                raise InvalidInput(f"{where} has a default; an input has none")
        case "output":
            _check_output(where, node)
        case "call_function" if node.target not in allowed.FUNCTIONS:
            raise InvalidInput(f"{where} calls the function {node.target!r}, which custom losses may not call")
        case "call_method" if node.target not in allowed.METHODS:
            raise InvalidInput(f"{where} calls the method {node.target!r}, which custom losses may not call")
        case "call_function" | "call_method":
            _check_keywords(where, node.kwargs)
        case _:
            raise InvalidInput(f"{where} is a {node.op!r}; custom losses only call functions and methods")
    if node.target == "getattr" and node.op == "call_function":
        return _check_attribute(where, node, earlier)
    leaves = list(_leaves((node.args, dict(node.kwargs))))
    for leaf in leaves:
        _check_leaf(where, leaf, earlier)
    return len(leaves)


def _check_keywords(where: str, kwargs: Mapping[str, Any]) -> None:
    for key, value in kwargs.items():
        if key not in allowed.KEYWORDS or (key in allowed.FIXED and value is not allowed.FIXED[key]):
            raise InvalidInput(f"{where} passes {key}={value!r}, which custom losses may not pass")


def _check_attribute(where: str, node: GraphNode, earlier: set[str]) -> int:
    names = allowed.TENSOR_ATTRIBUTES | allowed.TUPLE_ATTRIBUTES
    match node.args:
        case (NodeRef() as ref, str(attribute)) if not node.kwargs and attribute in names:
            _check_leaf(where, ref, earlier)
            return 2
    raise InvalidInput(
        f"{where} reads the attribute {node.args[1:]!r}; custom losses may read {', '.join(sorted(names))}"
    )


def _check_leaf(where: str, leaf: Any, earlier: set[str]) -> None:
    match leaf:
        case NodeRef(name) if name not in earlier:
            raise InvalidInput(f"{where} refers to {name!r}, which is not an earlier node")
        case TorchConstant(kind, name) if name not in allowed.CONSTANTS.get(kind, ()):
            raise InvalidInput(f"{where} uses the {kind} {name!r}; custom losses run on the cpu, with real numbers")
        case str() if leaf not in allowed.WORDS:
            raise InvalidInput(f"{where} has the argument {leaf!r}; the only strings are {sorted(allowed.WORDS)}")


def _check_output(where: str, node: GraphNode) -> None:
    match node.args:
        case ((NodeRef(), dict(metrics)),) | ([NodeRef(), dict(metrics)],) if not node.kwargs:
            for name, value in metrics.items():
                if not METRIC.fullmatch(name) or not isinstance(value, NodeRef):
                    raise InvalidInput(
                        f"{where} returns the metric {name!r}; it must be a tensor named custom/<name>:sum or :mean"
                    )
        case _:
            raise InvalidInput(f"{where} must return a loss and a dict of metrics, all of them tensors")


def _leaves(value: Any) -> Iterator[Any]:
    match value:
        case tuple() | list():
            for one in value:
                yield from _leaves(one)
        case dict():
            for one in value.values():
                yield from _leaves(one)
        case slice():
            yield from _leaves((value.start, value.stop, value.step))
        case _:
            yield value
