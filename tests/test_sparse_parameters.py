"""Sparse parameters and constants: what the same numbers get in a dense tensor, at their places."""

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.live.bridges import nothing
from lfpgraph.wrapping import choice

COMPRESS = {"coo": Tensor.to_sparse, "csr": Tensor.to_sparse_csr}


class Graph(nn.Module):
    """Mixes the rows of a hidden layer by a matrix; the gradient of `torch.mm` is dense, that of `torch.sparse.mm` sparse."""

    def __init__(self, matrix: Tensor, trainable: bool, mm: bool) -> None:
        super().__init__()
        self.mm = mm
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.matrix = nn.Parameter(matrix) if trainable else None
        self.register_buffer("constant", None if trainable else matrix)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.constant if self.matrix is None else self.matrix
        product = torch.mm if matrix.layout is torch.strided or self.mm else torch.sparse.mm
        return self.second(torch.relu(product(matrix, torch.relu(self.first(x)))))


def feedback(matrix: Tensor, composite: str, engine: str, trainable: bool, mm: bool) -> dict[str, Tensor]:
    model = lfpgraph.wrap(Graph(matrix, trainable, mm).double(), composite, engine=engine)
    for i in range(2):
        model(torch.randn(5, 6, generator=torch.Generator().manual_seed(i)).double()).square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    assert not trainable or found["matrix"].layout is (torch.strided if mm else matrix.layout)
    return {name: grad.to_dense() for name, grad in found.items()}


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("engine", ["live", "auto"])
@pytest.mark.parametrize("trainable, mm", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("layout", COMPRESS)
@pytest.mark.parametrize("composite", ["lfp", "gradient"])
def test_sparse_as_dense(composite: str, layout: str, trainable: bool, mm: bool, engine: str, monkeypatch) -> None:
    monkeypatch.setattr(choice, "LIVE_FIRST", 0)
    torch.manual_seed(0)
    matrix = (torch.randn(5, 5) * (torch.rand(5, 5) > 0.4)).double()
    expected = feedback(matrix, composite, "live", trainable, mm)
    if trainable and not mm:
        expected["matrix"] = expected["matrix"] * (matrix != 0)
    found = feedback(COMPRESS[layout](matrix), composite, engine, trainable, mm)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.any()
        torch.testing.assert_close(value, expected[name], msg=lambda m, n=name: f"{n}: {m}")


class Made(nn.Module):
    """A matrix of activations, sparse or dense, added to a multiple of itself."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.entries, self.last, self.sparse = nn.Linear(3, 5), nn.Linear(4, 2), sparse

    def forward(self, x: Tensor) -> Tensor:
        places = torch.tensor([[0, 1, 2, 3, 1], [1, 2, 3, 0, 3]])
        matrix = torch.sparse_coo_tensor(places, self.entries(x).sum(0), (4, 4), check_invariants=False)
        if not self.sparse:
            matrix = matrix.to_dense()
        total = matrix + matrix * 3
        return self.last(total.to_dense() if self.sparse else total)


@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon"])
def test_a_sparse_total_of_activations(composite: str) -> None:
    found = []
    for sparse in (True, False):
        model = lfpgraph.wrap(Made(sparse).double(), composite, engine="live")
        for i in range(2):
            model(torch.randn(5, 3, generator=torch.Generator().manual_seed(i)).double()).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("layout", COMPRESS)
def test_no_signal_for_a_sparse_tensor_is_sparse(layout: str) -> None:
    s = COMPRESS[layout](torch.eye(3) * torch.inf)
    found = nothing(s)
    assert found.layout is s.layout and found.shape == s.shape
    assert not found.to_dense().any()
