"""The interpreter of custom losses: what it may run, it runs as torch does; everything else is refused by name."""

import operator
from dataclasses import replace

import pytest
import torch

from weaver.domain import GraphInput, GraphNode, LossGraph, NodeRef, TorchConstant
from weaver.errors import InvalidInput
from weaver.plugins import graph_interpreter, graph_operations
from weaver.plugins.custom_loss import loss_of

LP = NodeRef("logprobs")


def function(target, *args, name="n", **kwargs):
    return GraphNode("call_function", name, target, args, kwargs)


def method(target, *args, name="n", **kwargs):
    return GraphNode("call_method", name, target, args, kwargs)


def graph(*nodes, inputs=(), rank=1, output=None):
    """Nodes between the placeholders and an output, which is the sum of the last one."""
    names = [("logprobs", rank), *inputs]
    placeholders = [GraphNode("placeholder", name, name, (), {}) for name, _ in names]
    last = NodeRef(nodes[-1].name) if nodes else LP
    total = method("sum", last, name="total")
    end = GraphNode("output", "output", "output", ((NodeRef("total"), {}) if output is None else output,), {})
    return LossGraph("test", tuple(GraphInput(*one) for one in names), (*placeholders, *nodes, total, end))


def run(graph, logprobs, **inputs):
    return loss_of(graph).function(logprobs, inputs, {}).loss


X = torch.tensor([-1.5, -0.5, -2.0, -0.25])


def refused(nodes, message, logprobs=X, **options):
    with pytest.raises(InvalidInput, match=message):
        run(graph(*nodes, **options), logprobs)


# What runs


def test_a_graph_computes_value_and_gradient():
    leaf = X.clone().requires_grad_()
    nodes = (
        method("exp", LP, name="p"),
        function("operator.mul", NodeRef("p"), 3, name="q"),
        function("torch.where", NodeRef("mask"), NodeRef("q"), float("inf"), name="unused"),
    )
    loss = run(graph(*nodes, function("operator.neg", NodeRef("q")), inputs=[("mask", 1)]), leaf, mask=X > -1)
    loss.backward()
    torch.testing.assert_close(leaf.grad, -3 * X.exp())


def test_slices_tuples_ellipsis_and_constants_mean_what_they_mean_in_python():
    at = (slice(1, None, 2), None)
    nodes = (
        function("operator.getitem", LP, at, name="a"),
        function("operator.getitem", NodeRef("a"), (..., 0), name="b"),
        method("to", NodeRef("b"), TorchConstant("dtype", "float64"), name="c"),
        function("torch.zeros", (2,), dtype=TorchConstant("dtype", "float64"), device=TorchConstant("device", "cpu")),
        function("operator.add", NodeRef("c"), NodeRef("n"), name="d"),
    )
    assert run(graph(*nodes), X).dtype == torch.float64
    assert run(graph(*nodes), X).item() == X[1::2].sum()


ARGUMENTS = {  # where one float tensor is not what a function takes
    "gather": (0, torch.tensor([0, 2])), "take_along_dim": (torch.tensor([0, 2]), 0),
    "index_select": (0, torch.tensor([1])),
    "scatter": (0, torch.tensor([0]), torch.tensor([1.0])), "scatter_add": (0, torch.tensor([0]), torch.tensor([1.0])),
    "masked_fill": (X > -1, 0.0), "masked_select": (X > -1,), "select": (0, 1), "narrow": (0, 1, 2), "topk": (2,),
    "logsumexp": (0,), "softmax": (0,), "log_softmax": (0,), "cumsum": (0,), "cumprod": (0,), "cummax": (0,),
    "cummin": (0,), "logcumsumexp": (0,), "reshape": ((2, 2),), "view": (2, 2), "unflatten": (0, (2, 2)),
    "unsqueeze": (0,), "transpose": (0, 0), "swapaxes": (0, 0), "permute": ((0,),), "movedim": (0, 0), "flip": ((0,),),
    "roll": (1,), "broadcast_to": ((3, 4),), "tile": ((2,),), "expand": (3, 4), "expand_as": (X,), "repeat": (2,),
    "repeat_interleave": (2,), "clamp": (-1.0, 0.0), "clip": (-1.0, 0.0), "clamp_min": (-1.0,), "clamp_max": (-1.0,),
    "lerp": (X, 0.5), "addcmul": (X, X), "addcdiv": (X, X), "where": (X > -1, X, X), "view_as": (X,), "size": (0,),
    "reshape_as": (X,), "type_as": (X,), "to": (torch.float64,), "new_zeros": (3,), "new_ones": (3,),
    "new_full": ((3,), 2.0), "outer": (X,), "dot": (X,), "sub": (X,),
}  # fmt: skip
MATRICES = {"tril", "triu", "diagonal", "mv", "mm", "matmul", "bmm", "t"}
INTEGERS = {"bitwise_not", "bitwise_and", "bitwise_or", "bitwise_xor"}
PAIRS = {
    "add", "subtract", "mul", "multiply", "div", "divide", "true_divide", "floor_divide", "remainder", "fmod",
    "pow", "float_power", "maximum", "minimum", "fmax", "fmin", "atan2", "arctan2", "logaddexp", "logaddexp2",
    "hypot", "xlogy", "eq", "ne", "not_equal", "lt", "less", "le", "less_equal", "gt", "greater", "ge",
    "greater_equal", "logical_and", "logical_or", "logical_xor", "isclose", "heaviside", "copysign", "bitwise_and",
    "bitwise_or", "bitwise_xor",
}  # fmt: skip


