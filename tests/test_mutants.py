"""A test for each fault that is put into a copy of this package (tools/mutants.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.mutants import AREAS, faults_of, known

ROOT = Path(__file__).parents[1]


def test_faults_are_in_the_source() -> None:
    """Each fault's lines stand once in its file, and its tests are there."""
    count = 0
    for area in AREAS:
        for fault in faults_of(area):
            count += 1
            assert (ROOT / fault.file).read_text().count(fault.before) == 1, (fault.file, fault.what)
            assert fault.tests and fault.before != fault.after, fault.what
            for test in fault.tests:
                file, _, name = test.partition("::")
                assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), test
    assert count >= 150


def test_the_table_is_of_these_faults() -> None:
    """Of each area that has run, all faults that are in the list now, and all caught; `make mutants` writes it."""
    for area, counts in known().items():
        assert counts == (len(faults_of(area)),) * 2, area


@pytest.mark.slow
@pytest.mark.parametrize("area", AREAS)
def test_each_fault_is_caught(area: str) -> None:
    done = subprocess.run([sys.executable, "-m", "tools.mutants", area], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
