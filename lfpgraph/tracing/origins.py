"""Where in the model each node of a recorded run comes from: the module's path and the line of its source.

The notes travel in `node.meta["custom"]`, which torch's tracers hand on from graph to graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import fx, nn
from torch.fx import traceback as fx_traceback
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

__all__ = ["note_lines", "noting_places", "remember_places", "restore_places"]

_PATH, _TRACE = "lfpgraph_path", "lfpgraph_trace"


@contextlib.contextmanager
def noting_places(model: nn.Module) -> Iterator[None]:
    """Let every node made inside carry the path of the module whose forward is running."""
    paths = {id(module): path for path, module in model.named_modules()}
    entered: list[str] = []

    def note() -> None:
        fx_traceback.current_meta["custom"] = {_PATH: entered[-1] if entered else ""}

    def enter(module: nn.Module, _: Any) -> None:
        if (path := paths.get(id(module))) is not None:
            entered.append(path)
            note()

    def leave(module: nn.Module, *_: Any) -> None:
        if id(module) in paths and entered:
            entered.pop()
            note()

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    before = fx_traceback.current_meta.get("custom")
    try:
        with fx_traceback.preserve_node_meta():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        fx_traceback.current_meta.pop("custom", None)
        if before is not None:
            fx_traceback.current_meta["custom"] = before


def remember_places(graph: fx.GraphModule) -> None:
    """Run a graph node by node from now on, so that a tracer sees which node it is at and hands on its place."""

    def forward(*values: Any) -> Any:
        with fx_traceback.preserve_node_meta():
            return fx.Interpreter(graph).run(*values)

    graph.__dict__["forward"] = forward


def note_lines(recorded: fx.GraphModule) -> None:
    """Add the source lines of a recorded graph to the notes that travel."""
    for node in recorded.graph.nodes:
        notes = node.meta.setdefault("custom", {})
        notes[_TRACE] = node.meta.get("stack_trace") or ""
    remember_places(recorded)


def restore_places(module: fx.GraphModule) -> None:
    """Put the places noted with the nodes where those of an exported model are."""
    for node in module.graph.nodes:
        notes = node.meta.get("custom") or {}
        if _PATH in notes:
            path = f"model.{notes[_PATH]}" if notes[_PATH] else "model"  # the model is a part of what was exported
            node.meta["nn_module_stack"] = {path: (path, nn.Module)}
        if _TRACE in notes:
            node.meta["stack_trace"] = notes[_TRACE]
