"""OpGraph: classes, module paths, dynamic sizes, networkx, fake and meta tensors; the program's two graphs."""

from __future__ import annotations

import copy

import pytest
import torch
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

import lfpgraph
from lfpgraph.composites.composite import get_composite
from lfpgraph.engine.plan import make_plan
from lfpgraph.engine.program import make_program
from lfpgraph.errors import LiveOnlyError, TraceError
from lfpgraph.graph.calls import flatten_input
from lfpgraph.graph.graph import ACTIVE, CONSTANT, WEIGHT
from lfpgraph.tracing.tracer import trace
from lfpgraph.tracing.verify import differ

from .support.helpers import assert_made, assert_same, gradients


def test_classes_of_a_language_model() -> None:
    """Token embeddings are active, position embeddings weight-like, masks constant; the loss is the objective."""
    model, batch = build_tiny("bert", layers=1)
    graph = lfpgraph.trace(model, (), batch)
    kinds: dict[str, set[str]] = {ACTIVE: set(), WEIGHT: set(), CONSTANT: set()}
    parts: dict[str, str] = {}
    for node in graph.operations():
        kinds[graph.info[node].kind].add(str(node.target))
        parts[str(node.target)] = graph.info[node].part
    lookups = [n for n in graph.operations() if str(n.target) == "aten.embedding.default"]
    assert {graph.info[n].kind for n in lookups} == {ACTIVE, WEIGHT}
    assert "aten.matmul.default" in kinds[ACTIVE]
    assert parts["aten.linear.default"] == "network"
    assert "objective" in {graph.info[n].part for n in graph.operations()}
    assert graph.dynamic and graph.tracer == "export"


def test_a_call_of_tensors_is_flattened_as_any_other() -> None:
    x, y = torch.ones(2), torch.ones(3)
    for args, kwargs in (((x,), {}), ((x, y), {"b": y, "a": x}), ((), {"a": x}), ((), {})):
        leaves, spec = flatten_input(args, kwargs)
        expected, structure = pytree.tree_flatten((args, kwargs))
        assert spec == structure and all(a is b for a, b in zip(leaves, expected, strict=True))


def test_networkx_carries_paths_and_lines() -> None:
    model, batch = build_tiny("vgg-bn")
    graph = lfpgraph.trace(model, batch["input"])
    network = graph.to_networkx()
    assert network.number_of_nodes() == len(graph.graph.nodes)
    data = next(d for _, d in network.nodes(data=True) if d["op"] == "aten.conv2d.default")
    assert data["module"] == "0" and ".py:" in data["source"] and data["kind"] == ACTIVE and data["part"] == "network"


def test_meta_tensors() -> None:
    """An architecture traces without its weights."""
    model, batch = build_tiny("llama", layers=1)
    expected = lfpgraph.trace(model, (), batch)
    with torch.device("meta"):
        meta, meta_batch = build_tiny("llama", layers=1)
    meta_batch = {name: value.to("meta") for name, value in meta_batch.items()}
    try:
        meta(**meta_batch)
    except RuntimeError as error:
        pytest.skip(f"this version of transformers runs no Llama on the meta device: {error}")
    graph = lfpgraph.trace(meta, (), meta_batch)
    for op in ("linear", "silu", "softmax.int", "matmul", "rsqrt", "embedding"):
        counts = [sum(op in str(n.target) for n in g.operations()) for g in (graph, expected)]
        assert counts[0] == counts[1] > 0, op


def test_fake_tensors() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        inputs = torch.randn(3, 4)
    graph = lfpgraph.trace(fake, inputs)
    assert [str(n.target) for n in graph.operations()][-1] == "aten.linear.default"


class Gated(nn.Module):
    """A product with a value that is detached, or with the same numbers given."""

    def __init__(self, given: Tensor | None = None) -> None:
        super().__init__()
        self.shown, self.hidden, self.given = nn.Linear(4, 3), nn.Linear(4, 3), given

    def forward(self, x: Tensor) -> Tensor:
        return self.shown(x) * (self.hidden(x).detach() if self.given is None else self.given)


def test_a_detached_factor_takes_no_share(engine: str) -> None:
    """Of two active factors of `attnlrp` each takes half."""
    torch.manual_seed(0)
    plain, x = Gated(), torch.randn(5, 4)
    given = Gated(plain.hidden(x).detach())
    given.load_state_dict(plain.state_dict())
    found, expected = (gradients(lfpgraph.wrap(net, "attnlrp", engine=engine), x) for net in (plain, given))
    assert_same({name: found[name] for name in expected}, expected, 1e-6)


def test_no_grad_region_passes_no_reward(engine: str) -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shown, self.hidden = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                silent = self.hidden(x)
            return self.shown(x) * silent

    model = lfpgraph.wrap(Partly(), engine=engine)
    model(torch.randn(5, 4)).sum().backward()
    assert model.shown.weight.grad is not None and bool(model.shown.weight.grad.any())
    hidden = model.hidden.weight.grad
    assert hidden is None or not bool(hidden.any())


