"""Processes of their own for tests that kill a run or let two train together, started without importing torch again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch

__all__ = ["free_port", "ranks", "start"]

# One process imports what all need, once; each run is a copy of it. The first optimizer of a process imports torch's compiler.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch._dynamo", "tests.support.trainer_run"])
_LONGEST = 240  # seconds


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(function: Callable[..., None], *args: Any) -> BaseProcess:
    """Run a function of a module in a new process; its exit status is 0 only if it returns."""
    process = _SERVER.Process(target=_alone, args=(function, args))
    process.start()
    return process


def ranks(function: Callable[..., None], *args: Any) -> None:
    """Run `function(rank, *args)` in two processes at once, and wait for both, some minutes: they may block each other."""
    both = [start(function, rank, *args) for rank in range(2)]
    for process in both:
        process.join(_LONGEST)
        process.kill()
        process.join()
    assert [process.exitcode for process in both] == [0, 0]


def _alone(function: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    function(*args)
    sys.stdout.flush()
    os._exit(0)  # takes nothing down: a process group waits for threads of its own, and they perhaps for Python's lock
