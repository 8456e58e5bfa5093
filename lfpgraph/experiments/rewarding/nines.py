"""Training by a program that answers with F1 scores alone: an MLP tells nines from the other digits."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...rewards import ScalarReward, reward_loss
from ..common.data import flat_digits
from ..common.drawing import draw_curves
from ..common.harness import Report, Settings, Way
from ..common.models import mlp, seeded
from ..common.rates import tuned

__all__ = ["f1_score", "run"]

# The program: it reads guesses and labels, a line of JSON for each batch, and answers with what the F1 score of the batch would
# lose, were one guess the other; a number for each guess, 0 for one that is wrong (a punishment for blind guesses never ends).
PROGRAM = """
import json, sys

def score(hits, guessed, real):
    return 2 * hits / (guessed + real) if guessed + real else 1.0

for line in sys.stdin:
    guesses, labels = json.loads(line)
    hits, guessed, real = sum(g * y for g, y in zip(guesses, labels)), sum(guesses), sum(labels)
    whole = score(hits, guessed, real)
    others = [score(hits + (1 - 2 * g) * y, guessed + 1 - 2 * g, real) for g, y in zip(guesses, labels)]
    answers = [max(0.0, whole - other) for other in others]
    print(json.dumps(answers), flush=True)
"""
_REWARD = ScalarReward(baseline="none")


def run(settings: Settings) -> Report:
    """By the program's answers, under `lfp` and under backprop; and backprop that is told the labels."""
    (x, y), (test_x, test_y) = flat_digits()
    train, test = (x, (y == 9).long()), (test_x, (test_y == 9).long())
    ways = [Way("LFP", "lfp", _told), Way("the same by backprop", None, _told), Way("backprop", None, cross_entropy)]
    start = seeded(lambda: mlp([64, 32, 2]))
    cases, notes = tuned(
        start(0),
        ways,
        (1e-3, 3e-3, 1e-2, 3e-2),
        train,
        test,
        settings,
        epochs=20,
        name="nines",
        start=start,
        score=f1_score,
    )
    return Report("nines", "F1", cases, draw_curves, (10, 4), notes)


def f1_score(outputs: Tensor, labels: Tensor) -> float:
    """The F1 score of the second class; 1 where there is none and none is guessed."""
    guesses = outputs.argmax(-1)
    total = (guesses.sum() + labels.sum()).item()
    return 2 * (guesses * labels).sum().item() / total if total else 1.0


def _told(outputs: Tensor, labels: Tensor) -> Tensor:
    """One guess for each sample, a tenth of them blind, and the program's answers as the reward of the batch."""
    guesses = _REWARD.sample(outputs, explore=0.1)
    program = _program(os.getpid())
    assert program.stdin is not None and program.stdout is not None
    program.stdin.write(json.dumps([guesses.tolist(), labels.tolist()]) + "\n")
    program.stdin.flush()
    answers = torch.tensor(json.loads(program.stdout.readline()), device=outputs.device)
    return reward_loss(outputs, _REWARD(outputs, answers, guesses))


@cache
def _program(asker: int) -> subprocess.Popen[str]:
    """The program that a process asks; it ends with that process."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(program.communicate)
    return program
