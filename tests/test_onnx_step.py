"""Exported training steps: onnxruntime moves the parameters as PyTorch's feedback training does, step for step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import InputError, OnnxError

from .support.helpers import relative
from .support.onnx_cases import CASES, Case, output_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from lfpgraph.onnx import OrtTrainer, export_training_step  # noqa: E402

OPTIMIZERS = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr),
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr),
}
QUICK = [("mlp", "sgd"), ("mlp", "adam"), ("lenet", "sgd"), ("norm_cnn", "momentum"), ("step_cnn", "sgd")]

REST = [(name, optimizer) for name in CASES for optimizer in OPTIMIZERS if (name, optimizer) not in QUICK]


def distance(trainer: OrtTrainer, model: nn.Module) -> float:
    """The largest relative difference of a parameter or a float buffer."""
    expected = {k: v for k, v in model.state_dict().items() if k in trainer.state_dict()}
    found = trainer.state_dict()
    assert {k for k, _ in model.named_parameters()} <= set(found)
    assert all(bool(torch.isfinite(value).all()) for value in expected.values())
    return max(relative(torch.from_numpy(found[name]), value) for name, value in expected.items())


def fifty_steps(case: Case, optimizer: str, folder: Path, epsilon: float) -> tuple[float, float, float]:
    """The distances after fifty steps of both: of the parameters, of the last loss and of the last outputs."""
    lr = case.lr if optimizer != "adam" else case.lr / 10
    model = case.build()
    rules = lfpgraph.get_composite("lfp-epsilon").with_options(epsilon=epsilon)
    path = export_training_step(model, case.batch(4), folder / "step.onnx", "softmax", optimizer, rules)
    onnx.checker.check_model(str(path), full_check=True)
    assert path.stat().st_size <= 1.2 * sum(t.nbytes for t in model.state_dict().values()) + 1e6
    trainer = OrtTrainer(path)
    assert distance(trainer, model) == 0
    start = copy.deepcopy(model).state_dict()
    lfpgraph.wrap(model, rules, engine="static")  # as the file is made: recurrent layers step by step
    update = OPTIMIZERS[optimizer](model.parameters(), lr)
    for step in range(50):
        x = case.batch(2 + step % 4)  # the batch is open
        output = output_of(model(x))
        y = torch.randint(0, output.shape[-1], output.shape[:-1])
        loss = nn.functional.cross_entropy(output.flatten(0, -2), y.flatten())
        update.zero_grad()
        loss.backward()
        update.step()
        found = trainer.step(x.numpy(), y.numpy(), lr=lr)
    moved = [k for k, v in model.state_dict().items() if v.is_floating_point() and not torch.equal(v, start[k])]
    assert len(moved) > 1
    loss_distance = abs(found.metrics["loss"] - loss.item()) / loss.item()
    return distance(trainer, model), loss_distance, relative(torch.from_numpy(found.outputs[0]), output.detach())


@pytest.mark.parametrize(
    ("name", "optimizer"), [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)]
)
def test_fifty_steps_equal_torch(name: str, optimizer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parameters, loss, outputs = fifty_steps(CASES[name], optimizer, tmp_path, CASES[name].epsilon)
    assert parameters <= 1e-4
    assert loss <= 1e-4
    assert outputs <= 1e-3


def test_only_standard_operators_of_one_opset(tmp_path: Path) -> None:
    path = export_training_step(CASES["norm_cnn"].build(), CASES["norm_cnn"].batch(4), tmp_path / "s.onnx")
    proto = onnx.load(str(path))
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 20)]
    assert {node.domain for node in proto.graph.node} == {""}


class Rolled(nn.Module):
    """All entries of a batch moved on by three, over the ends of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.roll(self.first(x), 3))


