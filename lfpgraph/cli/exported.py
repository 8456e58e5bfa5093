"""Exported programs (.pt2) from anywhere: no pickle, no compiled code and no expression of the file is ever run.

`torch.export.load` unpickles where the archive says so, loads libraries that lie in it, and hands strings of the file to
`eval`, `exec` and `import_module`. So the archive is read here: weights as plain bytes, example inputs by torch's reader of
tensors alone, and the program only if every string in it is of a form that can name nothing but itself.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import TargetError, first_line
from ..threads.silence import quiet
from .fake_models import ModelTarget

__all__ = ["exported_program"]

_LARGEST = 2**27  # elements of an example input
_NAME = re.compile(r"[\w.\-+]*")
_OPERATION = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_OTHERS = {
    *(f"torch.ops.higher_order.{n}" for n in ("cond", "wrap_with_set_grad_enabled", "wrap_with_autocast")),
    *(f"_operator.{n}" for n in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "and_", "or_", "not_")),
    *(f"_operator.{n}" for n in ("eq", "ne", "lt", "le", "gt", "ge", "getitem")),
    *(f"math.{n}" for n in ("ceil", "floor", "trunc", "sqrt")),
    *(f"torch.{n}" for n in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sum", "_sym_sqrt")),
}  # fmt: skip
_OF_SIZES = {
    "Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Equality", "Eq", "Float", "FloatTrueDiv", "FloorDiv",
    "FloorToInt", "Ge", "GreaterThan", "Gt", "Identity", "IntTrueDiv", "Integer", "Le", "LessThan", "Lt", "Max", "Min",
    "Mod", "ModularIndexing", "Mul", "Ne", "Not", "Or", "PythonMod", "Rational", "RoundToInt", "StrictGreaterThan",
    "StrictLessThan", "Symbol", "ToFloat", "TruncToFloat", "TruncToInt", "Unequality", "Where",
}  # fmt: skip


class _Refused(Exception):
    """What a program has that is not taken."""


def exported_program(path: Path) -> ModelTarget:
    """The model and example inputs of a file that torch.export.save wrote.

    Raises:
        TargetError: no such file, no exported program, one without example inputs, or one that asks to run something.
    """
    if not path.is_file():
        raise TargetError(f"no such file: {path}")
    try:
        with quiet():
            program = _loaded(_records(path))
            model = program.module()
        for mode in ("train", "eval"):  # torch refuses both; a program has the mode that it was exported in
            vars(model).pop(mode, None)
        model.eval()
    except _Refused as refused:
        raise TargetError(
            f"{path} is not loaded, since {refused}, which could run code or take what it wants. If you trust the file, "
            "give module:function with a function that loads it."
        ) from None
    except Exception as error:
        raise TargetError(f"{path} is no exported program: {type(error).__name__}: {first_line(error)}") from error
    args, kwargs = program.example_inputs or ((), {})
    if not args and not kwargs:
        raise TargetError(f"{path} carries no example inputs; save it with torch.export.save after torch.export.export")
    return ModelTarget(path.name, model, tuple(args), dict(kwargs))


def _records(source: Any) -> dict[str, bytes]:
    """The files in an archive, by their names without its folder."""
    found: dict[str, bytes] = {}
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise _Refused("files in it are compressed")
        archive.fp.seek(0, io.SEEK_END)  # type: ignore[union-attr]
        if sum(entry.file_size for entry in entries) > archive.fp.tell():  # type: ignore[union-attr]
            raise _Refused("its files are larger than itself")
        for entry in entries:
            name = entry.filename.partition("/")[2]
            if name in found:
                raise _Refused(f"it holds {name!r} twice")
            found[name] = archive.read(entry)
    return found


def _loaded(records: dict[str, bytes]) -> torch.export.ExportedProgram:
    from torch._export.serde.serialize import SerializedArtifact, deserialize

    for name in records:
        if name.startswith("data/aotinductor") or re.fullmatch(r"data/(weights|constants)/.*\.pt", name):
            raise _Refused(f"it holds {name[:80]!r}")
    program = json.loads(records["models/model.json"])
    _check_program(program)
    weights = _tensors(records, "data/weights/", "model_weights_config.json")
    constants = _tensors(records, "data/constants/", "model_constants_config.json")
    inputs = _example(records["data/sample_inputs/model.pt"])
    # Weights and inputs are tensors by now: given them, torch unpickles nothing.
    return deserialize(SerializedArtifact(json.dumps(program).encode(), weights, constants, inputs))  # type: ignore[arg-type]


def _example(record: bytes) -> tuple[Any, ...]:
    if not record:
        return ((), {})
    _records(io.BytesIO(record))  # no bomb
    found = torch.load(io.BytesIO(record), weights_only=True)
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
    if sum(t.numel() for t in tensors) > _LARGEST:
        raise _Refused("its example inputs are larger than any need be")
    return tuple(found)


def _tensors(records: dict[str, bytes], folder: str, config: str) -> dict[str, Tensor]:
    """Weights or constants by name; those of one record share its memory."""
    from torch._export.serde.schema import Device, ScalarType
    from torch._export.serde.serialize import deserialize_device, deserialize_scalar_type

    found, bases = {}, {}
    for name, entry in json.loads(records[folder + config])["config"].items():
        place, meta = entry["path_name"], entry["tensor_meta"]
        if entry.get("use_pickle") is not False or not re.fullmatch(r"(weight|tensor)_\d+", place):
            raise _Refused(f"{name[:80]!r} in it is a pickle")
        sizes, strides = ([n["as_int"] for n in meta[key]] for key in ("sizes", "strides"))
        record = records[folder + place]
        if math.prod(sizes) > max(len(record), 2**24 if record else 0):
            raise _Refused(f"{name[:80]!r} in it claims to be larger than the file")
        dtype = deserialize_scalar_type(ScalarType(meta["dtype"]))
        key = place, dtype
        if key not in bases:
            bases[key] = torch.frombuffer(bytearray(record), dtype=dtype) if record else torch.empty(0, dtype=dtype)
        value = bases[key].as_strided(sizes, strides, meta["storage_offset"]["as_int"])
        value = value.to(deserialize_device(Device(**meta["device"])))
        trains = bool(meta["requires_grad"])
        found[name] = torch.nn.Parameter(value, requires_grad=trains) if entry["is_param"] else value
    return found


def _check_program(program: dict[str, Any]) -> None:
    """Refuse what could run; take out what is not needed."""
    program["guards_code"] = []
    module = program["graph_module"]
    module["metadata"], module["treespec_namedtuple_fields"] = {}, {}
    stack: list[tuple[str, Any]] = [("", program)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            if key == "metadata":
                for name in set(value) - {"nn_module_stack", "stack_trace"}:
                    del value[name]
                continue
            for name in value:
                _check_name(name)
            stack += value.items()
        elif isinstance(value, list):
            stack += [(key, item) for item in value]
        elif not isinstance(value, str) or key == "as_string" or key == "as_strings":
            continue
        elif key in ("target", "as_operator"):
            _check_operation(value)
        elif key == "expr_str":
            _check_size(value)
        elif key in ("in_spec", "out_spec"):
            _check_spec(json.loads(value)[1])
        else:
            _check_name(value)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise _Refused(f"it uses {name[:80]!r} as a name")


def _check_operation(target: str) -> None:
    match = _OPERATION.fullmatch(target)
    if match is None and target not in _OTHERS:
        raise _Refused(f"it calls {target[:80]!r}")
    if match is not None:
        op = getattr(getattr(torch.ops.aten, match[1], None), match[2], None)
        if not isinstance(op, torch._ops.OpOverload) or not torch._C._dispatch_has_kernel(op.name()):
            raise _Refused(f"it calls {target[:80]!r}")
        if any("file" in argument.name for argument in op._schema.arguments):
            raise _Refused(f"it opens files by {target[:80]!r}")


def _check_size(text: str) -> None:
    """Refuse an expression of a size that is more than sums, products and comparisons of numbers and symbols."""
    tree = ast.parse(text, mode="eval") if len(text) < 2000 else None
    for node in ast.walk(tree) if tree is not None else ():
        good = isinstance(node, ast.Expression | ast.Load | ast.Tuple | ast.USub | ast.UnaryOp)
        if isinstance(node, ast.Call):
            good = isinstance(node.func, ast.Name) and node.func.id in _OF_SIZES
        elif isinstance(node, ast.Name):
            good = node.id in _OF_SIZES
        elif isinstance(node, ast.keyword):
            good = node.arg in ("integer", "positive", "nonnegative", "precision", "dps", "prec")
        elif isinstance(node, ast.Constant):
            value = node.value
            good = isinstance(value, int | float) and abs(value) < 2**64
            good = good or (isinstance(value, str) and bool(re.fullmatch(r"\w+|-?[\d.e+-]{1,40}", value)))
        if not good:
            tree = None
            break
    if tree is None:
        raise _Refused(f"it gives a size as {text[:80]!r}")


def _check_spec(spec: Any) -> None:
    """Refuse a structure of arguments or results whose containers would be looked up in modules."""
    for part in _parts(spec):
        context = None if part["context"] is None else json.loads(part["context"])
        plain = isinstance(context, int | None) or (
            isinstance(context, list) and all(isinstance(item, str | int) for item in context)
        )
        if not plain or not _NAME.fullmatch(part["type"] or ""):
            raise _Refused(f"its arguments or results are in a {str(part['type'])[:80]!r}")


def _parts(spec: Any) -> Iterator[Any]:
    yield spec
    for child in spec["children_spec"]:
        yield from _parts(child)
