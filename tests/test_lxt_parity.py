"""The rules of a Vision Transformer's operations, each against lxt's own function (AttnLRP), float64, at the true values.

lxt carries rewards r = s * a where rules here carry signals. Normalisations are left out: for training theirs is the
true vjp, where lxt blocks the statistics.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor

import lfpgraph
from lfpgraph.composites.composite import get_composite
from lfpgraph.engine.plan import make_plan
from lfpgraph.engine.propagate import run_backward, run_forward
from lfpgraph.tracing.tracer import trace

lxt = pytest.importorskip("lxt.explicit.functional")
rules = pytest.importorskip("lxt.explicit.rules")
aten = torch.ops.aten

LXT = {
    aten.linear.default: lambda x, w, b=None: lxt.linear_epsilon(x, w, b, 0.0),
    aten.matmul.default: lambda a, b: lxt.matmul(a, b, False, 0.0),
    aten.softmax.int: lambda x, dim, dtype=None: lxt.softmax(x, dim, dtype),
    aten.add.Tensor: lambda a, b: lxt.add2(a, b, False, 0.0),
    aten.gelu.default: lambda x, approximate="none": rules.identity_fn.apply(torch.nn.GELU(approximate), x),
}


def test_vit_operations_equal_lxt() -> None:
    model, batch = build_tiny("vit", "eager")
    model = model.double().eval()
    image = batch["pixel_values"].double()
    labels = batch["labels"]
    graph = trace(model, (), {"pixel_values": image, "labels": labels}, dynamic=False)
    wanted = {node for node in graph.placeholder_nodes if node.meta["val"].is_floating_point()}
    plan = make_plan(graph, get_composite("lfp-0"), wanted)
    values = graph.values_of_call(model, (), {"pixel_values": image, "labels": labels})
    compared: Counter[str] = Counter()

    def observe(unit: Any, call: Any, s: Any, answers: list[Any]) -> None:
        function = LXT.get(unit.node.target)
        if function is None or unit.origin != "rule" or unit.is_region:
            return
        leaves = [x.detach().requires_grad_() for x in call.inputs]
        position = iter(leaves)
        args, kwargs = torch.utils._pytree.tree_map(
            lambda a: next(position) if isinstance(a, Tensor) else a, (call.args, call.kwargs)
        )
        with torch.enable_grad():
            out = function(*args, **kwargs)
        rewards = torch.autograd.grad(out, leaves, s * call.output, allow_unused=True)
        for x, mine, theirs, active in zip(call.inputs, answers, rewards, unit.active):
            if active and theirs is not None:  # lxt gives a layer's parameters nothing
                # transformers' eager attention takes its softmax in float32 whatever comes in
                tolerance = 1e-9 if call.output.dtype == torch.float64 else 1e-5
                scale = float((s * call.output).abs().max())
                torch.testing.assert_close(mine * x, theirs, rtol=tolerance, atol=tolerance * scale)
                compared[str(unit.node.target)] += 1

    with torch.no_grad():
        _, calls, env = run_forward(plan, values)
        logits = next(n for n in graph.user_output_nodes if n.meta["val"].dim() > 0)
        run_backward(plan, calls, env, {logits: torch.randn_like(env[logits])}, observe=observe)
    assert set(compared) == {str(op) for op in LXT}, compared


@pytest.mark.parametrize("dims", [(1,), (-1,), (1, 2), (1, 2, 3)], ids=str)
def test_means_over_any_dimensions_keep_relevance(dims: tuple[int, ...]) -> None:
    """LXT's function takes one dimension, as a number; where there are more the rule here stands in."""

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(3, 3, bias=False), torch.nn.LazyLinear(2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu().mean(dims).reshape(len(x), -1))

    torch.manual_seed(0)
    model, x = Mean().double(), torch.rand(2, 4, 5, 3, dtype=torch.float64)
    explained = model(x)[:, 1]
    torch.testing.assert_close(
        lfpgraph.attribute(model, x, 1, "lxt").flatten(1).sum(1), explained, rtol=1e-3, atol=1e-4
    )
