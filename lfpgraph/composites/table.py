"""The composites that a user can choose by name: one table."""

from __future__ import annotations

from .centred import centred_structure
from .competition import softhebb
from .composite import Composite, Ruleset, register_composite
from .hebbian import hebbian_composites
from .interop import lxt_composite
from .learning import learning_structure
from .lrp import lrp_composites
from .rivals.family import rival_composites
from .spiking import spiking_structure

__all__ = ["COMPOSITES"]

_GRADIENT = Ruleset(rules=False, epsilon=0.0, scale="signal")
_LFP = Ruleset(epsilon=1e-6)
_LRP = lrp_composites()

COMPOSITES: list[Composite] = [
    Composite("gradient", _GRADIENT),
    Composite("gradient-x-input", _GRADIENT),
    Composite(
        "lfp",
        Ruleset(
            epsilon=0.0,
            vectors="signal",
            factors="signal",
            products="whole",
            sums="whole",
            floor="0.1 rms",
            unit="1/3 start",
        ),
        structure=learning_structure,
    ),
    Composite("lfp-0", Ruleset(epsilon=0.0)),
    Composite("lfp-epsilon", _LFP),
    Composite("lfp-centred", _LFP, structure=centred_structure),
    Composite("lfp-snn", _LFP, structure=spiking_structure),
    *hebbian_composites(),
    softhebb(),
    *rival_composites(),
    *_LRP,
    lxt_composite(next(composite for composite in _LRP if composite.name == "attnlrp")),
]

for _composite in COMPOSITES:
    register_composite(_composite)
