"""`lfp`: sums of activations, the largest spread that counts at a step, and options that are refused."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lfpgraph
from lfpgraph.composites.learning import learning_structure
from lfpgraph.composites.steps import STEP_WIDTHS
from lfpgraph.errors import CompositeError

from .support.helpers import secant_slope

LFP = lfpgraph.get_composite("lfp")


def feedback(model: nn.Module, composite, x: Tensor, engine: str) -> dict[str, Tensor]:
    twin = lfpgraph.wrap(copy.deepcopy(model), composite, engine=engine)
    F.cross_entropy(twin(x), torch.arange(len(x)) % 3).backward()
    return {name: p.grad for name, p in twin.named_parameters()}


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)

    @staticmethod
    def step(x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype) - (x < -0.5).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.step(self.first(x)))


@pytest.mark.parametrize("engine", ["live", "static"])
@pytest.mark.parametrize(("most", "scale"), [(1.0, 5.0), (0.5, 1.0), (9.0, 5.0)])
def test_a_large_spread_counts_as_the_most(most, scale, engine):
    torch.manual_seed(0)
    model, x = Steps().double(), scale * torch.randn(6, 5, dtype=torch.float64)
    composite = LFP if most == 1 else replace(LFP, structure=partial(learning_structure, step_spread=most))
    found = feedback(model, composite.with_options(epsilon=0.0), x, engine)["first.bias"]
    with torch.no_grad():
        z = model.first(x)
        s = (torch.softmax(model(x), -1) - F.one_hot(torch.arange(6) % 3, 3)) / 6 @ model.second.weight
    torch.testing.assert_close(found, (s * secant_slope(model.step, z, most)).sum(0))
    assert (z.std() > most) == (most < 9), "the spread does not put the bound to the test"


class Rounded(Steps):
    """Activations in units of a quantiser's, moved and rounded, as of whole numbers that have been summed."""

    def __init__(self, unit: Tensor) -> None:
        super().__init__()
        self.register_buffer("unit", unit)

    def step(self, x: Tensor) -> Tensor:
        return ((x + 3) / self.unit).round().clamp(-9, 9) * self.unit


@pytest.mark.parametrize("engine", ["live", "static"])
@pytest.mark.parametrize(
    ("unit", "most"),
    [(torch.tensor(4.0), 4.0), (torch.linspace(2, 8, 7), torch.linspace(2, 8, 7)), (torch.tensor(0.05), 1.0)],
    ids=["coarse", "of each channel", "fine"],
)
def test_what_is_rounded_in_coarse_units_may_spread_by_one_of_them(unit, most, engine):
    torch.manual_seed(0)
    model, x = Rounded(unit).double(), 20 * torch.randn(6, 5, dtype=torch.float64)
    found = feedback(model, LFP.with_options(epsilon=0.0), x, engine)["first.bias"]
    with torch.no_grad():
        z = model.first(x)
        s = (torch.softmax(model(x), -1) - F.one_hot(torch.arange(6) % 3, 3)) / 6 @ model.second.weight
        spread = torch.minimum(z.std(correction=0), torch.as_tensor(most).double())
        rises = [(model.step(z + w * spread) - model.step(z - w * spread)) / (2 * w**2) for w in STEP_WIDTHS]
        slope = sum(rises) / (spread * sum(1 / w for w in STEP_WIDTHS))
    torch.testing.assert_close(found, (s * slope).sum(0))
    assert (z.std() > torch.as_tensor(most)).all(), "the spread does not put the bound to the test"


@pytest.mark.parametrize("engine", ["live", "static"])
def test_sums_of_exactly_zero_pass_signals_on(engine):
    """`x + y`, `x - y`, sums and running totals: all of it, where the published rule passes nothing on."""

    class Totals(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 4), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.first(x), self.second(x)
            return torch.stack([a + b, (a - -b).mean(0).expand(6, 4), torch.stack([a, b]).cumsum(0)[1]], 1).sum(1)

    torch.manual_seed(0)
    model, x = Totals().double(), torch.randn(6, 5, dtype=torch.float64)
    with torch.no_grad():  # every total is zero
        model.second.weight.copy_(-model.first.weight)
        model.second.bias.copy_(-model.first.bias)
    for name in ("weight", "bias"):
        published = feedback(model, LFP.with_options(sums="epsilon", epsilon=1e-6), x, engine)[f"first.{name}"]
        whole = feedback(model, LFP.with_options(scale="signal"), x, engine)[f"first.{name}"]
        torch.testing.assert_close(whole, feedback(model, "gradient", x, engine)[f"first.{name}"])
        assert whole.abs().max() > 10 * published.abs().max()
    with pytest.raises(CompositeError, match="sums"):
        LFP.with_options(sums="none")


@pytest.mark.parametrize("engine", ["live", "static"])
@pytest.mark.parametrize("norm", [False, True])
def test_a_layer_that_gives_exactly_zero_passes_signals_on(norm, engine):
    """A product that cancels, or a norm of it; under a stabilizer nothing passes."""
    torch.manual_seed(0)
    parts = [nn.Linear(5, 2), nn.Linear(2, 4), nn.GroupNorm(1, 4) if norm else nn.Identity(), nn.Linear(4, 3)]
    model, x = nn.Sequential(*parts).double(), torch.randn(6, 5, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
        model[1].weight[:, 1] = -model[1].weight[:, 0]
        model[1].bias.zero_()
    assert not model[:2](x).any()
    found = feedback(model, LFP.with_options(scale="signal"), x, engine)["0.weight"]
    torch.testing.assert_close(found, feedback(model, "gradient", x, engine)["0.weight"])
    stopped = feedback(model, LFP.with_options(scale="signal", epsilon=1e-6), x, engine)["0.weight"]
    assert found.abs().max() > 1e9 * stopped.abs().max()


NONE = {
    "floor": [-1, "rms 2", "-1 rms", "0.3", "much rms", None, float("nan")],
    "unit": ["entries", "0 start", "-1 start", "1/0 start", "nan start", "1/3", None, 3],
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in NONE.items() for value in values])
def test_a_floor_or_unit_that_is_none_is_refused(option, value):
    with pytest.raises(CompositeError, match=option):
        LFP.with_options(**{option: value})
