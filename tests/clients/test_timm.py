"""timm's training step: its models, mixing of examples, scaler, mean of weights and optimizers, as its train.py has them."""

from __future__ import annotations

import contextlib
import enum
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class _Nothing(types.ModuleType):
    """A part of torchvision, whose wheel is linked to CUDA: timm names it as it is imported, and trains without."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name == "InterpolationMode":
            return enum.Enum(name, "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS")
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


_PARTS = ("", ".datasets", ".models.feature_extraction", ".ops.misc", ".transforms", ".transforms.functional", ".utils")
_NOTHING = {f"torchvision{part}": _Nothing(f"torchvision{part}") for part in (*_PARTS, ".models", ".ops")}
_NOTHING["torchvision"].transforms = _NOTHING["torchvision.transforms"]  # type: ignore[attr-defined]
_ours = {name: made for name, made in _NOTHING.items() if name not in sys.modules}
sys.modules.update(_ours)

import timm  # noqa: E402
from timm.data.mixup import Mixup  # noqa: E402
from timm.loss import SoftTargetCrossEntropy  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.task import ClassificationTask, LogitDistillationTask  # noqa: E402
from timm.utils import ModelEmaV3, NativeScaler  # noqa: E402

for _name in _ours:
    del sys.modules[_name]

from .checks import check_first_step, grads_of, wrapped  # noqa: E402

MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2},
    "resnet18": {},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
}


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=4, drop_path_rate=0.1, **MODELS[name])  # type: ignore[no-any-return]


# At which backprop learns in so few steps, where 1e-2 is too large for it.
RATES = {"vit_tiny_patch16_224": 3e-3}


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    y = torch.randint(4, (16,), generator=draw)
    x = 0.5 * torch.randn(16, 3, 32, 32, generator=draw)
    x[torch.arange(16), :, 8 * y] += 2.0  # a bright row says which
    return x, y


def train(
    name: str, way: str, steps: int = 1, optimizer: str = "adamw", amp: bool = False, every: int = 1, task: Any = None,
    mixed: bool = True, rate: float = 2e-3,
) -> tuple[dict[str, Tensor], list[float]]:  # fmt: skip
    """The loop of timm's train.py."""
    model = wrapped(model_of(name), way)
    mean = ModelEmaV3(model, decay=0.9)
    update = create_optimizer_v2(model, opt=optimizer, lr=rate, weight_decay=0.05, layer_decay=0.75)
    scaler = NativeScaler(device="cpu") if amp else None
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=4)
    run: Callable[[Tensor, Tensor], Tensor] = lambda x, y: SoftTargetCrossEntropy()(model(x), y)  # noqa: E731
    if task is not None:
        made = task(model)
        run = lambda x, y: made(x, y)["loss"]  # noqa: E731
    first: dict[str, Tensor] = {}
    losses = []
    for step in range(steps * every):
        torch.manual_seed(step)
        x, y = batch(step)
        if mixed:
            import numpy

            numpy.random.seed(step)
            x, y = mix(x, y)
        last = step % every == every - 1
        with torch.autocast("cpu", torch.bfloat16) if amp else contextlib.nullcontext():
            loss = run(x, y) / every
        if scaler is not None:
            scaler(loss, update, clip_grad=1.0, parameters=model.parameters(), need_update=last)
            first = first or (grads_of(model) if last else {})
        else:
            loss.backward()
            if last:
                first = first or grads_of(model)
                update.step()
        if last:
            update.zero_grad()
            mean.update(model, step)
        losses.append(every * loss.item())
    return first, losses


@pytest.mark.client("timm", "{name}: Mixup and CutMix, layer decay, a mean of weights (ModelEmaV3)", "nothing")
@pytest.mark.parametrize("name", MODELS)
def test_model(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check_first_step(lambda way: train(name, way)[0], caplog)
    falls = {}
    for way in ("plain", "wrapped"):
        losses = train(
            name,
            way,
            40,
            mixed=False,
            rate=RATES.get(name, 1e-2),
            task=lambda model: ClassificationTask(model, verbose=False),
        )[1]
        falls[way] = losses[0] - sum(losses[-5:]) / 5
    print(name, falls)
    assert falls["wrapped"] > 0.8 * falls["plain"] > 0


OPTIONS: dict[str, dict[str, Any]] = {
    "bf16 and NativeScaler": {"amp": True},
    "accumulation": {"every": 2},
    "LAMB": {"optimizer": "lamb"},
    "ClassificationTask": {"task": lambda model: ClassificationTask(model, verbose=False), "mixed": False},
    "LogitDistillationTask": {
        "task": lambda model: LogitDistillationTask(model, model_of("resnet18"), distill_loss_weight=0.5, verbose=False),
        "mixed": False,
    },
}  # fmt: skip


@pytest.mark.client("timm", "{option}")
@pytest.mark.parametrize("option", OPTIONS)
def test_options(option: str, caplog: pytest.LogCaptureFixture) -> None:
    check_first_step(
        lambda way: train("vit_tiny_patch16_224", way, **OPTIONS[option])[0], caplog, 5e-2 if "bf16" in option else 1e-5
    )
