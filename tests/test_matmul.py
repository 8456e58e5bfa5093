"""Products of the walk back by oneDNN are those of torch.mm; a forward keeps torch.mm itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lfpgraph
from lfpgraph.native import matmul
from lfpgraph.passes.fastcalls import quick_products

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of PyTorch has no oneDNN"
)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Has oneDNN taken for every product; the sizes of the products that it was asked for."""
    found: list[tuple[int, ...]] = []
    fits = matmul._fits

    def watched(*xs: Tensor) -> bool:
        if fits(*xs):
            found.append(tuple(xs[-1].shape))
            return True
        return False

    monkeypatch.setattr(matmul, "onednn_is_quicker", lambda: True)
    monkeypatch.setattr(matmul, "onednn_takes_half", lambda: True)
    monkeypatch.setattr(matmul, "LEAST", 1)
    monkeypatch.setattr(matmul, "_fits", watched)
    return found


LAYOUTS = [lambda x: x, lambda x: x.t().contiguous().t(), lambda x: x.repeat(2, 2)[::2, : x.shape[1]]]


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_the_product_is_that_of_torch(first, second, taken: list[tuple[int, ...]]) -> None:
    a, b, c = first(torch.randn(7, 12)), second(torch.randn(12, 9)), torch.randn(7, 9)
    exact = (a.double() @ b.double()).float()
    torch.testing.assert_close(matmul.mm(a, b), exact)
    torch.testing.assert_close(matmul.addmm(c, a, b), exact + c)
    torch.testing.assert_close(matmul.addmm(c[0], a, b), exact + c[0])
    torch.testing.assert_close(matmul.times(b, None, a)(a), exact)
    torch.testing.assert_close(matmul.times(b, c[0], a)(a), exact + c[0])
    torch.testing.assert_close(matmul.mm_into(torch.empty(7, 9), a, b), exact)
    torch.testing.assert_close(matmul.mm_into(torch.empty(7, 9), a, b, c), exact + c)
    total = c.clone()
    assert matmul.mm_into(total, a, b, total) is total
    torch.testing.assert_close(total, exact + c)
    assert taken == [(12, 9)] * 8


def test_what_onednn_has_not_is_torchs(taken: list[tuple[int, ...]]) -> None:
    a, b = torch.randn(4, 6), torch.randn(6, 5)
    row, column, whole = torch.randn(5), torch.randn(4, 1), torch.randn(4, 5)
    assert torch.equal(matmul.mm(a.double(), b.double()), a.double() @ b.double())
    assert matmul.mm(a[:0], b).shape == (0, 5)
    assert torch.equal(matmul.addmm(column, a, b), torch.addmm(column, a, b))
    assert torch.equal(matmul.addmm(row, a, b, beta=2), torch.addmm(row, a, b, beta=2))
    assert torch.equal(matmul.addmm(whole, a, b, alpha=2), torch.addmm(whole, a, b, alpha=2))
    assert taken == []


@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon", "gradient"])
def test_a_walk_takes_it_and_a_forward_does_not(composite: str, taken: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
    x, y = torch.randn(8, 12), torch.randint(5, (8,))
    feedback, answers = [], []
    for onednn in (False, True):
        wrapped = lfpgraph.wrap(nn.Sequential(*model), composite, engine="static")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matmul, "LEAST", 1 if onednn else 1 << 40)
            answers.append(wrapped(x))
            assert taken == []
            wrapped.zero_grad()
            nn.functional.cross_entropy(answers[-1], y).backward()
        assert bool(taken) == onednn
        feedback.append([p.grad.clone() for p in wrapped.parameters()])
    assert torch.equal(answers[0], model(x)) and torch.equal(answers[1], model(x))
    torch.testing.assert_close(feedback[1], feedback[0])


def test_a_tall_first_factor_that_is_not_in_order_gives_the_same(taken: list[tuple[int, ...]]) -> None:
    a, b = torch.randn(30, 40).t(), torch.randn(30, 2)
    for product in (matmul.mm(a, b), matmul.mm_into(torch.empty(40, 2), a, b)):
        assert product.is_contiguous()
        torch.testing.assert_close(product, (a.double() @ b.double()).float())
    assert taken == [(30, 2)] * 2


