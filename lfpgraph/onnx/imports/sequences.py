"""What runs step by step: recurrent layers unrolled over time, ONNX's control flow as Python, and sequences as lists.

A function of control flow gets, after its node, `run(body, values)`, which runs a subgraph and returns its outputs. A
condition that Python knows decides while a model is traced; one that depends on data decides in each run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .table import Known, Node, imports, numbers, refused, tensor_of

Run = Callable[[Any, list[Any]], list[Any]]
_MOST_PARTS, _MOST_ROUNDS = 2**14, 2**14  # of one tensor in a sequence; of a loop


def _outputs(found: list[Any]) -> Any:
    return tuple(found) if len(found) > 1 else found[0]


def _single(node: Node, value: Any, what: str) -> Any:
    found = numbers(node, value)
    if len(found) != 1 or isinstance(found[0], float):
        raise refused(node, f"takes one {what}, not {found[:3]}; make one of them, by ReduceMax say.")
    return found[0]


def _fit(node: Node, inputs: int, outputs: int, *bodies: Any) -> None:
    """Refuse subgraphs that take or give another number of values than their node does."""
    for body in bodies:
        if len(body.inputs) != inputs or len(body.outputs) < outputs:
            found = f"{len(body.inputs)} values and gives {len(body.outputs)}, not {inputs} and {outputs}"
            raise refused(node, f"holds a graph that takes {found}; write the file anew.")


@imports("If", known=True)
def if_(node: Node, run: Run, condition: Any) -> Any:
    branches = node.get("else_branch"), node.get("then_branch")
    _fit(node, 0, max(node.outputs, *(len(branch.outputs) for branch in branches)), *branches)
    return _outputs(run(branches[bool(_single(node, condition, "condition"))], []))


def _may_end(body: Any) -> bool:
    """Whether the condition of a loop hangs on anything that changes from round to round."""
    changing = {body.inputs[0], *body.inputs[2:]}
    for line in body.lines:
        if not changing.isdisjoint(line.reads) or any(not changing.isdisjoint(b.looks_at()) for b in line.bodies):
            changing.update(filter(None, line.makes))
    return body.outputs[0] in changing


@imports("Loop", known=True)
def loop(node: Node, run: Run, most: Any = None, going: Any = None, *state: Any) -> Any:
    rounds = None if most is None else _single(node, most, "count of rounds")
    goes, body, kept = True if going is None else _single(node, going, "condition"), node.get("body"), list(state)
    _fit(node, 2 + len(state), 1 + max(len(state), node.outputs), body)
    endless = (rounds is None or rounds > _MOST_ROUNDS) and not _may_end(body)
    rows: list[list[Any]] = []
    while goes and (rounds is None or len(rows) < rounds):
        if endless and (rows or body.outputs[0] == body.inputs[1]):
            raise refused(node, f"asks for {rounds or 'endless'} rounds; give up to {_MOST_ROUNDS:,}, or a condition.")
        if len(rows) == _MOST_ROUNDS:
            raise refused(node, f"is not over after {_MOST_ROUNDS:,} rounds.")
        number, yes = Known(len(rows)), Known(True, torch.bool)
        going, *found = run(body, [number, yes, *kept])
        goes, kept = _single(node, going, "condition"), found[: len(state)]
        rows.append([tensor_of(x) for x in found[len(state) :]])
    return _outputs([*kept, *_stacked(node, rows, len(body.outputs) - 1 - len(state))])


@imports("Scan", known=True)
def scan(node: Node, run: Run, *inputs: Any) -> Any:
    if node.version < 9:
        raise refused(node, "of opset 8 is not supported; convert the file to opset 9 or newer.")
    count, body = node.get("num_scan_inputs"), node.get("body")
    first = len(inputs) - count
    if first < 0 or count < 1:
        raise refused(node, f"goes over {count} of its {len(inputs)} inputs")
    _fit(node, len(inputs), max(first, node.outputs), body)
    kept, rows = list(inputs[:first]), []
    axes, turned = node.get("scan_input_axes", [0] * count), node.get("scan_input_directions", [0] * count)
    series = [tensor_of(x).movedim(axis, 0) for x, axis in zip(inputs[first:], axes)]
    series = [x.flip(0) if back else x for x, back in zip(series, turned)]
    if len(series) < count or any(x.shape[0] != series[0].shape[0] for x in series):
        raise refused(node, f"goes over lengths {[x.shape[0] for x in series]}; it needs {count}, all the same.")
    for t in range(series[0].shape[0]):
        found = run(body, [*kept, *(x[t] for x in series)])
        kept = found[:first]
        rows.append([tensor_of(x) for x in found[first:]])
    made = _stacked(node, rows, len(body.outputs) - first)
    axes, turned = node.get("scan_output_axes", [0] * len(made)), node.get("scan_output_directions", [0] * len(made))
    return _outputs([*kept, *((x.flip(0) if back else x).movedim(0, a) for x, a, back in zip(made, axes, turned))])


def _stacked(node: Node, rows: list[list[Any]], count: int) -> list[Any]:
    if count and not rows:
        raise refused(node, "ran no round, so the shape of what it collects is not known.")
    return [torch.stack(parts) for parts in zip(*rows)] if count else []


@imports("SequenceEmpty", "SequenceConstruct")
def sequence(node: Node, *items: Any) -> Any:
    return list(items)


def _place(node: Node, place: Any, items: list[Any], more: int = 0) -> int:
    at = int(numbers(node, place)[0])
    if not -len(items) <= at < len(items) + more:
        raise refused(node, f"asks for item {at} of {len(items)}.")
    return at


@imports("SequenceInsert", known=True)
def insert(node: Node, items: list[Any], item: Any, place: Any = None) -> Any:
    at = len(items) if place is None else _place(node, place, items, 1)
    return [*items[:at], tensor_of(item), *items[at:]]


@imports("SequenceErase", known=True)
def erase(node: Node, items: list[Any], place: Any = None) -> Any:
    at = (len(items) - 1 if place is None else _place(node, place, items)) % len(items)
    return [*items[:at], *items[at + 1 :]]


@imports("SequenceAt", known=True)
def at(node: Node, items: list[Any], place: Any) -> Any:
    return items[_place(node, place, items)]


@imports("SequenceLength")
def length(node: Node, items: list[Any]) -> Any:
    return Known(len(items))


@imports("ConcatFromSequence")
def concat_sequence(node: Node, items: list[Any]) -> Any:
    return (torch.stack if node.get("new_axis", 0) else torch.cat)(items, node.get("axis"))


@imports("SplitToSequence", known=True)
def split_sequence(node: Node, x: Any, sizes: Any = None) -> Any:
    x, axis = tensor_of(x), node.get("axis", 0)
    one = sizes.scalar if isinstance(sizes, Known) else sizes is None or not sizes.dim()
    wanted = [1] if sizes is None else numbers(node, sizes)
    if one and x.shape[axis] > _MOST_PARTS * max(wanted[0], 0):
        raise OnnxError(f"SplitToSequence {node.name!r} asks for more than {_MOST_PARTS:,} parts, or for empty ones")
    if sizes is None:
        parts = list(torch.split(x, 1, axis))
        return parts if node.get("keepdims", 1) else [part.squeeze(axis) for part in parts]
    return list(torch.split(x, wanted[0] if one else wanted, axis))


@imports("Optional", "OptionalGetElement")
def optional(node: Node, item: Any = None) -> Any:
    return item


@imports("OptionalHasElement")
def has_element(node: Node, item: Any = None) -> Any:
    return Known(item is not None, torch.bool)


# Of x, then of alpha and beta, with what they are where not given.
_FUNCTIONS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)), "elu": (lambda x, a: F.elu(x, a), (1.0,)),
    "hardsigmoid": (lambda x, a, b: torch.clamp(a * x + b, 0, 1), (0.2, 0.5)), "sigmoid": (torch.sigmoid, ()),
    "leakyrelu": (lambda x, a: F.leaky_relu(x, a), (0.01,)), "relu": (torch.relu, ()), "tanh": (torch.tanh, ()),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), (1.0, 1.0)), "softplus": (F.softplus, ()),
    "thresholdedrelu": (lambda x, a: torch.where(x > a, x, 0.0), (1.0,)), "softsign": (F.softsign, ()),
}  # fmt: skip
_USUAL = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


def _activations(node: Node, kind: str, directions: int) -> list[list[Any]]:
    """The functions of each direction; alphas and betas are given in order to those that take them."""
    names = [str(a).lower() for a in node.get("activations") or []] or _USUAL[kind] * directions
    if any(name not in _FUNCTIONS for name in names) or len(names) != len(_USUAL[kind]) * directions:
        raise OnnxError(f"{node.kind} {node.name!r}: activations {names} are not known; known: {sorted(_FUNCTIONS)}")
    given = [iter(node.get(f"activation_{which}") or ()) for which in ("alpha", "beta")]
    found = []
    for name in names:
        function, usual = _FUNCTIONS[name]
        params = [next(values, value) for values, value in zip(given, usual)]
        found.append(lambda x, function=function, params=params: function(x, *params))
    each = len(_USUAL[kind])
    return [found[i : i + each] for i in range(0, len(found), each)]


@imports("LSTM", "GRU", "RNN")
def recurrent(
    node: Node, x: Tensor, w: Tensor, r: Tensor, bias: Any = None, lengths: Any = None, h: Any = None, c: Any = None,
    peepholes: Any = None, *, linear: Any = None
) -> Any:  # fmt: skip
    """Unrolled over time: x [time, batch, inputs]; Y [time, directions, batch, hidden], then the last states."""
    kind = node.kind if node.kind in _USUAL else "LSTM"
    batch_first = bool(node.get("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
        h, c = (v if v is None else v.transpose(0, 1) for v in (h, c))
    functions = _activations(node, kind, w.shape[0])
    start = [s if s is not None else x.new_zeros(w.shape[0], x.shape[1], r.shape[-1]) for s in (h, c)]
    runs = None if lengths is None else torch.arange(x.shape[0]).unsqueeze(1) < lengths
    outputs, lasts = [], []
    for d in range(w.shape[0]):
        backward = node.get("direction", "forward") == "reverse" or d == 1
        b = x.new_zeros(2 * w.shape[1]) if bias is None else bias[d]
        of_x, of_h = (partial(linear, d, recurs) if linear else F.linear for recurs in (False, True))
        cell = _Cell(node, kind, functions[d], r[d], b.chunk(2)[1], None if peepholes is None else peepholes[d], of_h)
        given = of_x(_turned(x, lengths) if backward else x, w[d], b.chunk(2)[0])
        series, last = _unroll(cell, given, [s[d] for s in start], runs)
        outputs.append(_turned(series, lengths) if backward else series)
        lasts.append(last[: 2 if kind == "LSTM" else 1])
    y, *states = [torch.stack(outputs, 1), *(torch.stack(part) for part in zip(*lasts))]
    if batch_first:
        y, states = y.permute(2, 0, 1, 3), [s.transpose(0, 1) for s in states]
    return tuple([y, *states][: node.outputs]) if node.outputs > 1 else y


def _turned(x: Tensor, lengths: Tensor | None) -> Tensor:
    """A series backward in time, each one of the batch within its own length."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(x.shape[0]).unsqueeze(1)
    return x[torch.where(steps < lengths, lengths - 1 - steps, steps).long(), torch.arange(x.shape[1])]


