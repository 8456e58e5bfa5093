"""Every rule on every sample on a GPU: the gradient composite is autograd's there, and the signals are the CPU's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lfpgraph.rules.samples.table import Sample, samples
from torch._ops import OpOverload

from ..support.device import moved
from ..support.rule_cases import make_case, run, run_op
from ..support.rule_checks import OPS, case_id, check_gradient, close, family, takes_gradient

pytestmark = pytest.mark.gpu
COMPOSITES = ("lfp-epsilon", "lfp")
KEPT: list[Sample] = []  # the table of cases knows a sample by its identity


def _moved(sample: Sample) -> Sample:
    KEPT.append(replace(sample, args=moved(sample.args), kwargs=moved(sample.kwargs)))
    return KEPT[-1]


@pytest.mark.parametrize("op", OPS, ids=case_id)
def test_rule(op: OpOverload) -> None:
    tried = 0
    for sample in samples(op):
        there = _moved(sample)
        try:
            case = make_case(op, there)
        except (NotImplementedError, RuntimeError) as error:
            if any(
                words in str(error)
                for words in (
                    "not implemented for",
                    "Could not run",
                    "only available",
                    "CPU",
                    "not supported on CUDA",
                    "expected scalar type",
                )
            ):
                continue  # the device has no kernel for it
            raise
        tried += 1
        here = make_case(op, sample)
        try:
            if takes_gradient(op, there):
                check_gradient(case)
        except (NotImplementedError, RuntimeError) as error:
            if "derivative" not in str(error):
                raise
            continue  # this version of torch has none, in plain autograd either
        if family(op) == "random" or not all(
            torch.equal(a, b.cpu()) if a.dtype == torch.bool else torch.allclose(a, b.cpu(), 1e-9, 1e-9, equal_nan=True)
            for a, b in zip(run_op(here, here.tensors)[0], run_op(case, case.tensors)[0])
        ):
            continue  # drawn by another generator, or free to differ, such as the vectors of an SVD
        for composite in COMPOSITES:
            for found, expected in zip(run(case, composite), run(here, composite)):
                close(None if found is None else found.cpu(), expected, 1e-9)
    if not tried:
        pytest.skip("no kernel for it on this device")
