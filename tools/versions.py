"""The tests on other versions of Python, torch and transformers: `python -m tools.versions --page docs/trust.md`.

Each row has an environment of its own, `.venv-versions/NAME`, made if it is not there. `--quick` runs a part of the suite;
`--use NAME=PATH` takes an environment that is somewhere else; a row whose Python is not on this machine is said to be left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.pages import put_rows

__all__ = ["QUICK", "ROWS", "Row"]

ROOT = Path(__file__).parents[1]
# What asks most of torch's and the transformers' own workings, in two minutes.
QUICK = [
    f"tests/test_{name}.py"
    for name in ("numerics", "kernels", "registry", "edges", "wrap", "choice", "opinfo", "why_live", "attribution")
]  # fmt: skip
_FOUND = """
import json, platform, torch, transformers
print(json.dumps([platform.python_version(), torch.__version__.partition("+")[0], transformers.__version__]))
"""


@dataclass(frozen=True)
class Row:
    """An environment: an interpreter, and what is asked of pip besides the package itself."""

    python: str
    packages: tuple[str, ...]


ROWS = {
    "oldest": Row("python3.10", ("torch==2.11.*", "transformers==5.0.*")),
    "torch-2.12": Row("python3.11", ("torch==2.12.*", "transformers>=5")),
    "python-3.10": Row("python3.10", ("torch==2.13.*", "transformers>=5")),
    "python-3.12": Row("python3.12", ("torch==2.13.*", "transformers>=5")),
    "python-3.13": Row("python3.13", ("torch==2.13.*", "transformers>=5")),
    "newest": Row("python3.13", ("torch<2.15", "transformers>=5")),
}


def environment(name: str, row: Row) -> Path | None:
    """The interpreter of a row's environment, which is made if need be; None without that Python."""
    folder = ROOT / ".venv-versions" / name
    done = folder / ".installed"
    if not done.exists():
        if not _runs(row.python):
            return None
        subprocess.run([row.python, "-m", "venv", folder], check=True)
        pip = [folder / "bin/pip", "install", "-q"]
        subprocess.run([*pip, *row.packages, "-e", f"{ROOT}[hf,cli,onnx,dev]"], check=True)
        done.touch()
    return folder / "bin/python"


def _runs(python: str) -> bool:
    """Whether there is such an interpreter; one that a version manager only knows of does not run."""
    return (
        shutil.which(python) is not None and subprocess.run([python, "--version"], capture_output=True).returncode == 0
    )


def run(name: str, python: Path, tests: list[str], part: str) -> str:
    """The row of the table."""
    found = json.loads(subprocess.run([python, "-c", _FOUND], capture_output=True, text=True, check=True).stdout)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    failed = [line.partition("::")[2].partition(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))]
    print(name, *lines[-1:], *failed, sep="\n  ", flush=True)
    counts = {word: int(n) for n, word in zip(lines[-1].split(), lines[-1].replace(",", "").split()[1:]) if n.isdigit()}
    passed, count = counts.get("passed", 0), sum(counts.get(w, 0) for w in ("passed", "failed", "error", "errors"))
    return f"| {' | '.join(found)} | {part} | {count:,} | {passed:,} | {', '.join(failed) or 'none'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="put the table there")
    parser.add_argument("--quick", action="store_true", help="a part of the suite")
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--use", nargs="*", default=[], metavar="NAME=PATH", help="the Python of an environment elsewhere"
    )
    given = parser.parse_args()
    elsewhere = dict(entry.split("=", 1) for entry in given.use)
    rows = []
    for name in given.only:
        python = Path(elsewhere[name]) if name in elsewhere else environment(name, ROWS[name])
        if python is None:
            print(f"{name} is left out: there is no {ROWS[name].python} here")
            continue
        rows.append(run(name, python, *((QUICK, "quick") if given.quick else (["tests"], "all"))))
    if given.page is not None:
        head = "| Python | torch | transformers | part | tests | passed | failed |", "|---|---|---|---|---|---|---|"
        put_rows(given.page, "versions", head, rows, columns=4)


if __name__ == "__main__":
    main()
