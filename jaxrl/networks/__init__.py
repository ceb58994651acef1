"""Networks shared by the agents, as flax.linen modules; leading axes of the input are batch axes.

`MLP`, `Convolutions`, `Scalar`, `Torso` and `ensemble` are parts to build from. A `Network` is an architecture as a
setting of an agent: `Plain()`, or `SimbaV2()`, whose weights `project` puts back on spheres after each optimiser step.
"""

from jaxrl.networks.mlp import MLP, Activation, Convolutions, Network, Plain, Scalar, Torso, ensemble, weights
from jaxrl.networks.simbav2 import SimbaV2, project

__all__ = [
    "MLP",
    "Activation",
    "Convolutions",
    "Network",
    "Plain",
    "Scalar",
    "SimbaV2",
    "Torso",
    "ensemble",
    "project",
    "weights",
]
