"""The HTML report in a real browser: it draws, opens, closes and zooms without a script error (slow)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lfpgraph

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=20000 --dump-dom"
).split()
# What a reader does: opens branches of the tree, opens and closes modules, shows constants, fits, drags, zooms.
CLICKS = """<script>
const sizes = [];
document.querySelectorAll("#tree details").forEach(item => { item.open = true; });
for (const b of [0, data.branches.length - 1, Math.floor(data.branches.length / 2)]) { reveal(b); sizes.push(current.length); }
const click = target => target && target.dispatchEvent(new MouseEvent("click", {bubbles: true}));
click(document.querySelector("#drawing g.box")); sizes.push(current.length);
document.getElementById("constants").click(); sizes.push(current.length);
document.getElementById("fit").click(); document.getElementById("reset").click();
drawing.dispatchEvent(new PointerEvent("pointerdown", {clientX: 5, clientY: 5}));
drawing.dispatchEvent(new PointerEvent("pointermove", {clientX: 50, clientY: 60}));
drawing.dispatchEvent(new WheelEvent("wheel", {deltaY: 100, clientX: 20, clientY: 20, cancelable: true}));
document.body.dataset.sizes = sizes.join(" ");
</script>"""


class Deep(nn.Module):
    """`blocks` blocks of `length` multiplications and additions each."""

    def __init__(self, blocks: int, length: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(length) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class Block(nn.Module):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(length, 2))

    def forward(self, x: Tensor) -> Tensor:
        for w in self.w.unbind():
            x = x * w + x
        return x


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize(("blocks", "length", "least"), [(2, 4, 20), (100, 100, 20_000)])
def test_page_in_browser(tmp_path: Path, blocks: int, length: int, least: int) -> None:
    report = lfpgraph.coverage(Deep(blocks, length), torch.randn(2, 2))
    assert report.data["nodes"]["total"] >= least
    page = tmp_path / "page.html"
    page.write_text(report.to_html().replace("</body>", CLICKS + "</body>"))
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    errors = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors
    drawn = re.search(r'data-ready="(\d+)"', run.stdout)
    sizes = re.search(r'data-sizes="([\d ]+)"', run.stdout)
    assert drawn and 2 <= int(drawn[1]) <= 110, "the first picture is small whatever the model"
    assert sizes and all(0 < int(n) <= 1500 for n in sizes[1].split())
