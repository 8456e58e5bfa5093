"""ONNX's control flow and sequences as Python: branches are taken, bodies run round by round, sequences are lists.

A function of control flow gets, after its node, `run(body, values)`, which runs a subgraph and returns its outputs. A
condition that Python knows decides while a model is traced; one that depends on data decides in each run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...errors import OnnxError
from .table import Known, Node, imports, numbers, tensor_of

Run = Callable[[Any, list[Any]], list[Any]]
_MOST_PARTS = 2**14  # of one tensor in a sequence


def _outputs(found: list[Any]) -> Any:
    return tuple(found) if len(found) > 1 else found[0]


@imports("If", known=True)
def if_(node: Node, run: Run, condition: Any) -> Any:
    taken = "then_branch" if numbers(node, condition)[0] else "else_branch"
    return _outputs(run(node.get(taken), []))


@imports("Loop", known=True)
def loop(node: Node, run: Run, most: Any = None, going: Any = None, *state: Any) -> Any:
    rounds = None if most is None else numbers(node, most)[0]
    goes, body, kept = True if going is None else numbers(node, going)[0], node.get("body"), list(state)
    rows: list[list[Any]] = []
    while goes and (rounds is None or len(rows) < rounds):
        number, yes = Known([len(rows)], True), Known([True], True, torch.bool)
        going, *found = run(body, [number, yes, *kept])
        goes, kept = numbers(node, going)[0], found[: len(state)]
        rows.append([tensor_of(x) for x in found[len(state) :]])
    return _outputs([*kept, *_stacked(node, rows, len(body.outputs) - 1 - len(state))])


@imports("Scan", known=True)
def scan(node: Node, run: Run, *inputs: Any) -> Any:
    if node.version < 9:
        raise OnnxError(f"Scan {node.name!r} of opset 8 is not supported; convert the file to opset 9 or newer.")
    count, body = node.get("num_scan_inputs"), node.get("body")
    first = len(inputs) - count
    if first < 0 or count < 1:
        raise OnnxError(f"Scan {node.name!r} goes over {count} of its {len(inputs)} inputs")
    kept, rows = list(inputs[:first]), []
    axes, turned = node.get("scan_input_axes", [0] * count), node.get("scan_input_directions", [0] * count)
    series = [tensor_of(x).movedim(axis, 0) for x, axis in zip(inputs[first:], axes)]
    series = [x.flip(0) if back else x for x, back in zip(series, turned)]
    for t in range(series[0].shape[0]):
        found = run(body, [*kept, *(x[t] for x in series)])
        kept = found[:first]
        rows.append([tensor_of(x) for x in found[first:]])
    made = _stacked(node, rows, len(body.outputs) - first)
    axes, turned = node.get("scan_output_axes", [0] * len(made)), node.get("scan_output_directions", [0] * len(made))
    return _outputs([*kept, *((x.flip(0) if back else x).movedim(0, a) for x, a, back in zip(made, axes, turned))])


def _stacked(node: Node, rows: list[list[Any]], count: int) -> list[Any]:
    if count and not rows:
        raise OnnxError(f"{node.kind} {node.name!r} ran no round, so the shape of what it collects is not known.")
    return [torch.stack(parts) for parts in zip(*rows)] if count else []


@imports("SequenceEmpty", "SequenceConstruct")
def sequence(node: Node, *items: Any) -> Any:
    return list(items)


@imports("SequenceInsert", known=True)
def insert(node: Node, items: list[Any], item: Any, place: Any = None) -> Any:
    at = len(items) if place is None else int(numbers(node, place)[0])
    return [*items[:at], tensor_of(item), *items[at:]]


@imports("SequenceErase", known=True)
def erase(node: Node, items: list[Any], place: Any = None) -> Any:
    at = (len(items) - 1 if place is None else int(numbers(node, place)[0])) % len(items)
    return [*items[:at], *items[at + 1 :]]


@imports("SequenceAt", known=True)
def at(node: Node, items: list[Any], place: Any) -> Any:
    return items[int(numbers(node, place)[0])]


@imports("SequenceLength")
def length(node: Node, items: list[Any]) -> Any:
    return Known([len(items)], True)


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
    return Known([item is not None], True, torch.bool)
