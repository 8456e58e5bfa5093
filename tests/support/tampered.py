"""Checkpoints that somebody or something has changed: a run must take them whole, or refuse them and stay as it was."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from lfpgraph.errors import CheckpointError, NonFiniteError
from lfpgraph.training import checkpoint
from lfpgraph.training.resuming.tree import load_tree, save_tree

from .trainer_run import make_trainer, same, weights

__all__ = ["make_checkpoint", "plain_trainer", "tamper"]

_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 7, 2**70, 0.5, float("nan"), "", "evil", [], {}, [1], {"a": 1}, (), torch.zeros(3), torch.ones(()),
)  # fmt: skip


def plain_trainer(folder: Path, **changed: Any) -> Any:
    """A run of six steps that costs little: backprop, no evaluation."""
    given = {"composite": None, "eval_data": None, "metrics": [], "epochs": 1, "loggers": (), **changed}
    return make_trainer(folder, **given)


def make_checkpoint(folder: Path) -> None:
    """A run that has stopped after three steps."""
    trainer = plain_trainer(folder, save_every=3)
    for record in trainer.iterate():
        if record["step"] == 3:
            break


def _bytes(draw: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    at = draw.randrange(len(found))
    how = draw.randrange(5)
    if how == 0:
        found[at] ^= 1 << draw.randrange(8)
    elif how == 1:
        del found[at:]
    elif how == 2:
        del found[at : at + draw.randrange(1, 50)]
    elif how == 3:
        found[at:at] = draw.randbytes(draw.randrange(1, 50))
    else:
        return draw.choice((b"", b"\x00" * len(found), b"\xff" * 8 + bytes(found[8:]), b"[" * 100_000))
    return bytes(found)


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in items for place in _places(value, (*path, key)))]


def _leaf(draw: random.Random, tree: Any) -> Any:
    """The tree with one value replaced by an odd one, taken out, or doubled."""
    tree = copy.deepcopy(tree)
    *path, last = draw.choice(_places(tree)[1:])
    holder = tree
    for key in path:
        holder = holder[key]
    how = draw.randrange(4)
    if how == 0:
        del holder[last]
    elif how == 1 and isinstance(holder, dict):
        holder[f"{last}x"] = holder.pop(last)
    else:
        holder[last] = draw.choice(_ODD)
    return tree


def _change(draw: random.Random, folder: Path) -> str:
    """Change one file of a checkpoint; with new digests where the change would show by them alone."""
    name = draw.choice((checkpoint.MODEL, checkpoint.TRAINING, checkpoint.NOTE))
    file, note = folder / name, folder / checkpoint.NOTE
    noted, renewed = json.loads(note.read_text()), draw.random() < 0.7
    if name == checkpoint.TRAINING and renewed and draw.random() < 0.8:
        save_tree(file, _leaf(draw, load_tree(file)))
    elif name == checkpoint.NOTE and renewed:
        note.write_text(json.dumps(_leaf(draw, noted), default=str))
        return f"{name}, values"
    else:
        file.write_bytes(_bytes(draw, file.read_bytes()))
    if name != checkpoint.NOTE and renewed:
        noted["sha256"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
        note.write_text(json.dumps(noted))
    return f"{name}{', new digest' if renewed else ''}"


def _everything(trainer: Any) -> Any:
    optimizer = copy.deepcopy(trainer.optimizer.state_dict())
    return weights(trainer.model), str(optimizer), str(trainer.scheduler.state_dict()), trainer.run.position.step


def tamper(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Resume from so many changed checkpoints; how many were refused, and how many taken.

    Any exception but CheckpointError goes through, and so does a refusal that leaves anything else than before.
    """
    draw, seen = random.Random(seed), {"refused": 0, "taken": 0}
    make_checkpoint(folder / "good")
    trainer = plain_trainer(folder / "run")
    for number in range(count):
        shutil.rmtree(folder / "run", ignore_errors=True)
        shutil.copytree(folder / "good", folder / "run")
        what = _change(draw, folder / "run" / "checkpoints" / "step-00000003")
        before = _everything(trainer)
        try:
            for _ in trainer.iterate(resume=True):
                break
        except CheckpointError:
            seen["refused"] += 1
            after = _everything(trainer)
            assert same(before[0], after[0]) and before[1:] == after[1:], f"{number}: {what}"
        except Exception as error:
            if not isinstance(error, NonFiniteError):  # weights of another file, in which all fits
                raise AssertionError(f"{number}: {what}: {type(error).__name__}: {error}") from error
            seen["taken"] += 1
            trainer = plain_trainer(folder / "run")
        else:
            seen["taken"] += 1
            trainer = plain_trainer(folder / "run")
    return seen
