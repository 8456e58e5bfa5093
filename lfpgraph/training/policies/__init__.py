"""Update policies: what is done to `.grad` between backward and the optimizer's step, and to the step that it takes.

    policy = Policies(NormalizeByMax(by="layer"), AdaptiveClip(0.01, exclude="classifier*"))
    policy.attach(optimizer, model)  # from now on at every optimizer.step(), in any loop and any trainer

Each takes the parameters whose names match its pattern. `.grad` holds the negative feedback of a wrapped model; the policies
take it as it comes, so they work on plain gradients as well. What a policy must remember travels in the optimizer's
`state_dict`. Clipping by a trainer comes before them, since they run when the optimizer steps.
"""

from .base import Policies, Policy
from .dendrites import Dendrites
from .gradients import AdaptiveClip, NormalizeByMax, SmallestWeights, TopK, WeightScaled
from .sara import SaRA
from .synapses import ElectronicSynapses

__all__ = [
    "AdaptiveClip",
    "Dendrites",
    "ElectronicSynapses",
    "NormalizeByMax",
    "Policies",
    "Policy",
    "SaRA",
    "SmallestWeights",
    "TopK",
    "WeightScaled",
]
