"""What `attribute` and `lfpgraph explain` say to input that cannot be explained: our own exceptions, one clear line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import lfpgraph
from lfpgraph.cli.app import app
from lfpgraph.errors import (
    AttributionError,
    CompositeError,
    InputError,
    LfpGraphError,
    NonFiniteError,
)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        hidden = self.words(ids).mean(1)
        return self.head(hidden) * scale, hidden


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()


X = torch.ones(2, 1, 8, 8)


def refused(error: type[LfpGraphError], match: str, *args: Any, **options: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        lfpgraph.attribute(*args, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.ones(2, 1, 9, 9), "cannot be multiplied"),
        (torch.ones(2, 3, 8, 8), "to have 1 channels, but got 3"),
        (torch.ones(8, 8), r"input of size: \[8, 8\]"),
        (X.double(), r"Input type \(double\)"),
        (X.long(), r"Input type \(long int\)"),
        (X.to("meta"), "device"),
        ((X, X), "3 were given"),
        ({"pixels": X}, "unexpected keyword argument 'pixels'"),
    ],
    ids=["size", "channels", "dimensions", "double", "integer", "device", "too_many", "keyword"],
)
def test_a_model_that_does_not_run_says_so_itself(net: nn.Module, inputs: Any, message: str) -> None:
    refused(InputError, f"Sequential itself does not run on these inputs: .*{message}", net, inputs, 0)


def test_a_call_after_the_first_is_refused_alike() -> None:
    model = Tokens()
    lfpgraph.attribute(model, torch.tensor([[1, 2]]), 0)
    refused(InputError, "Tokens itself does not run .*index out of range", model, torch.tensor([[1, 20]]), 0)
    refused(InputError, "unexpected keyword argument 'words'", model, {"words": torch.tensor([[1, 2]])}, 0)
    refused(InputError, "missing 1 required positional argument: 'ids'", model, {"scale": torch.ones(1)}, 0)


def test_no_numbers(net: nn.Module) -> None:
    broken = X.clone()
    broken[0, 0, 0, 0] = torch.nan
    refused(NonFiniteError, "an input holds NaN or infinity", net, broken, 0)
    assert lfpgraph.attribute(net, broken, lambda out: out[1:, 0])[1].isfinite().all()  # the other sample is explained
    bad = nn.Linear(2, 2)
    with torch.no_grad():
        bad.weight.fill_(torch.inf)
    refused(NonFiniteError, "the inputs are finite", bad, torch.ones(1, 2), 0)
    assert lfpgraph.attribute(net, X[:0], 0).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, "cannot be explained"),
        (["cat", "dog"], "cannot be explained"),
        (("cat",), "must hold whole numbers"),
        ((True,), "must hold whole numbers"),
        (1.5, "is no class index"),
        (torch.ones(2, dtype=torch.complex64), "is no class index"),
        (lfpgraph.Contrast(sum, 1), "within a Contrast"),
        (lambda out: out["logits"], r"a tensor of shape \[2, 3\]: IndexError"),
    ],
    ids=["dict", "words", "place", "truth", "float", "complex", "contrast", "function"],
)
def test_targets_of_a_wrong_kind(net: nn.Module, target: Any, message: str) -> None:
    refused(AttributionError, message, net, X, target)


def test_targets_of_other_types(net: nn.Module) -> None:
    expected = lfpgraph.attribute(net, X, [0, 2])
    for target in (torch.tensor([0, 2], dtype=torch.uint8), np.array([0, 2]), range(0, 4, 2)):
        torch.testing.assert_close(lfpgraph.attribute(net, X, target), expected)
    torch.testing.assert_close(lfpgraph.attribute(net, X, (np.int64(1),)), lfpgraph.attribute(net, X, 1))
    assert lfpgraph.attribute(nn.Linear(4, 1), torch.randn(0, 4)).shape == (0, 4)


def test_names_and_options(net: nn.Module) -> None:
    refused(CompositeError, "unknown composite 'epsilon-pluss'; near it: epsilon-plus,", net, X, 0, "epsilon-pluss")
    refused(AttributionError, "no module or node of the graph; modules: 0, 1, 2, 3$", net, X, 0, record="head")
    refused(AttributionError, "must be names", net, X, 0, record=3)
    refused(CompositeError, "unknown composite ..epsilon", net, X, 0, ["epsilon"])
    refused(AttributionError, "condition: 'head' is no module", net, X, 0, "epsilon", condition={"head": [0]})
    refused(AttributionError, "'0' has channels 0 to 1, not .None.", net, X, 0, "epsilon", condition={"0": None})
    refused(
        AttributionError, "'0' has channels 0 to 1, not .True", net, X, 0, "epsilon", condition={"0": [True, False]}
    )
    refused(AttributionError, "that is no number must be a tensor", net, X, 0, baseline="black")
    refused(NonFiniteError, "the baseline holds NaN or infinity", net, X, 0, baseline=torch.nan)
    refused(NonFiniteError, "the baseline holds NaN or infinity", net, X, 0, baseline=X / 0)
    refused(AttributionError, "a sparse float input has no difference", net, X.to_sparse(), 0)
    refused(
        AttributionError, "on_missing='drive' is not known; choose one of derive, error", net, X, 0, on_missing="drive"
    )
    refused(AttributionError, "fallback='retry' is not known", net, X, 0, fallback="retry")
    refused(AttributionError, "parameters=.'3.weight'. is not known", net, X, 0, parameters=["3.weight"])
    refused(AttributionError, "details='yes' is not known", net, X, 0, details="yes")
    refused(
        AttributionError, "the first of its 2 float outputs, and target= does not say", Tokens(), torch.tensor([[1, 2]])
    )


def test_a_model_under_no_grad_has_no_way_for_relevance() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.head(x)

    refused(AttributionError, "under no_grad", Frozen(), torch.ones(2, 3), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "large.npy", "--target", "1"], "itself does not run on these inputs"),
        (["--input", "nan.npy", "--target", "1"], "an input holds NaN"),
        (["--input", "words.npy"], "numbers are needed"),
        (["--input", "gone.npy"], "no such file: gone.npy"),
        (["--input", "gone.png"], "no such file: gone.png"),
        (["--input", "a text"], "a text needs a tokenizer"),
        (["--input", "gone.png", "--channels", "2"], "1 channel or 3"),
        (["--input", "good.npy", "--target", "7"], "target=7 is out of range"),
        (["--input", "good.npy", "--target", "cat"], "--target 'cat' is none of"),
        (["--input", "good.npy", "--composite", "epsilon_plus"], "near it: epsilon-plus"),
    ],
    ids=lambda value: "-".join(value[1:]).replace(" ", "_") if isinstance(value, list) else "",
)
def test_explain_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("refused_model.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))\n"
    )
    good = np.ones((1, 1, 8, 8), dtype=np.float32)
    broken = good.copy()
    broken[0, 0, 0, 0] = np.nan
    arrays = {"good": good, "large": np.ones((1, 1, 9, 9)), "nan": broken, "words": np.array(["a"])}
    for name, values in arrays.items():
        np.save(f"{name}.npy", values)
    result = CliRunner().invoke(app, ["explain", "refused_model:build", *options])
    text = result.output + str(result.exception or "")
    assert result.exit_code == 1 and message in text
    assert not Path("explanation.html").exists()


def test_tensors_without_memory(net: nn.Module) -> None:
    refused(AttributionError, "without memory", copy.deepcopy(net).to("meta"), X.to("meta"), 0)
    torch.set_default_device("meta")
    try:
        found = lfpgraph.attribute(net, X, 0)  # on the CPU all the same
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(found, lfpgraph.attribute(net, X, 0))


@pytest.mark.parametrize("baseline", [float("nan"), float("inf"), 1e39, 10**400])
def test_a_baseline_that_is_no_number_of_the_inputs(net: nn.Module, baseline: float) -> None:
    refused(NonFiniteError, "too large for the inputs", net, X, 0, "epsilon", baseline=baseline)


class Pooled(nn.Module):
    """A mean over places that a mask of numbers chooses, as sentence embeddings have it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self.last((x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))
        return found


def test_a_model_that_is_no_number_at_the_baseline() -> None:
    """The default baseline of a mask is zero, by whose sum the model divides."""
    torch.manual_seed(0)
    model, x, mask = Pooled(), torch.randn(2, 5, 4), torch.ones(2, 5)
    with pytest.raises(NonFiniteError, match="Give a baseline="):
        lfpgraph.attribute(model, {"x": x, "mask": mask}, 1, "deeplift")
    given = {"x": torch.zeros_like(x), "mask": mask}
    found = lfpgraph.attribute(model, {"x": x, "mask": mask}, 1, "deeplift", baseline=given)
    assert found["x"].isfinite().all() and found["x"].any()
