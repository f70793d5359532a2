"""An ONNX model of a JAX function, made of its jaxpr operation by operation.

This is own code because `jax2onnx` asks for an older orbax than the checkpoints of this package.
Calls are written out and loops unrolled. Values that do not depend on the inputs are computed here:
parameters, time grids and noise schedules become constants of the model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax import export
from jax.extend.core import Jaxpr, Literal
from onnx import TensorProto, helper, numpy_helper

_OPSET, _IR_VERSION = 18, 8  # of onnxruntime 1.14 and later
_END = np.iinfo(np.int64).max

_CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Primitives that call another jaxpr, and the parameter that holds it."""


def to_onnx(
    function: Callable, inputs: Mapping[str, Sequence[int]], output: str
) -> onnx.ModelProto:
    """Translates a function of float32 arrays to ONNX, with a batch of any size.

    Args:
      function: of arrays [B, ...], one for each input, to an array [B, ...].
      inputs: name and shape, without `B`, of each. The model leaves out inputs without effect.
      output: name of the result.

    Raises:
      ValueError: if an operation of the function is not covered; names the operation.
    """
    (batch,) = export.symbolic_shape("batch")
    examples = [jax.ShapeDtypeStruct((batch, *shape), np.float32) for shape in inputs.values()]
    closed = jax.make_jaxpr(function)(*examples)
    graph = _Graph(next(iter(inputs)))
    (result,) = graph.evaluate(closed.jaxpr, closed.consts, list(inputs))
    graph.nodes.append(helper.make_node("Identity", [graph.name(result)], [output]))
    nodes, needed = _needed(graph.nodes, output)
    (out_aval,) = closed.out_avals
    shapes = {**inputs, output: out_aval.shape[1:]}
    infos = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in shapes.items()
    }
    proto = helper.make_graph(
        nodes,
        "policy",
        [infos[name] for name in inputs if name in needed],
        [infos[output]],
        [tensor for tensor in graph.constants.values() if tensor.name in needed],
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(proto, opset_imports=[opset], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return model


class _Graph:
    """Nodes and constants so far. A value is a constant array, or the name of a tensor (str)."""

    def __init__(self, first_input: str):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple, onnx.TensorProto] = {}
        self._first_input = first_input
        self._count = 0

    def add(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or a list of several."""
        names = [f"{kind}_{self._count + index}" for index in range(outputs)]
        self._count += outputs
        operands = [self.name(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, operands, names, **attributes))
        return names[0] if outputs == 1 else names

    def name(self, value: Any) -> str:
        """Name of a value; equal constants are stored once."""
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            name = f"constant_{len(self.constants)}"
            self.constants[key] = numpy_helper.from_array(array, name)
        return self.constants[key].name

    def shape(self, sizes: Sequence[Any]) -> Any:
        """A shape as a tensor; the batch is the only size that is not a number."""
        if all(isinstance(size, int) for size in sizes):
            return np.array(sizes, np.int64)
        batch = self.add("Shape", self._first_input, start=0, end=1)
        parts = [np.array([s], np.int64) if isinstance(s, int) else batch for s in sizes]
        return self.add("Concat", *parts, axis=0)

    def evaluate(self, jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list:
        """Values of the results of a jaxpr."""
        variables = (*jaxpr.constvars, *jaxpr.invars)
        values = dict(zip(variables, (*constants, *arguments), strict=True))

        def read(atom: Any) -> Any:
            literal = isinstance(atom, Literal)
            return np.asarray(atom.val, atom.aval.dtype) if literal else values[atom]

        for equation in jaxpr.eqns:
            results = self._results(equation, [read(atom) for atom in equation.invars])
            values |= zip(equation.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _results(self, equation: Any, values: list) -> list:
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            return self._loop(params, values)
        if name in _CALLS:
            inner = params[_CALLS[name]]
            if isinstance(inner, Jaxpr):
                return self.evaluate(inner, (), values)
            return self.evaluate(inner.jaxpr, inner.consts, values)
        sizes = [size for each in equation.outvars for size in each.aval.shape]
        known = all(isinstance(size, int) for size in sizes)
        if known and not any(isinstance(value, str) for value in values) and "bits" not in name:
            results = equation.primitive.bind(*values, **params)
            return list(results) if equation.primitive.multiple_results else [results]
        if name not in _RULES:
            raise _uncovered(equation)
        results = _RULES[name](self, equation, *values)
        return results if isinstance(results, list) else [results]

    def _loop(self, params: dict[str, Any], values: list) -> list:
        body, first = params["jaxpr"], params["num_consts"]
        last = first + params["num_carry"]
        carry, rows = values[first:last], []
        order = range(params["length"])
        for index in reversed(order) if params["reverse"] else order:
            row = [
                self.add("Gather", each, np.int64(index), axis=0)
                if isinstance(each, str)
                else each[index]
                for each in values[last:]
            ]
            results = self.evaluate(body.jaxpr, body.consts, [*values[:first], *carry, *row])
            carry = results[: len(carry)]
            rows.append(results[len(carry) :])
        rows = rows[::-1] if params["reverse"] else rows
        first_axis = np.array([0], np.int64)
        stacked = [
            self.add("Concat", *(self.add("Unsqueeze", x, first_axis) for x in column), axis=0)
            for column in zip(*rows, strict=True)
        ]
        return [*carry, *stacked]


def _needed(nodes: list[onnx.NodeProto], output: str) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that the output depends on, and the names of all their tensors."""
    kept, needed = [], {output}
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1], needed


def _uncovered(equation: Any, form: str = "") -> ValueError:
    name = equation.primitive.name
    why = ": it draws random numbers otherwise than by jax.random.normal" * ("bits" in name)
    return ValueError(
        f"the policy uses JAX's operation {name!r}{form}, which the translation to ONNX does not "
        f"cover{why}. Export it as stablehlo, or add a rule to qam_jax/deploy/onnx_graph.py."
    )


# ---------------------------------------------------------------- rules: (graph, equation, *values)


def _simple(*kinds: str) -> Callable:
    """Applies one operation after another; only the first has more than one operand."""

    def rule(graph: _Graph, _: Any, *values: Any) -> Any:
        for kind in kinds:
            values = (graph.add(kind, *values),)
        return values[0]

    return rule


def _reduce(kind: str) -> Callable:
    def rule(graph: _Graph, equation: Any, x: Any) -> Any:
        return graph.add(kind, x, np.array(equation.params["axes"], np.int64), keepdims=0)

    return rule


def _argmax(graph: _Graph, equation: Any, x: Any) -> Any:
    (axis,) = equation.params["axes"]
    return graph.add(
        "Cast", graph.add("ArgMax", x, axis=int(axis), keepdims=0), to=TensorProto.INT32
    )


def _reshape(graph: _Graph, equation: Any, x: Any, *_: Any) -> Any:
    return _reshaped(graph, x, equation.outvars[0].aval.shape)


def _reshaped(graph: _Graph, x: Any, sizes: Sequence[Any]) -> Any:
    sizes = [size if isinstance(size, int) else -1 for size in sizes]
    return graph.add("Reshape", x, np.array(sizes, np.int64))


def _broadcast(graph: _Graph, equation: Any, x: Any, *_: Any) -> Any:
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    between = [1] * len(after)
    for axis, size in zip(equation.params["broadcast_dimensions"], before, strict=True):
        between[axis] = size
    if len(before) < len(after):
        x = _reshaped(graph, x, between)
    return x if tuple(between) == after else graph.add("Expand", x, graph.shape(after))


def _dot(graph: _Graph, equation: Any, left: Any, right: Any) -> Any:
    ((sum_left, sum_right), (batch_left, batch_right)) = equation.params["dimension_numbers"]
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    if not batch_left and (*sum_left, *sum_right, ranks[1]) == (ranks[0] - 1, 0, 2):
        return graph.add("MatMul", left, right)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    a: list[str] = [next(letters) for _ in range(ranks[0])]
    pairs = dict(zip((*sum_right, *batch_right), (*sum_left, *batch_left), strict=True))
    b = [a[pairs[axis]] if axis in pairs else next(letters) for axis in range(ranks[1])]
    out = [a[axis] for axis in batch_left]
    out += [a[axis] for axis in range(ranks[0]) if axis not in pairs.values()]
    out += [b[axis] for axis in range(ranks[1]) if axis not in pairs]
    return graph.add("Einsum", left, right, equation="{},{}->{}".format(*map("".join, (a, b, out))))


def _gather(graph: _Graph, equation: Any, x: Any, indices: Any) -> Any:
    """Whole slices at indices that lie in range, as argmax gives them."""
    numbers, sizes = equation.params["dimension_numbers"], equation.invars[0].aval.shape
    start = len(numbers.operand_batching_dims)
    stop = start + len(numbers.start_index_map)
    rank = len(equation.outvars[0].aval.shape)
    regular = (
        numbers.operand_batching_dims == numbers.start_indices_batching_dims == (*range(start),)
        and numbers.start_index_map == numbers.collapsed_slice_dims == (*range(start, stop),)
        and tuple(equation.params["slice_sizes"][stop:]) == sizes[stop:]
        and numbers.offset_dims == (*range(rank - len(sizes) + stop, rank),)
    )
    if not regular:
        raise _uncovered(equation, " in this form")
    indices = graph.add("Cast", indices, to=TensorProto.INT64)
    return graph.add("GatherND", x, indices, batch_dims=start)


def _slice(graph: _Graph, equation: Any, x: Any) -> Any:
    starts, stops = equation.params["start_indices"], equation.params["limit_indices"]
    stops = [stop if isinstance(stop, int) else _END for stop in stops]
    steps = equation.params["strides"] or [1] * len(starts)
    numbers = (starts, stops, range(len(starts)), steps)
    return graph.add("Slice", x, *(np.array(each, np.int64) for each in numbers))


def _split(graph: _Graph, equation: Any, x: Any) -> Any:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    return graph.add("Split", x, np.array(sizes, np.int64), outputs=len(sizes), axis=int(axis))


def _select(graph: _Graph, equation: Any, which: Any, *cases: Any) -> Any:
    if len(cases) != 2 or equation.invars[0].aval.dtype != bool:
        raise _uncovered(equation, " between several cases")
    return graph.add("Where", which, cases[1], cases[0])


def _cast(graph: _Graph, equation: Any, x: Any) -> Any:
    dtype = np.dtype(equation.params["new_dtype"])
    if dtype == jax.numpy.bfloat16:
        raise _uncovered(equation, " to bfloat16")
    return graph.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(dtype))