def arguments(name):
    """Arguments for a function or method of that name, the tensor first."""
    if name == "where":
        return (X > -1, X, X)
    if name in MATRICES:
        matrix = X.reshape(2, 2)
        second = {"mv": (X[:2],), "mm": (matrix,), "matmul": (matrix,), "bmm": (matrix[None],)}.get(name, ())
        return (matrix[None] if name == "bmm" else matrix, *second)
    x = torch.arange(4) if name in INTEGERS else X
    return (x, *((x,) if name in PAIRS else ARGUMENTS.get(name, ())))


@pytest.mark.parametrize("name", sorted(graph_operations.METHODS))
def test_every_method_is_bounded_on_shapes_and_does_what_torch_does(name):
    given = (X, X > -1, X) if name == "where" else arguments(name)
    found = graph_interpreter._run(method(name, *given), {}, graph_interpreter._Budget())
    same(found, getattr(given[0], name)(*given[1:]))


BOTH = sorted(name for name in graph_operations._BOTH if f"torch.{name}" in graph_operations.FUNCTIONS)


@pytest.mark.parametrize("name", BOTH)
def test_every_function_that_is_a_method_too_is_bounded_and_does_what_torch_does(name):
    given = arguments(name)
    found = graph_interpreter._run(function(f"torch.{name}", *given), {}, graph_interpreter._Budget())
    same(found, getattr(torch, name)(*given))


@pytest.mark.parametrize("name", sorted(graph_operations.FUNCTIONS - {"getattr"}))
def test_every_listed_function_exists(name):
    module, _, rest = name.partition(".")
    assert callable(operator.attrgetter(rest)(graph_interpreter._MODULES[module]))


def same(found, expected):
    if isinstance(expected, tuple) and not isinstance(expected, torch.Size):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, equal_nan=True)
    else:
        assert found == expected


def test_a_mask_picks_elements_and_their_number_bounds_the_next_node():
    picked = function("operator.getitem", LP, NodeRef("mask"), name="picked")
    nodes = (function("operator.gt", LP, -1, name="mask"), picked, method("exp", NodeRef("picked")))
    assert run(graph(*nodes), X) == X[X > -1].exp().sum()
    count = function("getattr", NodeRef("picked"), "shape", name="shape")
    number = function("operator.getitem", NodeRef("shape"), 0, name="number")
    size = function("operator.mul", NodeRef("number"), 10**8, name="size")
    refused((*nodes[:2], count, number, size, function("torch.zeros", NodeRef("size"))), "it makes 200000000 elements")
    assert run(graph(*nodes[:2], count, number, size, function("torch.zeros", NodeRef("size"))), X - 9) == 0


def test_sizes_are_checked_again_for_data_of_another_length():
    shape = function("getattr", LP, "shape", name="shape")
    length = function("operator.getitem", NodeRef("shape"), 0, name="length")
    squared = function("operator.pow", NodeRef("length"), 12, name="squared")
    loss = loss_of(graph(shape, length, squared, function("torch.ones", NodeRef("squared"))))
    assert loss.function(torch.zeros(2), {}, {}).loss == 4096
    assert loss.function(torch.zeros(2), {}, {}).loss == 4096
    with pytest.raises(InvalidInput, match="it makes 244140625 elements"):
        loss.function(torch.zeros(5), {}, {})