@pytest.mark.parametrize(
    ("processor", "half"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2", True),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17", False),
        ("AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD", True),
        ("AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", False),
        ("", False),
    ],
)
def test_which_processors_take_half_the_time(processor: str, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_processor", lambda: processor)
    assert matmul.onednn_takes_half.__wrapped__() == half


def test_where_it_gains_little_nothing_is_copied_for_it(
    taken: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "onednn_takes_half", lambda: False)
    a, b, wide = torch.randn(256, 256), torch.randn(256, 256), torch.randn(256, 1024)
    for first, second in ((a, b), (a, b.t()), (a[:100], b), (a.t(), b), (a, b.repeat(1, 2)[:, :256]), (a.t(), wide)):
        exact = (first.double() @ second.double()).float()
        torch.testing.assert_close(matmul.mm(first, second), exact, rtol=1e-4, atol=1e-4)
    assert taken == [(256, 256), (256, 256), (256, 1024)], "not what is small, nor what is copied first for few columns"


def test_a_forward_takes_it_for_what_recurrent_layers_alone_read(taken: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    model, x = nn.LSTM(6, 5, batch_first=True), torch.randn(4, 3, 6)
    wrapped = lfpgraph.wrap(copy.deepcopy(model), engine="static")
    torch.testing.assert_close(wrapped(x)[0], model(x)[0])
    assert (6, 20) in taken


class _Given(TorchDispatchMode):
    """Notes the strides of the weights that oneDNN gets."""

    def __init__(self) -> None:
        super().__init__()
        self.dense: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "mkldnn":
            w = args[2 if func._overloadname == "binary" else 1]
            self.dense.append(w.is_contiguous() or w.t().is_contiguous())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("second", LAYOUTS)
def test_onednn_gets_a_second_factor_without_gaps(second, taken: list[tuple[int, ...]]) -> None:
    """With gaps between its rows oneDNN takes a kernel two thousand times as slow."""
    a, b, c = torch.randn(7, 12), second(torch.randn(12, 9)), torch.randn(7, 9)
    with _Given() as given:
        matmul.mm(a, b), matmul.addmm(c, a, b), matmul.mm_into(torch.empty(7, 9), a, b), matmul.times(b, None, a)(a)
    assert given.dense == [True] * 4


def test_compiled_products_are_the_quicker_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler calls them as operations: all large ones of the walk back, and none of a forward but a recurrent layer's."""
    monkeypatch.setattr(matmul, "onednn_is_quicker", lambda: True)
    monkeypatch.setattr(matmul, "onednn_takes_half", lambda: True)
    graph = fx.Graph()
    a, b, c = (graph.placeholder(name) for name in "abc")
    a.meta["val"], b.meta["val"], c.meta["val"] = torch.ones(300, 200), torch.ones(200, 200), torch.ones(3, 200)
    ops = torch.ops.aten
    graph.output([graph.call_function(op, args) for op, args in ((ops.mm.default, (a, b)), (ops.mm.default, (c, b)))])
    module = fx.GraphModule(torch.nn.Module(), graph)
    own = torch.ops.lfpgraph_products.mm.default
    targets = [n.target for n in quick_products(module, walk=True).graph.nodes if n.op == "call_function"]
    assert targets == [own, ops.mm.default], "the small one is not worth a call"
    with monkeypatch.context() as slower:
        slower.setattr(matmul, "onednn_takes_half", lambda: False)
        assert own not in [n.target for n in quick_products(module, walk=True).graph.nodes]
    assert own not in [n.target for n in quick_products(module, walk=False).graph.nodes]


@pytest.mark.parametrize("name", ["mm", "addmm"])
def test_operations(name: str) -> None:
    factors = torch.randn(5, 300).t(), torch.randn(5, 7)
    given = factors if name == "mm" else (torch.randn(7), *factors)
    torch.testing.assert_close(getattr(torch.ops.lfpgraph_products, name)(*given), getattr(torch, name)(*given))
    torch.library.opcheck(
        getattr(torch.ops.lfpgraph_products, name).default, given, test_utils=("test_schema", "test_faketensor")
    )