_RULES: dict[str, Callable] = {
    **{name: _simple(name.capitalize()) for name in (
        "abs", "add", "ceil", "cos", "div", "erf", "exp", "floor", "log", "max", "min", "mul",
        "neg", "not", "pow", "sign", "sin", "sqrt", "sub", "tanh", "and", "or",
    )},
    "add_any": _simple("Add"), "eq": _simple("Equal"), "ne": _simple("Equal", "Not"),
    "lt": _simple("Less"), "le": _simple("LessOrEqual"), "gt": _simple("Greater"),
    "ge": _simple("GreaterOrEqual"), "logistic": _simple("Sigmoid"),
    "rsqrt": _simple("Sqrt", "Reciprocal"),
    "square": lambda graph, _, x: graph.add("Mul", x, x),
    "integer_pow": lambda graph, eqn, x: graph.add("Pow", x, np.float32(eqn.params["y"])),
    "log1p": lambda graph, _, x: graph.add("Log", graph.add("Add", x, np.float32(1))),
    "expm1": lambda graph, _, x: graph.add("Sub", graph.add("Exp", x), np.float32(1)),
    "erfc": lambda graph, _, x: graph.add("Sub", np.float32(1), graph.add("Erf", x)),
    "clamp": lambda graph, _, low, x, high: graph.add("Min", graph.add("Max", x, low), high),
    "reduce_sum": _reduce("ReduceSum"), "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"), "argmax": _argmax,
    "reshape": _reshape, "squeeze": _reshape, "broadcast_in_dim": _broadcast,
    "transpose": lambda graph, eqn, x: graph.add(
        "Transpose", x, perm=[int(axis) for axis in eqn.params["permutation"]]
    ),
    "concatenate": lambda graph, eqn, *values: graph.add(
        "Concat", *values, axis=int(eqn.params["dimension"])
    ),
    "dot_general": _dot, "gather": _gather, "slice": _slice, "split": _split, "select_n": _select,
    "convert_element_type": _cast,
    **dict.fromkeys(("copy", "stop_gradient"), lambda graph, _, x: x),
    "optimization_barrier": lambda graph, _, *values: list(values),
}  # fmt: skip
"""Translation of each primitive; any other primitive is refused by name."""