# What is hostile


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((function("os.system", "ls"),), r"graph.nodes\[1\] \('n'\) calls the function 'os.system', which cust"),
        ((function("torch.load", "x"),), "calls the function 'torch.load'"),
        ((function("torch.hub.load", "x"),), "calls the function 'torch.hub.load'"),
        ((function("builtins.eval", "1"),), "calls the function 'builtins.eval'"),
        ((function("operator.attrgetter", "__class__"),), "calls the function 'operator.attrgetter'"),
        ((function("operator.methodcaller", "x"),), "calls the function 'operator.methodcaller'"),
        ((function("torch.nn.functional.relu.__globals__", LP),), "calls the function"),
        ((function("torch.manual_seed", 1),), "calls the function 'torch.manual_seed'"),
        ((function("torch.rand", 3),), "calls the function 'torch.rand'"),
        ((method("__reduce__", LP),), "calls the method '__reduce__'"),
        ((method("numpy", LP),), "calls the method 'numpy'"),
        ((method("item", LP),), "calls the method 'item'"),
        ((method("exp_", LP),), "calls the method 'exp_'"),
        ((method("register_hook", LP, LP),), "calls the method 'register_hook'"),
        ((method("share_memory_", LP),), "calls the method 'share_memory_'"),
        ((function("getattr", LP, "__class__"),), r"reads the attribute \('__class__',\); custom losses may read T, "),
        ((function("getattr", LP, "grad_fn"),), "reads the attribute"),
        ((function("getattr", LP, "data"),), "reads the attribute"),
        ((function("getattr", LP, NodeRef("logprobs")),), "reads the attribute"),
        ((function("getattr", LP, "values"),), "a Tensor has no attribute 'values'"),
        ((function("torch.add", LP, LP, out=LP),), "passes out=NodeRef"),
        ((function("torch.nn.functional.relu", LP, inplace=True),), "passes inplace=True"),
        ((function("torch.sum", LP, hook=LP),), "passes hook=NodeRef"),
        ((method("to", LP, TorchConstant("device", "cuda")),), "uses the device 'cuda'"),
        ((method("to", LP, TorchConstant("dtype", "complex64")),), "uses the dtype 'complex64'"),
        ((method("to", LP, TorchConstant("module", "os")),), "uses the module 'os'"),
        ((method("to", LP, "cuda"),), "has the argument 'cuda'; the only strings are"),
        ((function("operator.mul", NodeRef("later"), 2),), "refers to 'later', which is not an earlier node"),
        ((function("operator.mul", NodeRef("n"), 2),), "refers to 'n', which is not an earlier node"),
        ((method("exp", LP), method("exp", LP)), "needs a name of its own"),
        ((method("exp", LP, name="a b"),), "needs a name of its own"),
        ((GraphNode("get_attr", "n", "weight", (), {}),), "is a 'get_attr'; custom losses only call"),
        ((GraphNode("call_module", "n", "m", (LP,), {}),), "is a 'call_module'"),
        ((GraphNode("placeholder", "n", "n", (), {}),), r"has the placeholders \['logprobs', 'n'\]; they must be"),
    ],
)  # fmt: skip
def test_a_graph_that_would_leave_torch_is_refused_when_it_is_made(nodes, message):
    refused(nodes, message)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((function("torch.zeros", 2**40),), f"it makes {2**40} elements; at most {2**24} may be made at once"),
        ((function("torch.arange", 10**15),), "it makes 10{15} elements"),
        ((method("expand", LP, 10**9, 4),), "it makes 4000000000 elements"),
        ((method("repeat", LP, 10**8),), "it makes 400000000 elements"),
        ((function("torch.nn.functional.pad", LP, (0, 10**9)),), "it makes 1000000004 elements"),
        (
            (
                function("torch.zeros", (10**5, 1), name="a"),
                function("torch.zeros", (1, 10**5), name="b"),
                function("torch.nn.functional.mse_loss", NodeRef("a"), NodeRef("b")),
            ),
            "the node 'n', torch.nn.functional.mse_loss, failed: it makes 10000000000 elements",
        ),
        (
            (function("torch.ones", 4000, 4000, name="a"), function("operator.matmul", NodeRef("a"), NodeRef("a"))),
            "with it all matrix products take 64000000000 multiplications",
        ),
        (
            tuple(function("torch.zeros", 2**24, name=f"z{n}") for n in range(9)),
            f"with it the graph makes {9 * 2**24} elements; at most {2**27}",
        ),
        ((function("operator.mul", [0], 10**9),), "mul takes tensors and numbers, not a list"),
        ((function("operator.mul", (0,), 10**9),), "mul takes tensors and numbers, not a tuple"),
        ((function("operator.mul", "sum", 10**9),), "mul takes tensors and numbers, not a str"),
        ((function("operator.mod", "sum", 3),), "mod takes tensors and numbers, not a str"),
        ((function("operator.pow", 9, 10**9),), "a number's exponent is at most 64"),
        ((function("operator.pow", 9, 63),), "it makes a int that custom losses cannot use"),
        ((function("operator.getitem", [1, 2], 0),), "a list cannot be indexed"),
        ((method("sum", 3),), "methods are called on tensors only"),
        ((function("torch.repeat_interleave", NodeRef("logprobs"), NodeRef("logprobs")),), "failed"),
        (
            (method("long", LP, name="i"), function("torch.repeat_interleave", LP, NodeRef("i"))),
            "the size of its result depends on values",
        ),
        (
            (method("sum", LP, name="s"), method("long", NodeRef("s"), name="i"),
             function("operator.getitem", LP, slice(None, NodeRef("i"), None))),
            "the size of its result depends on values",
        ),
        ((function("operator.getitem", LP, 9),), "IndexError: index 9 is out of bounds"),
    ],
)  # fmt: skip
def test_a_graph_that_would_cost_too_much_is_refused_before_it_costs(nodes, message):
    refused(nodes, message)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((LP,), "must return a loss and a dict of metrics"),
        ((3.0, {}), "must return a loss and a dict of metrics"),
        ((LP, {"loss:sum": LP}), "returns the metric 'loss:sum'; it must be a tensor named custom/"),
        ((LP, {"custom/a:max": LP}), "returns the metric 'custom/a:max'"),
        ((LP, {"custom/a:sum": 1.0}), "returns the metric 'custom/a:sum'"),
        ((LP, {"custom/a:sum": NodeRef("nobody")}), "refers to 'nobody'"),
    ],
)
def test_an_output_that_is_no_loss_is_refused(output, message):
    refused((), message, output=output)


