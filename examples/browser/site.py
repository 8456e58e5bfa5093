"""Put the page together: a digits CNN learns in the browser from right and wrong. `make browser` makes and serves it.

    python examples/browser/site.py FOLDER --ort node_modules/onnxruntime-web/dist

Writes, beside the page itself, the training step, the forward pass and the relevance of the pixels as ONNX files, the weights
that it begins with, and held-out digits for the page to measure its accuracy on. The network knows no digit at first.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import onnx
import torch
from lfpgraph.models_zoo import digits

import lfpgraph
from lfpgraph.demo.data import digits as digits_data

HERE = Path(__file__).parent
PAGE = ("index.html", "page.js", "learner.js")
ORT = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def main(folder: Path, ort: Path | None, seed: int) -> None:
    """Write the page's folder; `ort` is where onnxruntime-web lies."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model, example = digits.cnn(), torch.rand(2, 1, 8, 8)
    step = lfpgraph.onnx.export_training_step(
        model, example, folder / "step.onnx", reward="signal", optimizer="adam", clip=1.0, parameters="outside",
        options={"epsilon": 1e-5},  # Adam's: feedback that is only rounding, which differs between runtimes, moves nothing
    )  # fmt: skip
    lfpgraph.onnx.export_attribution(model, example, folder / "explain.onnx", parameters="inputs")
    (folder / "step.json").write_text(json.dumps(description(step)))
    (train_x, train_y), (test_x, test_y) = digits_data()
    for name, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        pixels = [[round(v * 16) for v in image] for image in x.flatten(1).tolist()]
        (folder / f"{name}.json").write_text(json.dumps({"images": pixels, "labels": y.tolist()}))
    for name in PAGE:
        shutil.copy(HERE / name, folder)
    for name in ORT if ort is not None else ():
        (folder / "ort").mkdir(exist_ok=True)
        shutil.copy(ort / name, folder / "ort")


def description(path: Path) -> dict[str, object]:
    """What the step's metadata say of it, and the shapes of the optimizer's state, which a page cannot read from the file."""
    found = onnx.load(str(path), load_external_data=False)
    described = json.loads({entry.key: entry.value for entry in found.metadata_props}["lfpgraph.training_step"])
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in found.graph.input}
    return {**described, "shapes": {name: shapes[name] for name in described["state"]}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ort", type=Path, help="onnxruntime-web's dist folder, to be copied beside the page")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(options.folder, options.ort, options.seed)
