"""Data of the experiments: scikit-learn's bundled sets, the papers' synthetic ones, and Python's own sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...demo.data import Arrays, digits
from ...errors import InputError

__all__ = [
    "blobs",
    "breast_cancer",
    "california",
    "circles",
    "diabetes",
    "flat_digits",
    "library_text",
    "library_windows",
    "of_classes",
    "swirls",
]


def flat_digits() -> tuple[Arrays, Arrays]:
    """Digits as vectors [n, 64]."""
    (x, y), (test_x, test_y) = digits()
    return (x.flatten(1), y), (test_x.flatten(1), test_y)


def of_classes(data: Arrays, kept: range) -> Arrays:
    """The samples of some classes, with their labels as they are."""
    rows = (data[1] >= kept.start) & (data[1] < kept.stop)
    return data[0][rows], data[1][rows]


def split(x: Tensor, y: Tensor, held_out: float = 0.25, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Shuffled train and test sets, inputs standardised by the training part."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[order].float(), y[order]
    n = round(len(x) * held_out)
    mean, spread = x[n:].mean(0), x[n:].std(0).clamp_min(1e-8)
    x = (x - mean) / spread
    return (x[n:], y[n:]), (x[:n], y[:n])


def blobs(n: int = 900, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Three Gaussian blobs in the plane."""
    from sklearn.datasets import make_blobs

    x, y = make_blobs(n, centers=3, cluster_std=1.2, random_state=seed + 3)
    return split(torch.tensor(x), torch.tensor(y), seed=seed)


def circles(n: int = 900, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Two noisy circles, one in the other."""
    from sklearn.datasets import make_circles

    x, y = make_circles(n, noise=0.08, factor=0.5, random_state=seed)
    return split(torch.tensor(x), torch.tensor(y), seed=seed)


def swirls(n: int = 900, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Two spiral arms of a turn and a half."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    turn = torch.rand(n, generator=generator).sqrt() * 3 * math.pi
    angle = turn + math.pi * y
    x = torch.stack([turn * angle.cos(), turn * angle.sin()], 1) + 0.3 * torch.randn(n, 2, generator=generator)
    return split(x, y, seed=seed)


def diabetes() -> tuple[Arrays, Arrays]:
    """442 patients, 10 measurements; the target standardised, [n, 1]."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    return _standard_target(torch.tensor(data.data), torch.tensor(data.target))


def california(limit: int = 4000) -> tuple[Arrays, Arrays] | None:
    """House values of California, if scikit-learn has them cached; else None."""
    from sklearn.datasets import fetch_california_housing

    try:
        data = fetch_california_housing(download_if_missing=False)
    except OSError:
        return None
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))[:limit]
    return _standard_target(torch.tensor(data.data)[order], torch.tensor(data.target)[order])


def _standard_target(x: Tensor, y: Tensor) -> tuple[Arrays, Arrays]:
    (x, y), (test_x, test_y) = split(x, y)
    mean, spread = y.mean(), y.std()
    return (x, ((y - mean) / spread).float()[:, None]), (test_x, ((test_y - mean) / spread).float()[:, None])


def breast_cancer() -> tuple[Arrays, Arrays]:
    """569 tumours, 30 measurements, benign or not."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return split(torch.tensor(data.data), torch.tensor(data.target))


def library_text(characters: int = 400_000, package: str = "") -> tuple[Tensor, int]:
    """Sources of Python's standard library as character indices [length], and how many characters there are.

    Printable ASCII and the line end; anything else reads as a space.

    Args:
        package: of the library, whose sources alone are read; by default the modules that belong to none.

    Raises:
        InputError: this Python ships no sources.
    """
    import argparse

    folder = Path(argparse.__file__).parent / package
    files = sorted(folder.rglob("*.py") if package else folder.glob("*.py"))
    text = ""
    for file in files:
        text += file.read_text(encoding="utf-8", errors="replace")
        if len(text) >= characters:
            break
    if len(text) < 10_000:
        raise InputError(f"found {len(text)} characters of sources in {folder}; this Python ships none")
    known = ["\n", *map(chr, range(32, 127))]
    place = {c: i for i, c in enumerate(known)}
    return torch.tensor([place.get(c, 1) for c in text[:characters]]), len(known)


def library_windows(packages: Sequence[str], length: int, training: int, held_out: int) -> tuple[Arrays, Arrays]:
    """So many windows of characters [n, length] from the sources of each package, none over another, and the packages [n]."""
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    count = training + held_out
    for package in packages:
        text, _ = library_text(2 * count * length, package)
        windows = text[: len(text) // length * length].view(-1, length)
        if len(windows) < count:
            raise InputError(f"{package} has {len(windows)} windows of {length} characters, {count} are needed")
        windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:count]]
        for part, own in zip(parts, (windows[held_out:], windows[:held_out])):
            part.append(own)
    train, test = ((torch.cat(part), torch.arange(len(part)).repeat_interleave(len(part[0]))) for part in parts)
    return train, test
