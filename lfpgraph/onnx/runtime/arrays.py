"""Arrays as onnxruntime takes them: of the right dtype and shape, and cut into batches. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import OnnxError

__all__ = ["DTYPES", "Batch", "batches_of", "fitting", "length_of", "of_shape"]

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


def of_shape(name: str, value: np.ndarray, described: Any) -> np.ndarray:
    """A value in the dtype of an input, refused where its shape is another."""
    if list(value.shape) != list(described.shape):
        raise OnnxError(f"{name} has shape {list(described.shape)}, not {list(value.shape)}")
    return np.asarray(value, dtype=DTYPES[described.type], order="C")


def length_of(x: Batch) -> int:
    """How many samples."""
    first = next(iter(x.values())) if isinstance(x, Mapping) else x[0] if isinstance(x, tuple) else x
    return len(first)


def batches_of(arrays: Mapping[str, np.ndarray], order: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
    """The arrays' rows in this order, `size` at a time; one empty batch where there are no rows."""
    for start in range(0, max(len(order), 1), size):
        yield {name: array[order[start : start + size]] for name, array in arrays.items()}