class Enlarged(nn.Module):
    """Images made larger and smaller, by the nearest entries and between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.interpolate(torch.tanh(self.first(x)), scale_factor=1.5)
        h = nn.functional.interpolate(h, size=(5, 11), mode="bilinear")
        h = nn.functional.interpolate(h, size=(8, 6), mode="bilinear", align_corners=True)
        return self.last(nn.functional.interpolate(h, size=(3, 4)).square().mean((2, 3)))


@pytest.mark.parametrize("build", [Rolled, Enlarged])
def test_odd_ways_of_moving_entries_equal_torch(build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, y = build(), torch.randn(5, 4) if build is Rolled else torch.randn(3, 2, 5, 7), torch.randint(3, (5,))
    y = y[: len(x)]
    trainer = OrtTrainer(export_training_step(model, x, tmp_path / "s.onnx"))
    assert relative(torch.from_numpy(trainer.predict(x.numpy())), model(x).detach()) <= 1e-6
    lfpgraph.wrap(model)
    nn.functional.cross_entropy(model(x), y).backward()
    torch.optim.SGD(model.parameters(), 1e-2).step()
    trainer.step(x.numpy(), y.numpy(), 1e-2)
    assert distance(trainer, model) <= 1e-6


@pytest.mark.parametrize("reward", ["mse", "external", "signal"])
def test_other_rewards_equal_torch(reward: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, y = CASES["mlp"].build(), torch.randn(6, 20), torch.randn(6, 5)
    # The external reward is divided by outputs, some of them near zero: too much for biases that take the plain signal.
    composite, lr = ("lfp-epsilon", 1e-4) if reward == "external" else ("lfp", 1e-2)
    trainer = OrtTrainer(export_training_step(model, x, tmp_path / "s.onnx", reward, composite=composite))
    lfpgraph.wrap(model, composite)
    update = torch.optim.SGD(model.parameters(), lr)
    for _ in range(5):
        output = model(x)
        losses = {
            "mse": nn.functional.mse_loss,
            "external": lfpgraph.reward_loss,
            "signal": lambda o, s: -(o * s).sum(),
        }
        loss = losses[reward](output, y)
        update.zero_grad()
        loss.backward()
        update.step()
        metrics = trainer.step(x.numpy(), y.numpy(), lr).metrics
    expected = {
        "mse": {"loss": loss.item()},
        "external": {"reward": y.sum().item()},
        "signal": {"reward": -loss.item()},
    }
    assert metrics == pytest.approx(expected[reward], rel=1e-5)
    assert distance(trainer, model) <= 1e-5


def test_left_out_labels_and_clipping_equal_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, y = CASES["mlp"].build(), torch.randn(6, 20), torch.tensor([0, 1, -100, 2, -100, 4])
    trainer = OrtTrainer(export_training_step(model, x, tmp_path / "s.onnx", clip=0.05))
    lfpgraph.wrap(model)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05) > 0.05
    torch.optim.SGD(model.parameters(), 1.0).step()
    assert trainer.step(x.numpy(), y.numpy(), 1.0).metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert distance(trainer, model) <= 1e-5


class Strange(nn.Module):
    """Two inputs in a dict, tied weights, a frozen weight, a parameter no reward reaches, a buffer, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(6, 3)
        self.frozen.weight.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("offset", torch.randn(6))

    def forward(self, data: dict[str, Tensor], scale: Tensor) -> dict[str, Any]:
        hidden = self.second(torch.relu(self.first(data["a"] + self.offset)) * scale)
        return {"logits": self.frozen(hidden), "count": data["a"].shape[0], "hidden": hidden}


def test_odd_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Strange()
    data, scale, y = {"a": torch.randn(4, 6)}, torch.rand(4, 6), torch.randint(0, 3, (4,))
    trainer = OrtTrainer(export_training_step(model, {"data": data, "scale": scale}, tmp_path / "s.onnx"))
    assert trainer.description["inputs"] == ["data.a", "scale"]
    assert set(trainer.parameters()) == set(dict(model.named_parameters(remove_duplicate=False)))
    lfpgraph.wrap(model)
    nn.functional.cross_entropy(model(data=data, scale=scale)["logits"], y).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    result = trainer.step({"data.a": data["a"].numpy(), "scale": scale.numpy()}, y.numpy(), 0.1)
    assert [output.shape for output in result.outputs] == [(4, 3), (), (4, 6)]
    assert distance(trainer, model) <= 1e-6


