"""Pages of reports: what is folded and what is one box. How they look in a browser is in tests/browser."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

import lfpgraph


class Blocks(nn.Module):
    """Three equal blocks with a GELU that is written out, and one that differs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([*(Written(8) for _ in range(3)), Written(8, 4)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Written(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(sizes[0], sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return 0.5 * h * (1 + torch.erf(h / 2**0.5))


def test_the_tree_folds_equal_blocks_and_has_functions_as_one() -> None:
    report = lfpgraph.coverage(Blocks(), torch.randn(2, 8))
    data = json.loads(report.to_html().split('id="data">')[1].split("</script>")[0])
    shown = {data["strings"][name]: times for name, _, _, times in data["branches"]}
    assert shown["0 ... 2 Written"] == 3 and shown["3 Written"] == 1 and shown["layer Linear"] == 1
    assert "activation, written out" in shown and shown["blocks ModuleList"] == 1
    members = [members for name, members, *_ in data["branches"] if data["strings"][name] == "activation, written out"]
    assert len(members) == 4 and {len(each) for each in members} == {5}
