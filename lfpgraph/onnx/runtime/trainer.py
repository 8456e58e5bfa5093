"""Training with a step exported by `export_training_step`: numpy and onnxruntime, no torch, no autograd."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import OnnxError, check_count, one_line, path_of
from .arrays import (
    DTYPES,
    Batch,
    batches_of,
    check_classes,
    check_rate,
    check_sizes,
    fitting,
    length_of,
    of_shape,
)  # fmt: skip
from .files import companion, description_of, open_session, read_tensors, safetensors_function

__all__ = ["OrtTrainer", "StepResult"]


class StepResult(NamedTuple):
    """What a training step gives: the model's outputs before the step, and metrics such as `loss` and `accuracy`."""

    outputs: tuple[np.ndarray, ...]
    metrics: dict[str, float]


class OrtTrainer:
    """Runs a training step in onnxruntime and keeps parameters, buffers and the optimizer's state between steps.

    Args:
        path: a file of `export_training_step`. Its companions are looked for beside it: `<stem>.forward.onnx`, for
            `predict`, and `<stem>.safetensors` where the values were written outside.
        threads: threads of onnxruntime; 0 for its own choice.
        providers: execution providers, in order.

    Raises:
        OnnxError: no such file, not a training step, or onnxruntime cannot run it.
    """

    def __init__(
        self, path: str | Path, *, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        self.path = path_of(path, OnnxError)
        check_count("threads", threads, OnnxError, least=0)
        self._options = (threads, [providers] if isinstance(providers, str) else list(providers))
        self._session = open_session(self.path, *self._options)
        self.description = description_of(self._session, self.path)
        self._inputs = {i.name: i for i in (*self._session.get_inputs(), *self._session.get_overridable_initializers())}
        self._outputs = [o.name for o in self._session.get_outputs()]
        shapes = [o.shape for o in self._session.get_outputs() if o.name == self.description["outputs"][0]]
        self._classes = shapes[0][-1] if shapes and shapes[0] else None
        text = self.description
        self._stored = [*text["parameters"], *text["frozen"], *text["buffers"]]
        self._changing = [*text["parameters"], *text["buffers"], *text["state"]]
        self._asked = [name for name in self._outputs if not name.startswith("value/")]
        self._values: dict[str, Any] = {}
        beside = text.get("values")
        self._set(read_tensors(companion(self.path, beside)) if beside else {})
        self.reset_optimizer()

    def __repr__(self) -> str:
        text = self.description
        return f"OrtTrainer({str(self.path)!r}: {text['reward']}, {text['optimizer']}, {len(text['parameters'])} parameters)"

    def step(self, x: Batch, y: Any, lr: float) -> StepResult:
        """One training step.

        Args:
            x: the model's input, or several as a tuple or by name, arrays [n, ...].
            y: the target, or the reward, as the file was exported for: class indices [n], an array of the outputs'
                shape, or a reward of the outputs' shape.
            lr: the learning rate.

        Raises:
            OnnxError: arrays that do not fit.
        """
        feeds = self._arrays(x, self._inputs, self.description["inputs"])
        target = self.description["target"]
        feeds[target] = fitting(y, self._inputs[target])
        check_sizes(feeds, self._inputs)
        if self.description["reward"] == "softmax":
            check_classes(target, feeds[target], self._classes)
        feeds["lr"] = check_rate(lr)
        named = dict(zip(self._asked, self._run(self._session, self._asked, feeds, self._values)))
        for name in self._changing:
            self._values[name] = named[f"new/{name}"]
        metrics = {name: float(named[f"metric/{name}"].numpy()) for name in self.description["metrics"]}
        return StepResult(tuple(named[name].numpy() for name in self.description["outputs"]), metrics)

    def predict(self, x: Batch, batch_size: int = 256) -> np.ndarray:
        """The model's first output in eval mode, [n, ...], in batches of `batch_size`.

        Raises:
            OnnxError: the file was exported with `forward=False`, or its companion is not beside it.
        """
        check_count("batch_size", batch_size, OnnxError)
        session = self._forward
        inputs = {i.name: i for i in session.get_inputs()}
        known = {name: value for name, value in self._known().items() if name in inputs}
        names = [name for name in self.description["inputs"] if name in inputs]
        parts = batches_of(self._arrays(x, inputs, names), np.arange(length_of(x)), batch_size)
        return np.concatenate([self._run(session, ["output"], part, known)[0].numpy() for part in parts])

    def fit(
        self, x: Batch, y: Any, *, epochs: int = 1, batch_size: int = 32, lr: float | Callable[[float], float] = 1e-3,
        validation: tuple[Batch, Any] | None = None, seed: int = 0, progress: bool | None = None,
    ) -> list[dict[str, float]]:  # fmt: skip
        """Train for some epochs over shuffled batches.

        Args:
            x, y: all inputs and targets, as for `step`.
            lr: the learning rate, or a function that gives it for a part of training that is done (0 to 1).
            validation: inputs and labels; their accuracy is measured after each epoch (needs `predict`).
            seed: of the shuffling.
            progress: show a bar on stderr; None shows it on a terminal only.

        Returns:
            For each epoch the mean of each metric, `seconds`, and `val_accuracy` where there is a validation set.
        """
        check_count("epochs", epochs, OnnxError)
        check_count("batch_size", batch_size, OnnxError)
        check_count("seed", seed, OnnxError, least=0)
        if validation is not None:
            if not isinstance(validation, tuple | list) or len(validation) != 2:
                raise OnnxError("validation must be a pair of inputs and labels")
            if not length_of(validation[0]) == len(validation[1]) > 0:
                raise OnnxError("validation needs as many labels as inputs, and at least one")
        length, y = length_of(x), np.asarray(y)
        if len(y) != length or not length:
            raise OnnxError(f"{length} inputs and {len(y)} targets; there must be as many of both, and at least one")
        arrays = self._arrays(x, self._inputs, self.description["inputs"])
        draw = np.random.default_rng(seed)
        total, done = epochs * -(-length // batch_size), 0
        shown = sys.stderr.isatty() if progress is None else progress
        history: list[dict[str, float]] = []
        for epoch in range(epochs):
            sums: dict[str, float] = {}
            order, start = draw.permutation(length), time.perf_counter()
            for part in batches_of({**arrays, "\0y": y}, order, batch_size):
                target = part.pop("\0y")
                metrics = self.step(part, target, lr(done / total) if callable(lr) else lr).metrics
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0.0) + value * len(target)
                done += 1
                figures = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                if shown and (done == total or done % max(total // 500, 1) == 0):
                    _show(done, total, f"epoch {epoch + 1}/{epochs} {figures}")
            row = {name: value / length for name, value in sums.items()}
            row["seconds"] = time.perf_counter() - start
            if validation is not None:
                right = self.predict(validation[0]).argmax(-1) == np.asarray(validation[1])
                row["val_accuracy"] = float(right.mean())
            history.append(row)
        return history

    def parameters(self) -> dict[str, np.ndarray]:
        """Copies of the parameters by the model's own names, tied ones under each of their names."""
        return self._named([*self.description["parameters"], *self.description["frozen"]])

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of parameters and of the buffers that are kept, by the model's own names."""
        return self._named(self._stored)

    def optimizer_state(self) -> dict[str, np.ndarray]:
        """Copies of the optimizer's state."""
        return {name: np.array(self._values[name].numpy()) for name in self.description["state"]}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Set parameters and buffers by name; all of them must be there.

        Raises:
            OnnxError: names are missing or unknown, or a shape differs; nothing has changed then.
        """
        if not isinstance(values, Mapping):
            raise OnnxError(f"load_state_dict takes a dict of arrays by name, not {type(values).__name__}")
        own = {name: value for name, value in values.items() if name not in self.description["aliases"]}
        missing, unknown = sorted(set(self._stored) - set(own)), sorted(set(own) - set(self._stored))
        if missing or unknown:
            raise OnnxError(f"the values do not fit this model: missing {missing[:5]}, unknown {unknown[:5]}")
        self._set(own)

    def reset_optimizer(self) -> None:
        """Set the optimizer's state to its beginning, zeros."""
        self._set({name: self._blank(self._inputs[name]) for name in self.description["state"]})

    def save(self, path: str | Path, *, optimizer: bool = True) -> None:
        """Write parameters and buffers, by the model's own names, and the optimizer's state to a safetensors file.

        With `optimizer=False` the file is a plain state dict that torch's `load_state_dict(strict=False)` takes.
        """
        path, save_file = path_of(path, OnnxError), safetensors_function("save_file")
        tensors = {name: np.array(value.numpy()) for name, value in self._known().items() if name in self._stored}
        if optimizer:
            tensors |= {f"optimizer/{name}": value for name, value in self.optimizer_state().items()}
        try:
            save_file({name: np.asarray(value, order="C") for name, value in tensors.items()}, str(path))
        except Exception as error:  # OSError, or safetensors' own of a full disk
            raise OnnxError(f"cannot write {path}: {error}") from error

    def restore(self, path: str | Path) -> None:
        """Read what `save` wrote; without an optimizer's state in the file, the state begins anew.

        Raises:
            OnnxError: the file cannot be read, or does not fit; nothing has changed then.
        """
        tensors = read_tensors(path_of(path, OnnxError))
        state = {name.removeprefix("optimizer/"): v for name, v in tensors.items() if name.startswith("optimizer/")}
        if state and set(state) != set(self.description["state"]):
            raise OnnxError(f"{path} holds the state of another optimizer than {self.description['optimizer']}")
        for name, value in state.items():
            of_shape(name, value, self._inputs[name])
        self.load_state_dict({name: value for name, value in tensors.items() if not name.startswith("optimizer/")})
        self.reset_optimizer()
        self._set(state)

    def _known(self) -> dict[str, Any]:
        """All values; those that no step has changed yet come from the file, by a run, since its runtime has no other way."""
        missing = [name for name in self._stored if name not in self._values]
        if missing:
            feeds = {name: self._blank(i) for name, i in self._inputs.items() if name not in self._stored}
            found = self._run(self._session, [f"value/{name}" for name in missing], feeds, {})
            self._set({name: value.numpy() for name, value in zip(missing, found)})
        return self._values

    def _blank(self, described: Any) -> np.ndarray:
        """Zeros for an input, of the shape that the example had when the step was exported."""
        shape = self.description.get("example", {}).get(described.name, described.shape)
        return np.zeros([n if isinstance(n, int) else 2 for n in shape], DTYPES[described.type])

    def _set(self, values: Mapping[str, Any]) -> None:
        from onnxruntime import OrtValue

        checked = {name: of_shape(name, np.asarray(value), self._inputs[name]) for name, value in values.items()}
        for name, value in checked.items():
            self._values[name] = OrtValue.ortvalue_from_numpy(value.copy())

    def _named(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        found = {name: np.array(value.numpy()) for name, value in self._known().items() if name in names}
        tied = {other: found[name] for other, name in self.description["aliases"].items() if name in found}
        return {**found, **tied}

    def _arrays(self, x: Batch, inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, np.ndarray]:
        if isinstance(x, Mapping):
            if set(x) != set(names):
                raise OnnxError(f"inputs {sorted(x)} were given; the model takes {sorted(names)}")
            return {name: fitting(x[name], inputs[name]) for name in names}
        items = list(x) if isinstance(x, tuple) else [x]
        if len(items) != len(names):
            raise OnnxError(f"{len(items)} inputs were given; the model takes {len(names)}: {', '.join(names)}")
        return {name: fitting(item, inputs[name]) for name, item in zip(names, items)}

    def _run(self, session: Any, asked: Sequence[str], feeds: Mapping[str, Any], known: Mapping[str, Any]) -> list[Any]:
        from onnxruntime import OrtValue

        given = {name: OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
        try:
            return list(session.run_with_ort_values(list(asked), {**given, **known}))
        except Exception as error:  # onnxruntime's own classes share no base
            raise OnnxError(f"onnxruntime could not run {self.path.name}: {one_line(error, 300)}") from error

    @functools.cached_property
    def _forward(self) -> Any:
        name = self.description.get("forward")
        if not name:
            raise OnnxError(f"{self.path.name} was exported without its forward file; export with forward=True.")
        return open_session(companion(self.path, name), *self._options)


def _show(done: int, total: int, text: str) -> None:
    """A progress bar of one line on stderr."""
    filled, end = 24 * done // total, "\n" if done == total else ""
    print(f"\r[{'#' * filled}{'.' * (24 - filled)}] {done}/{total} {text}\033[K", end=end, file=sys.stderr, flush=True)