def test_dropout_is_refused_or_seeded(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3))
    x, y = torch.randn(5, 8), np.zeros(5, np.int64)
    with pytest.raises(OnnxError, match=r"random numbers.*seed="):
        export_training_step(model, x, tmp_path / "s.onnx")
    path = export_training_step(model, x, tmp_path / "s.onnx", seed=3)
    runs = []
    for _ in range(2):
        trainer = OrtTrainer(path)
        runs.append([trainer.step(x.numpy(), y, 0.0).outputs[0] for _ in range(2)])
    assert np.array_equal(runs[0], runs[1])  # the same seed
    assert not np.array_equal(runs[0][0], runs[0][1])  # another mask at each step
    assert np.array_equal(trainer.predict(x.numpy()), trainer.predict(x.numpy()))
    export_training_step(model.eval(), x, tmp_path / "e.onnx")


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    model, x, path = CASES["mlp"].build(), torch.randn(4, 20), tmp_path / "s.onnx"
    for keywords, word in (
        ({"reward": "hinge"}, "softmax"),
        ({"optimizer": "lion"}, "adam"),
        ({"options": {"momentum": 0.5}}, "sgd has no"),
        ({"parameters": "nowhere"}, "inside"),
    ):
        with pytest.raises(OnnxError, match=word):
            export_training_step(model, x, path, **keywords)
    with pytest.raises(InputError, match="no parameters that train"):
        export_training_step(model.requires_grad_(False), x, path)
    with pytest.raises(InputError, match="inputs must be a tensor, a tuple or a dict, not int"):
        export_training_step(model, 3, path)
    assert not list(tmp_path.iterdir())


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x @ self.weight)


def test_an_operation_without_onnx_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(OnnxError, match=r"special_bessel_j0.*translates"):
        export_training_step(Unknown(), torch.randn(3, 4), tmp_path / "s.onnx", composite="lfp-epsilon")


def test_a_softmax_at_the_end_is_not_taken_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, y = CASES["mlp"].build(), torch.randn(6, 20), np.arange(6) % 5
    plain = OrtTrainer(export_training_step(model, x, tmp_path / "plain.onnx"))
    ended = nn.Sequential(*model, nn.Softmax(-1))
    trainer = OrtTrainer(export_training_step(ended, x, tmp_path / "ended.onnx"))
    for _ in range(3):
        expected, found = (t.step(x.numpy(), y, 0.1) for t in (plain, trainer))
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-5)
    np.testing.assert_allclose(found.outputs[0].sum(-1), 1, rtol=1e-5)  # the outputs are still chances
    assert distance(trainer, model) > 0
    for name, value in plain.parameters().items():
        np.testing.assert_allclose(trainer.parameters()[name], value, rtol=1e-5, atol=1e-7)


def test_an_operation_is_translated_as_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxscript import opset20 as op

    from lfpgraph.onnx.registry import TRANSLATORS

    monkeypatch.setitem(TRANSLATORS, torch.ops.aten.special_bessel_j0.default, lambda x: op.Cos(x))
    model, x = Unknown(), torch.randn(3, 4)
    trainer = OrtTrainer(export_training_step(model, x, tmp_path / "s.onnx", composite="gradient"))
    np.testing.assert_allclose(trainer.predict(x.numpy()), torch.cos(x @ model.weight).detach(), rtol=1e-5)


def test_statistics_that_stay_are_inside_the_forward_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = CASES["norm_cnn"].build().eval(), CASES["norm_cnn"].batch(4)
    trainer = OrtTrainer(export_training_step(model, x, tmp_path / "s.onnx"))
    assert not trainer.description["buffers"]
    assert relative(torch.from_numpy(trainer.predict(x.numpy())), output_of(model(x)).detach()) <= 1e-5


@pytest.mark.parametrize(("how", "most"), [("float16", 1e-3), ("int8", 2e-2)])
def test_frozen_parameters_may_take_less_room(how: str, most: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 5)), torch.randn(6, 64), np.arange(6) % 5
    model[0].requires_grad_(False)
    whole, path = (export_training_step(model, x, tmp_path / f"{k}.onnx", frozen=k) for k in ("inputs", how))
    trainer, other = OrtTrainer(path), OrtTrainer(whole)
    assert relative(torch.from_numpy(trainer.predict(x.numpy())), model(x).detach()) <= most
    for _ in range(3):
        found, expected = (t.step(x.numpy(), y, 0.1).metrics["loss"] for t in (trainer, other))
    assert found == pytest.approx(expected, rel=10 * most) and set(trainer.parameters()) == {"2.weight", "2.bias"}
    saved = whole.stat().st_size - path.stat().st_size
    assert saved > {"float16": 0.45, "int8": 0.7}[how] * model[0].weight.nbytes
