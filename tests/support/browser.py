"""The example in the browser: where it is, and running its scripts in Node."""

from __future__ import annotations

import subprocess
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
SCREENSHOTS = Path(__file__).parents[2] / "runs" / "browser"


def node(*arguments: str) -> str:
    done = subprocess.run(["node", *arguments], cwd=EXAMPLE, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
