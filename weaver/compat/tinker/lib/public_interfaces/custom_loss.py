"""Losses as traced functions: of one datum's logprobs and of arrays that the datum brings."""

import builtins
import hashlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Concatenate, Final

from weaver.compat.tinker import types

if TYPE_CHECKING:
    import torch
    import torch.fx

PerDatumLossFn = Callable[Concatenate["torch.Tensor", ...], "tuple[torch.Tensor, Mapping[str, torch.Tensor]]"]
"""Gets one datum's logprobs and, by the names of its parameters, arrays of `loss_fn_inputs`; returns a scalar and
metrics named `custom/<name>:sum` or `custom/<name>:mean`."""

MAXIMUM_INPUTS: Final = 16
_MODULES: Final = {"torch", "math", "operator", "_operator"}
_TO_THE_HOST: Final = {"item", "numpy", "tolist"}
_METRIC: Final = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
_INPUT: Final = re.compile(r"[a-z_][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class LossHandle:
    """What `create_custom_loss` made, for `forward_backward_custom`. With a `loss_id` the service evaluates it."""

    name: str
    inputs: tuple[types.CustomLossInput, ...]
    session_id: str
    graph: "torch.fx.GraphModule" = field(repr=False, compare=False)
    loss_id: str | None = None

    @property
    def key(self) -> str:
        """The same for the same computation on the same inputs."""
        return hashlib.sha256(f"{self.graph.code}{self.inputs!r}".encode()).hexdigest()

    @property
    def input_names(self) -> tuple[str, ...]:
        """The `loss_fn_inputs` it reads beside the logprobs, in the order of its parameters."""
        return tuple(one.name for one in self.inputs[1:])


def trace_loss(fn: PerDatumLossFn, input_ranks: Mapping[str, types.CustomLossInputRank], session_id: str) -> LossHandle:
    """Trace a function with torch.fx. Raises ValueError, with what to change, for what a graph cannot hold."""
    fx: Any = import_module("torch.fx")
    inputs = _inputs(fn, input_ranks)
    try:
        graph = fx.symbolic_trace(fn)
    except Exception as error:
        raise _refusal(
            fn, f"cannot be traced: {error}. It must not branch on values of tensors, and calls torch and math only"
        ) from error
    for node in graph.graph.nodes:
        _check_node(fn, node)
    return LossHandle(_name(fn), inputs, session_id, graph)


def check_loss_inputs(handle: LossHandle, data: Sequence[types.Datum]) -> None:
    """Raise ValueError naming the datum that lacks an input of the loss, or has it in another rank."""
    targets, *others = handle.inputs
    wanted = [("target_tokens", targets), *((one.name, one) for one in others)]
    for index, datum in enumerate(data):
        for key, declared in wanted:
            where = f"data[{index}].loss_fn_inputs[{key!r}]"
            given = datum.loss_fn_inputs.get(key)
            if given is None:
                raise ValueError(f"{where} is missing; the loss {handle.name!r} reads it")
            rank = 1 if given.shape is None else len(given.shape)
            if rank != declared.rank:
                raise ValueError(
                    f"{where} has rank {rank}; the loss {handle.name!r} was created for {declared.name!r} of rank "
                    f"{declared.rank}"
                )


def run_loss_handle(
    handle: LossHandle, data: Sequence[types.Datum], logprobs_list: "Sequence[torch.Tensor]"
) -> "tuple[torch.Tensor, dict[str, float]]":
    """The sum of the losses of all data; of the metrics the sum or the mean, as their names say."""
    total: Any = 0
    sums: dict[str, float] = {}
    for datum, logprobs in zip(data, logprobs_list, strict=True):
        loss, metrics = handle.graph(logprobs, *(datum.loss_fn_inputs[name].to_torch() for name in handle.input_names))
        if loss.ndim != 0:
            raise ValueError(f"the loss {handle.name!r} returned the shape {tuple(loss.shape)}; it must be a scalar")
        total = total + loss
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach() if hasattr(value, "detach") else value)
    return total, {name: value / len(data) if name.endswith(":mean") else value for name, value in sums.items()}


def encode_graph(handle: LossHandle) -> types.CustomLossGraph:
    """The graph as data, in the wire's format 1."""
    qualified_name: Callable[[Any], str] = import_module("torch.fx.node")._get_qualified_name
    nodes = [_encode_node(handle.name, node, qualified_name) for node in handle.graph.graph.nodes]
    return types.CustomLossGraph(nodes=nodes)


def _encode_node(loss: str, node: Any, qualified_name: Callable[[Any], str]) -> types.CustomLossNode:
    target = qualified_name(node.target) if node.op == "call_function" else str(node.target)
    if target.startswith("_operator."):
        target = target[1:]  # where CPython keeps the functions of `operator`
    args = [_encode_argument(loss, one) for one in node.args]
    kwargs = {name: _encode_argument(loss, one) for name, one in node.kwargs.items()}
    return types.CustomLossNode(op=node.op, name=node.name, target=target, args=args, kwargs=kwargs)


