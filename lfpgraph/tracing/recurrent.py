"""Recurrent layers as the operations they are made of, with the dropout between layers that they are asked for.

torch's own decompositions leave that dropout out, so they are taken one layer at a time here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._ops import OpOverload

__all__ = ["RECURRENT", "decomposition_of"]

RECURRENT = {
    getattr(getattr(torch.ops.aten, name), overload)
    for name in ("gru", "lstm", "rnn_relu", "rnn_tanh")
    for overload in ("data", "input")
}


def decomposition_of(op: OpOverload) -> Callable[..., Any]:
    """The function that stands for a recurrent operation."""
    whole = decomposition_table[op]
    packed = op._overloadname == "data"

    def run(*args: Any) -> Any:
        names = [a.name for a in op._schema.arguments]
        given = dict(zip(names, args))
        layers, p = given["num_layers"], given["dropout"]
        if layers == 1 or p == 0 or not given["train"]:
            return whole(*args)
        several = isinstance(given["hx"], list | tuple)
        states = given["hx"] if several else [given["hx"]]
        x: Tensor = given["data"] if packed else given["input"]
        turned = not packed and given["batch_first"]
        x = x.transpose(0, 1) if turned else x
        params = given["params"]
        per_layer, ways = len(params) // layers, 1 + bool(given["bidirectional"])
        ends: list[Any] = []
        for i in range(layers):
            x = torch.dropout(x, p, True) if i else x
            hx = [h[i * ways : (i + 1) * ways] for h in states]
            given |= {
                names[0]: x,
                "hx": hx if several else hx[0],
                "params": params[i * per_layer : (i + 1) * per_layer],
                "num_layers": 1,
                "dropout": 0.0,
            }
            if not packed:
                given["batch_first"] = False
            x, *end = whole(*given.values())
            ends.append(end)
        return (x.transpose(0, 1) if turned else x, *(torch.cat(parts) for parts in zip(*ends)))

    return run