def _unroll(cell: _Cell, given: Tensor, state: list[Tensor], runs: Tensor | None) -> Any:
    series = []
    for t in range(given.shape[0]):
        new = cell.step(given[t], *state)
        out = new[0]
        if runs is not None:  # what has ended keeps its state and gives zeros
            on = runs[t].unsqueeze(1)
            new = [torch.where(on, n, s) for n, s in zip(new, state)]
            out = torch.where(on, out, torch.zeros_like(out))
        state = new
        series.append(out)
    return torch.stack(series), state


@dataclass
class _Cell:
    """One direction of a recurrence; `step` takes the input's part of the sums and the state to the next state."""

    node: Node
    kind: str
    functions: list[Any]
    r: Tensor
    bias: Tensor
    peepholes: Tensor | None
    linear: Any

    def step(self, given: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        f, *others = self.functions
        if self.kind == "RNN":
            return [f(self._clipped(given + self.linear(h, self.r, self.bias))), c]
        return [self._gru(given, h, f, *others), c] if self.kind == "GRU" else self._lstm(given, h, c, f, *others)

    def _clipped(self, x: Tensor) -> Tensor:
        edge = self.node.get("clip")
        return x if not edge else torch.clamp(x, -edge, edge)

    def _lstm(self, given: Tensor, h: Tensor, c: Tensor, f: Any, g: Any, last: Any) -> list[Tensor]:
        put, out, forget, new = (given + self.linear(h, self.r, self.bias)).chunk(4, -1)
        p = None if self.peepholes is None else self.peepholes.chunk(3)
        gate = f(self._clipped(put if p is None else put + p[0] * c))
        forget = forget if p is None else forget + p[2] * c
        keep = 1 - gate if self.node.get("input_forget", 0) else f(self._clipped(forget))
        c = keep * c + gate * g(self._clipped(new))
        return [f(self._clipped(out if p is None else out + p[1] * c)) * last(c), c]

    def _gru(self, given: Tensor, h: Tensor, f: Any, g: Any) -> Tensor:
        (z, reset, new), parts, biases = given.chunk(3, -1), self.r.chunk(3), self.bias.chunk(3)
        z = f(self._clipped(z + self.linear(h, parts[0], biases[0])))
        reset = f(self._clipped(reset + self.linear(h, parts[1], biases[1])))
        if self.node.get("linear_before_reset", 0):
            new = new + reset * self.linear(h, parts[2], biases[2])
        else:
            new = new + self.linear(reset * h, parts[2], biases[2])
        return (1 - z) * g(self._clipped(new)) + z * h