def _encode_argument(loss: str, value: Any) -> Any:
    """What JSON has stands for itself; the rest is an object whose one key says what it is."""

    def encode(inner: Any) -> Any:
        return _encode_argument(loss, inner)

    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case list():
            return [encode(one) for one in value]
        case tuple():
            return {"tuple": [encode(one) for one in value]}
        case dict() if all(isinstance(key, str) for key in value):
            return {"dict": {key: encode(one) for key, one in value.items()}}
        case slice():
            return {"slice": [encode(one) for one in (value.start, value.stop, value.step)]}
    if value is ...:
        return {"ellipsis": True}
    if type(value).__module__.startswith("torch.fx"):
        return {"ref": value.name}
    kind = type(value).__name__
    if type(value).__module__ == "torch" and kind in ("dtype", "device", "layout", "memory_format"):
        return {kind: str(value).removeprefix("torch.")}
    raise ValueError(f"create_custom_loss: {loss} has an argument of type {kind}, which a graph cannot hold")


def _inputs(
    fn: PerDatumLossFn, input_ranks: Mapping[str, types.CustomLossInputRank]
) -> tuple[types.CustomLossInput, ...]:
    parameters = list(inspect.signature(fn).parameters.values())
    names = [parameter.name for parameter in parameters]
    if names[:1] != ["logprobs"]:
        raise _refusal(fn, "must have 'logprobs' as its first parameter, then the loss_fn_inputs it reads")
    if len(names) > MAXIMUM_INPUTS:
        raise _refusal(fn, f"has {len(names)} parameters; at most {MAXIMUM_INPUTS} are read, logprobs among them")
    for parameter in parameters:
        _check_parameter(fn, parameter)
    if set(input_ranks) != set(names):
        raise _refusal(fn, f"has the parameters {names}; input_ranks must name the same, not {sorted(input_ranks)}")
    if input_ranks["logprobs"] == 0:
        raise _refusal(fn, "gets logprobs of rank 1, (T,), or 2, (T, K); input_ranks says 0")
    return tuple(types.CustomLossInput(name=name, rank=input_ranks[name]) for name in names)


def _check_parameter(fn: PerDatumLossFn, parameter: inspect.Parameter) -> None:
    name = parameter.name
    if not _INPUT.fullmatch(name):
        raise _refusal(fn, f"has the parameter {name!r}; a name has lower-case letters, digits and underscores")
    if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
        raise _refusal(fn, f"has the parameter {name!r}, which is not a plain positional one")
    if parameter.default is not parameter.empty:
        raise _refusal(fn, f"has a default for {name!r}; every input is read from the data")


def _check_node(fn: PerDatumLossFn, node: Any) -> None:
    match node.op:
        case "call_function":
            module = getattr(node.target, "__module__", None) or ""
            if node.target is not builtins.getattr and module.partition(".")[0] not in _MODULES:
                called = getattr(node.target, "__qualname__", node.target)
                raise _refusal(fn, f"calls {called!r} of {module or 'no module'!r}; it may call torch and math only")
        case "call_method":
            _check_method(fn, str(node.target))
        case "call_module":
            raise _refusal(fn, f"calls the module {node.target!r}; use functions like torch.nn.functional's")
        case "get_attr":
            raise _refusal(fn, f"holds the tensor {node.target!r}; it may read logprobs and inputs it names only")
        case "output":
            _check_output(fn, node.args[0], type(node))


def _check_method(fn: PerDatumLossFn, method: str) -> None:
    if not hasattr(import_module("torch").Tensor, method):
        raise _refusal(fn, f"calls {method}(), which torch.Tensor does not have")
    if method == "backward":
        raise _refusal(fn, "calls backward(); return the loss instead, forward_backward_custom goes backward")
    if method in _TO_THE_HOST:
        raise _refusal(fn, f"calls {method}(), which makes a Python value; keep tensors, for metrics too")


def _check_output(fn: PerDatumLossFn, output: Any, node: type) -> None:
    if not (isinstance(output, tuple | list) and len(output) == 2):
        raise _refusal(fn, "must return (loss, metrics)")
    loss, metrics = output
    if not isinstance(loss, node):
        raise _refusal(fn, f"must return the loss as a tensor, not {loss!r}")
    if not isinstance(metrics, dict):
        raise _refusal(fn, f"must return its metrics as a dict, not {metrics!r}")
    for name, value in metrics.items():
        if not (isinstance(name, str) and _METRIC.fullmatch(name)):
            raise _refusal(fn, f"names a metric {name!r}; it must be custom/<name>:sum or custom/<name>:mean")
        if not isinstance(value, node):
            raise _refusal(fn, f"must return the metric {name!r} as a tensor, not {value!r}")


def _refusal(fn: PerDatumLossFn, why: str) -> ValueError:
    return ValueError(f"create_custom_loss: {_name(fn)} {why}")


def _name(fn: PerDatumLossFn) -> str:
    return str(getattr(fn, "__name__", type(fn).__name__))
