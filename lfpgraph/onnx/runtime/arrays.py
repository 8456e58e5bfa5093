"""Arrays as onnxruntime takes them: of the right dtype and shape, and cut into batches. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import OnnxError

__all__ = [
    "DTYPES", "Batch", "batches_of", "check_classes", "check_rate", "check_sizes", "fitting", "length_of", "of_shape",
]  # fmt: skip

Batch = Any  # an array, a sequence of arrays, or arrays by input name
_NAMES = {"float": "float32", "double": "float64"}  # numpy's, where they are others
DTYPES = {
    f"tensor({name})": np.dtype(_NAMES.get(name, name))
    for name in ("float", "double", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def fitting(value: Any, described: Any) -> np.ndarray:
    """A value as a contiguous array of the dtype and rank that an input has."""
    array = np.asarray(value)
    dtype = DTYPES.get(described.type)
    if dtype is None or array.dtype.kind not in "biuf":
        raise OnnxError(f"input {described.name!r} takes {described.type}, not an array of {array.dtype}")
    if array.dtype.kind == "f" and np.dtype(dtype).kind in "iub":
        raise OnnxError(f"input {described.name!r} takes whole numbers ({described.type}), not {array.dtype}")
    if array.ndim != len(described.shape):
        raise OnnxError(f"input {described.name!r} has {len(described.shape)} dimensions, the array given {array.ndim}")
    return np.asarray(array, dtype=dtype, order="C")


def check_sizes(arrays: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> None:
    """Raise an OnnxError where a size is not the file's, where one that is open differs between arrays, or is zero."""
    known: dict[str, tuple[int, str]] = {}
    for name, array in arrays.items():
        for size, wanted in zip(array.shape, described[name].shape):
            if isinstance(wanted, str):
                first, other = known.setdefault(wanted, (size, name))
                if first != size:
                    raise OnnxError(
                        f"{other!r} has {first} of {wanted!r} and {name!r} has {size}; give as many of both"
                    )
            elif wanted is not None and size != wanted:
                raise OnnxError(f"{name!r} has shape {list(array.shape)}; the file takes {described[name].shape}")
        if not array.size:
            raise OnnxError(f"{name!r} has shape {list(array.shape)}; a step needs at least one sample")


def check_classes(name: str, target: np.ndarray, classes: Any) -> None:
    """Raise an OnnxError where class numbers are out of range; -100 is left out, as torch has it."""
    counted = target[target != -100]
    if isinstance(classes, int) and counted.size and not (0 <= counted.min() and counted.max() < classes):
        raise OnnxError(
            f"{name!r} must hold class numbers from 0 to {classes - 1}, or -100 for none; got {counted.min()} to {counted.max()}"
        )


def check_rate(lr: Any) -> np.ndarray:
    """A learning rate as the file takes it; an OnnxError where it is no number of zero or more."""
    number = np.ndim(lr) == 0 and not isinstance(lr, str) and lr is not None and not isinstance(lr, bool)
    if not number or not 0 <= float(lr) < np.inf:
        raise OnnxError(f"lr={lr!r} must be a number of zero or more")
    return np.asarray(lr, np.float32)


def of_shape(name: str, value: np.ndarray, described: Any) -> np.ndarray:
    """A value in the dtype of an input, refused where its shape is another."""
    if list(value.shape) != list(described.shape):
        raise OnnxError(f"{name} has shape {list(described.shape)}, not {list(value.shape)}")
    return np.asarray(value, dtype=DTYPES[described.type], order="C")


def length_of(x: Batch) -> int:
    """How many samples."""
    if not isinstance(x, Mapping | tuple) and not np.ndim(x):
        raise OnnxError(f"inputs are an array, a tuple of arrays or a dict of them, not {type(x).__name__}")
    first = next(iter(x.values())) if isinstance(x, Mapping) else x[0] if isinstance(x, tuple) else x
    return len(first)


def batches_of(arrays: Mapping[str, np.ndarray], order: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
    """The arrays' rows in this order, `size` at a time; one empty batch where there are no rows."""
    for start in range(0, max(len(order), 1), size):
        yield {name: array[order[start : start + size]] for name, array in arrays.items()}
