"""Names made to be taken for something else, and a model that has parts of these names."""

from __future__ import annotations

from torch import Tensor, nn

NAMES = (
    "<script>alert(1)</script>", "<!--<script>", "</details>", "[/red]", "[link=http://a]b[/link]", "\x1b[31m\x07",
    "\u202eabc", "a\nb", '"q"\\', "{{7*7}}", "x\x00y", "=cmd|'/c calc'!A1", "é 漢", "half \ud800 of one",
)  # fmt: skip


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.Linear(3, 3) for name in NAMES})

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part(x).erfinv().tanh()
        return x
