"""Auto-Encoding Variational Bayes and the family around it, as pure functions in JAX and Flax.

A variational autoencoder is a posterior, a likelihood and a prior; a bound ties them; a learner climbs the bound;
everything is a pure function of its arguments and one PRNG key. The rooms, from the bottom up:

`networks` -> `models` (with `bounds` beside them) -> `learners`, `inference` -> `training` -> `packing`;
`data`, `checkpoints` and `figures` know no model.

The rooms are imported when they are first named, so `import aevb` itself costs almost nothing.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"
__all__ = [
    "bounds",
    "checkpoints",
    "data",
    "errors",
    "figures",
    "inference",
    "learners",
    "models",
    "networks",
    "packing",
    "processes",
    "training",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"aevb.{name}")
    raise AttributeError(f"module 'aevb' has no attribute {name!r}")