def test_metrics_are_plain_numbers():
    output = (NodeRef("total"), {"custom/total:mean": NodeRef("total")})
    found = loss_of(graph(output=output)).function(X.clone().requires_grad_(), {}, {})
    assert found.metrics == {"custom/total:mean": pytest.approx(float(X.sum()))}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([("weights", 1)], r"inputs\[0\] must be 'logprobs'"),
        ([("logprobs", 0)], r"inputs\[0\] must be 'logprobs' with rank 1 or 2"),
        ([("logprobs", 1), ("weights", 3)], r"inputs\[1\].rank is 3; it must be 0, 1 or 2"),
        ([("logprobs", 1), ("logprobs", 1)], r"inputs\[1\].name is 'logprobs'; it must be a lowercase name of its own"),
        ([("logprobs", 1), ("__class__", 1), ("A", 1)], r"inputs\[2\].name is 'A'"),
        ([("logprobs", 1), ("target_tokens", 2)], "target_tokens has the rank of logprobs"),
        ([("logprobs", 1), *((f"i{n}", 1) for n in range(16))], "inputs has 17 entries"),
    ],
)
def test_inputs_that_are_none_are_refused(inputs, message):
    bare = replace(graph(), inputs=tuple(GraphInput(*one) for one in inputs))
    with pytest.raises(InvalidInput, match=message):
        loss_of(bare)


def test_too_many_nodes_and_arguments_are_refused():
    refused([method("exp", LP, name=f"e{n}") for n in range(1000)], r"graph.nodes has 1003 entries; at most 1000")
    refused([function("torch.cat", [LP] * 10_001)], "graph.nodes has more than 10000 arguments")
    last_first = replace(graph(), nodes=tuple(reversed(graph().nodes)))
    with pytest.raises(InvalidInput, match="must end with its one output"):
        loss_of(last_first)
