"""Makes `lfprop_epsilon.npz` with the published lfprop 1.0.0, in a virtual environment of its own:

    python -m venv golden && golden/bin/pip install torch==2.13.0 numpy
    golden/bin/pip install --no-deps lfprop==1.0.0 lxt==0.6.1 zennit==0.5.1 transformers==4.52.4 tqdm
    golden/bin/pip install "huggingface-hub<1" "tokenizers>=0.21,<0.22" safetensors regex pyyaml requests tabulate pillow
    cd tests/golden && ../../golden/bin/python make_lfprop_golden.py

Keys: `model/state/name`, `model/feedback/name`, `model/{inputs,labels,reward,outputs,input_reward}`; all float64.
The model runs in train mode, so batch norm uses batch statistics; the state is the one before the run.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import numpy as np
import torch


class _Stub(types.ModuleType):
    """A stand-in for torchvision, which lfprop and zennit import and this script does not use."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for _name in ("", ".models", ".models.resnet", ".models.vgg", ".ops", ".ops.misc", ".transforms", ".utils"):
    _module = _Stub(f"torchvision{_name}")
    _module.__spec__ = importlib.machinery.ModuleSpec(_module.__name__, None)
    sys.modules[_module.__name__] = _module
# lfprop's rewritten ResNet needs torchvision for real; of it only the class `Sum` is named, and no model here has one.
sys.modules["lfprop.model.custom_resnet"] = _Stub("lfprop.model.custom_resnet")

from golden_models import BATCH, CLASSES, MODELS, Step  # noqa: E402
from lfprop.propagation import propagator_lxt  # noqa: E402
from lxt import rules as lrules  # noqa: E402


def run(name: str) -> dict[str, np.ndarray]:
    """Feedback of one model."""
    torch.manual_seed(sum(map(ord, name)))
    model, shape = MODELS[name]()
    model.double().train()
    parameters = dict(model.named_parameters())
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    inputs = torch.randn(BATCH, *shape, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(CLASSES, (BATCH,))
    composite = propagator_lxt.LFPEpsilonComposite(epsilon=1e-6)
    composite.layer_map[Step] = lrules.IdentityRule
    with composite.context(model) as wrapped:
        outputs = wrapped(inputs)
        one_hot = torch.nn.functional.one_hot(labels, CLASSES).double()
        reward = (outputs * (one_hot - outputs.softmax(1))).detach()
        (input_reward,) = torch.autograd.grad((outputs,), (inputs,), grad_outputs=(reward,))
    found = {f"state/{key}": value for key, value in state.items()}
    found |= {f"feedback/{key}": p.feedback for key, p in parameters.items()}  # type: ignore[attr-defined]
    found |= {
        "inputs": inputs,
        "labels": labels,
        "reward": reward,
        "outputs": outputs,
        "input_reward": input_reward,
    }
    return {f"{name}/{key}": value.detach().numpy() for key, value in found.items()}


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for name in MODELS:
        arrays |= run(name)
        print(name, sum(key.startswith(f"{name}/feedback") for key in arrays), "parameters with feedback")
    np.savez_compressed("lfprop_epsilon.npz", **arrays)


if __name__ == "__main__":
    main()
