"""`examples/step.cpp`: a step file trained in C++, built here where a compiler and onnxruntime's headers are."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from .support.ten_steps import ROOT, compare, shown_lines, step_file  # noqa: E402


@pytest.mark.parametrize("example", ["examples/step.cpp", "examples/browser/step.mjs"])
def test_the_docs_show_the_lines_that_are_run(example: str) -> None:
    assert shown_lines(example) in (ROOT / "docs" / "onnx.md").read_text()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built with the library of the onnxruntime that is installed; CPLUS_INCLUDE_PATH names its headers."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    libraries = list((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if compiler is None or not libraries:
        pytest.skip("no g++ or clang++, or no shared library in the installed onnxruntime")
    asked = subprocess.run(
        [compiler, "-E", "-x", "c++", "-"], input="#include <onnxruntime_cxx_api.h>", capture_output=True, text=True
    )
    if asked.returncode:
        pytest.skip(
            "no onnxruntime_cxx_api.h: set CPLUS_INCLUDE_PATH to the include folder of onnxruntime's release archive"
        )
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "libonnxruntime.so.1").symlink_to(libraries[0])  # the name that a program looks for
    built = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", ROOT / "examples" / "step.cpp", libraries[0]]
    done = subprocess.run([*built, f"-Wl,-rpath,{folder}", "-o", folder / "step"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "step"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_ten_steps_in_cpp_are_those_of_the_python_trainer(optimizer: str, program: Path, tmp_path: Path) -> None:
    path = step_file(tmp_path, optimizer, "inside")
    done = subprocess.run([program, path, tmp_path / "trained.txt"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in (tmp_path / "trained.txt").read_text().splitlines()]
    found = {name: np.asarray(numbers, np.float32) for name, *numbers in lines}
    compare(path, [float(line) for line in done.stdout.split()], found)
