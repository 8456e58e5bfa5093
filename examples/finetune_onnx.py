"""A pretrained ONNX file learns a new label without torch: a classifier of text lines learns to see mirrored ones.

    pip download --no-deps rapidocr-onnxruntime      # its wheel holds ch_ppocr_mobile_v2.0_cls_infer.onnx
    lfpgraph export ch_ppocr_mobile_v2.0_cls_infer.onnx --train-step step.onnx --shape 3,48,192 --reward softmax
    python examples/finetune_onnx.py step.onnx

The file was trained to tell upright lines of text from those turned by 180 degrees. Here it gets a few dozen drawn lines, half of
them mirrored, and the step of the second command. This script needs numpy, Pillow and onnxruntime.
"""

from __future__ import annotations

import argparse
import string

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lfpgraph.onnx import OrtTrainer


def lines(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn lines [count, 3, 48, 192] of random letters, and whether each is mirrored, [count]."""
    draw = np.random.default_rng(seed)
    x, y = np.empty((count, 3, 48, 192), np.float32), np.arange(count) % 2
    for i in range(count):
        word = "".join(draw.choice(list(string.ascii_letters + string.digits), draw.integers(7, 11)))
        paper, ink = draw.integers(170, 256), draw.integers(0, 90)
        image = Image.new("L", (192, 48), int(paper))
        place = (int(draw.integers(2, 12)), int(draw.integers(2, 10)))
        ImageDraw.Draw(image).text(place, word, fill=int(ink), font=ImageFont.load_default(int(draw.integers(24, 32))))
        pixels = np.asarray(image, np.float32) + draw.normal(0, 6, (48, 192))
        x[i] = (pixels[:, ::-1] if y[i] else pixels) / 127.5 - 1
    return x, y


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """The accuracy on lines held out, before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="a safetensors file for the trained weights")
    options = parser.parse_args(arguments)
    trainer = OrtTrainer(options.step, threads=1)
    x, y = lines(options.samples, options.seed)
    held_out = lines(options.held_out, options.seed + 1000)

    def accuracy() -> float:
        return float((trainer.predict(held_out[0]).argmax(-1) == held_out[1]).mean())

    before = accuracy()
    print(f"before: {100 * before:.1f} % of {len(held_out[1])} lines held out")
    history = trainer.fit(
        x, y, epochs=options.epochs, batch_size=16, lr=lambda done: options.lr * (1 - done), seed=options.seed
    )
    after = accuracy()
    print(f"after {options.epochs} epochs on {len(y)} lines: {100 * after:.1f} %; loss {history[-1]['loss']:.3f}")
    if options.save:
        trainer.save(options.save, optimizer=False)
    return before, after


if __name__ == "__main__":
    main()
