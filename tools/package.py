"""Builds the wheel and the sdist, installs the wheel where the sources are not, and uses it: `python -m tools.package`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

__all__ = ["main"]

ROOT = Path(__file__).parents[1]
STEP = """
import torch
from torch import nn

import lfpgraph

assert "site-packages" in lfpgraph.__file__, lfpgraph.__file__
model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
optimizer = torch.optim.AdamW(model.parameters())
nn.functional.cross_entropy(model(torch.randn(6, 4)), torch.zeros(6, dtype=torch.long)).backward()
optimizer.step()
assert all(p.grad is not None for p in model.parameters())
"""


def _run(*command: str | Path, cwd: Path) -> str:
    return subprocess.run([str(c) for c in command], cwd=cwd, check=True, capture_output=True, text=True).stdout


def _same_files(wheel: Path, sdist: Path) -> None:
    """Every module of the sources is in both, and what is no module but needed."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        f"lfpgraph/{name}" for name in ("py.typed", "demo/report.html", "reports/coverage.html", "reports/graph.js")
    }
    for top, place in (("lfpgraph", "lfpgraph"), ("rules", "lfpgraph/rules"), ("models_zoo", "lfpgraph/models_zoo")):
        for path in (ROOT / top).rglob("*.py"):
            if not any(parent.is_symlink() for parent in path.parents):
                assert f"{top}/{path.relative_to(ROOT / top)}" in source, path
                wanted.add(f"{place}/{path.relative_to(ROOT / top)}")
    assert not wanted - inside, f"not in the wheel: {sorted(wanted - inside)}"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tracked = _run("git", "ls-files", cwd=ROOT).split("\n")
        for file in filter(None, tracked):
            (folder / "sources" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / "sources" / file)
        sdist_by = "from setuptools import build_meta; build_meta.build_sdist('../dist')"
        (folder / "dist").mkdir()
        _run(sys.executable, "-c", sdist_by, cwd=folder / "sources")
        (sdist,) = (folder / "dist").glob("*.tar.gz")
        _run(
            sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", "dist", sdist, cwd=folder
        )  # of the sdist alone
        (wheel,) = (folder / "dist").glob("*.whl")
        _same_files(wheel, sdist)
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / "bin" / "python"
        (place,) = (folder / "env" / "lib").glob("*/site-packages")
        (place / "others.pth").write_text(sysconfig.get_path("purelib"))  # torch and the like are not installed again
        _run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel, cwd=folder)
        (folder / "away").mkdir()
        print(_run(folder / "env" / "bin" / "lfpgraph", "--version", cwd=folder / "away").strip())
        _run(python, "-c", STEP, cwd=folder / "away")
        print(_run(python, "-m", "lfpgraph", "coverage", "gpt2", cwd=folder / "away").strip().splitlines()[-1])


if __name__ == "__main__":
    main()
