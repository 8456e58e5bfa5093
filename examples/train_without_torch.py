"""Train by feedback in onnxruntime, in an environment without torch: the digits CNN and the digits ViT.

The steps are exported once, where torch is, in either of two ways:

    lfpgraph export lfpgraph.models_zoo.digits:cnn cnn.onnx --what step --shape 1,8,8 --clip 1
    python examples/train_without_torch.py --export

Then, with numpy, onnxruntime and scikit-learn (for the images) alone, as `make without-torch` does it:

    python examples/train_without_torch.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lfpgraph.onnx import OrtTrainer

RATES = {"cnn": 3e-3, "vit": 1e-3}


def export(folder: Path) -> None:
    """Write both steps, with random weights. Needs torch, transformers and onnx."""
    import torch
    from lfpgraph.models_zoo import digits

    from lfpgraph.onnx import export_training_step

    for name, build in (("cnn", digits.cnn), ("vit", digits.vit)):
        torch.manual_seed(0)
        example = torch.randn(4, 1, 8, 8)
        print("wrote", export_training_step(build(), example, folder / f"{name}.onnx", optimizer="adam", clip=1.0))


def digits_data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's digits, 1,347 images to train on and 450 held out: images [n, 1, 8, 8], labels [n]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = (data.images / 16).astype(np.float32)[order][:, None], data.target[order]
    return (x[:1347], y[:1347]), (x[1347:], y[1347:])


def one_cycle(largest: float) -> Callable[[float], float]:
    """Up over the first 30 % of training, then down."""
    return lambda done: largest * (0.04 + 0.96 * min(done / 0.3, (1 - done) / 0.7))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", action="store_true", help="write the files instead; needs torch")
    parser.add_argument("--folder", type=Path, default=Path("onnx_steps"))
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    if options.export:
        export(options.folder)
        return
    print("torch is", "absent" if find_spec("torch") is None else "installed, but not needed")
    (x, y), (x_test, y_test) = digits_data()
    for name, rate in RATES.items():
        trainer = OrtTrainer(options.folder / f"{name}.onnx")
        history = trainer.fit(x, y, epochs=options.epochs, batch_size=64, lr=one_cycle(rate))
        accuracy = (trainer.predict(x_test).argmax(-1) == y_test).mean()
        seconds = sum(row["seconds"] for row in history)
        print(f"{name}: {accuracy:.1%} of {len(y_test)} held-out digits after {options.epochs} epochs, {seconds:.1f} s")


if __name__ == "__main__":
    main()
