"""Images and arrays in files, as tensors."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import AttributionError, first_line

__all__ = ["array_of", "image_of"]


def image_of(path: Path, size: int | None, mean: float, std: float, channels: int) -> Tensor:
    """An image as [1, channels, height, width]: pixels between 0 and 1, less `mean`, divided by `std`; `size` is its new side.

    Raises:
        AttributionError: it cannot be read.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise AttributionError("images need pillow; pip install pillow") from error
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:  # it leaves a file open that cannot be read
                image = opened.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # of whatever a damaged file makes, or one that unpacks to more than memory holds
        raise AttributionError(f"{path} cannot be read as an image: {first_line(error)}") from error
    if size is not None:
        image = image.resize((size, size))
    pixels = torch.from_numpy(np.array(image)).float() / 255
    pixels = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    return ((pixels - mean) / std)[None]


def array_of(path: Path) -> Tensor:
    """The numbers of a .npy file; nothing in it is unpickled.

    Raises:
        AttributionError: it cannot be read, or holds no numbers.
    """
    try:
        values = np.load(path, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            values.close()
            raise ValueError("it is an archive of arrays")
    except Exception as error:  # of whatever a damaged file makes, or one that says it is larger than memory
        raise AttributionError(f"{path} cannot be read as an array: {first_line(error)}") from error
    if values.dtype.kind not in "fiu" or values.dtype.itemsize > 8 or values.size == 0:
        raise AttributionError(f"{path} holds {values.dtype} of shape {list(values.shape)}; numbers are needed")
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=False)).float()