class Stopped(nn.Module):
    """Reads values that no gradient goes back from."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.head, self.how = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), how

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if self.how == "data":
            assert bool(x.any())  # which torch.export cannot trace
            return self.head(h * self.b.bias.data @ self.b.weight.data)
        with {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(self.how, torch.enable_grad)():
            stopped = self.b(h).sigmoid()
        stopped = stopped.clone() if self.how == "inference" else stopped
        if self.how == "itself":
            h = h * 2 + 1
            return self.head(h * h.detach())
        if self.how == "frozen":  # no other way for the input
            h = h.detach()
            return self.head(h * self.b(h).sigmoid())
        return self.head((h + stopped.detach()) * stopped.detach() if self.how == "detach" else (h + stopped) * stopped)


@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon"])
@pytest.mark.parametrize("how", ["no_grad", "inference", "detach", "data", "itself", "frozen"])
def test_stopped_values_are_constants_in_both_engines_and_in_a_record(how: str, composite: str) -> None:
    torch.manual_seed(0)
    model, x, reward = Stopped(how).double(), torch.randn(5, 6).double(), torch.randn(5, 3).double()
    found = []
    for engine in ("live", "static") if how != "data" else ("live",):
        wrapped = lfpgraph.wrap(copy.deepcopy(model), composite, engine=engine)
        wrapped(x).backward(-reward)
        found.append({n: -p.grad for n, p in wrapped.named_parameters() if p.grad is not None and bool(p.grad.any())})
    if how == "data":
        whole = lfpgraph.feedback(model, (x,), lambda out: reward * out, composite, fallback="retrace")
        found.append({n: s for n, s in whole.items() if n != "input_0" and bool(s.any())})
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_batch_and_sequence_sizes_on_one_trace() -> None:
    """One BERT trace serves batches 1 to 9 and lengths 2 to 20, equal to autograd in each."""
    model, _ = build_tiny("bert", layers=1)
    twin, _ = build_tiny("bert", layers=1)
    model, twin = model.double().eval(), twin.double().eval()
    lfpgraph.wrap(model, "gradient", engine="static")
    for n, length in ((4, 6), (1, 9), (9, 2), (2, 20), (3, 6)):
        ids = torch.randint(1, 60, (n, length))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(n) % 3}
        assert_same(gradients(model, **batch), gradients(twin, **batch), 1e-10, 1e-13)
    assert_made(model, "static")


def test_program_is_two_printable_graphs() -> None:
    """Forward and feedback are plain torch.fx graphs of ATen operations and feedback's formulas, without autograd."""
    model, batch = build_tiny("mlp")
    graph = lfpgraph.trace(model, batch["input"])
    wanted = {n for n, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind == "parameter"}
    program = make_program(make_plan(graph, get_composite("lfp-epsilon"), wanted), [])
    assert "aten.addmm" in program.print() and "lfpgraph.epsilon_factor" in program.print()
    for module in (program.forward, program.feedback):
        targets = [n.target for n in module.graph.nodes if n.op == "call_function"]
        assert targets and all(isinstance(t, torch._ops.OpOverload) or t.__module__ == "_operator" for t in targets)
    random = [n for n in program.feedback.graph.nodes if str(n.target) == "aten.native_dropout.default"]
    assert not random


def test_parameters_written_in_forward() -> None:
    """A teacher that follows its student is written as often as the model writes it; the static engine refuses it."""

    class Follows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = nn.Linear(4, 3), nn.Linear(4, 3)
            self.teacher.requires_grad_(False)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                self.teacher.weight.lerp_(self.student.weight, 0.1)
                target = self.teacher(x)
            return self.student(x), target

    model = Follows()
    twin, x = lfpgraph.wrap(copy.deepcopy(model)), torch.randn(5, 4)
    for _ in range(2):
        torch.testing.assert_close(twin(x), model(x))
    torch.testing.assert_close(twin.teacher.weight, model.teacher.weight)
    with pytest.raises(LiveOnlyError, match="writes the parameter teacher.weight"):
        lfpgraph.wrap(copy.deepcopy(model), engine="static")(x)


def test_a_view_that_torch_takes_for_impossible() -> None:
    """Fake tensors keep the strides of what a batch norm reads; real ones are contiguous, and can be viewed."""

    class Points(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(3), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(x.transpose(1, 2)).view(len(x), -1))

    torch.manual_seed(0)
    model, x = Points(), torch.randn(5, 4, 3)
    wrapped = lfpgraph.wrap(copy.deepcopy(model), "gradient", engine="static")
    for net in (model, wrapped):
        net(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in wrapped.parameters()], [p.grad for p in model.parameters()])

    class Impossible(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x.transpose(1, 2).view(len(x), -1))

    with pytest.raises(RuntimeError, match="view size is not compatible"):
        lfpgraph.wrap(Impossible(), engine="static")(x)


class Assigns(nn.Module):
    """Gives a buffer's name another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("count", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count * 2
        out: Tensor = self.layer(x) * self.count
        return out


def test_a_buffer_that_forward_assigns_is_written() -> None:
    model, x = Assigns(), torch.randn(2, 3)
    graph = trace(model, x)
    assert graph.mutations == ["count"]
    found = graph.module(*graph.values([x], {**dict(model.named_parameters()), **dict(model.named_buffers())}))
    torch.testing.assert_close(found[0], 2 * model.count)


class Elsewhere(nn.Module):
    """Reads its weight from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.held = [self.layer.weight]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.held[0])


def test_a_parameter_that_a_trace_would_take_for_a_constant_is_refused() -> None:
    with pytest.raises(TraceError, match="reads the parameter layer.weight from elsewhere"):
        trace(Elsewhere(), torch.randn(2, 3))


def test_outputs_of_another_shape_differ() -> None:
    assert (
        differ([torch.zeros(2)], [torch.zeros(3)]) == float("inf") and differ([torch.zeros(2)], [torch.zeros(2)]) == 0
    )
