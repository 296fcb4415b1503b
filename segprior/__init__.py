"""segprior: land-cover and building masks from aerial GeoTIFFs with diffusion priors over image and labels.

    segment       a raster -> a class raster on its own grid
    load_prior    an embedded prior, or one from a file
    infer         the solver, on arrays
    Constraint    base class of what is known besides the prior

These names are imported when first used, so that `import segprior` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segprior.checkpoint import Card, Prior, load_prior
    from segprior.errors import SegpriorError
    from segprior.inference import Options
    from segprior.prior.constraint import Constraint, Reconstruction
    from segprior.prior.gradient import Full, Stop
    from segprior.prior.infer import infer
    from segprior.prior.solver import FixedPoint, Known
    from segprior.segmentation import Summary, segment

__version__ = "0.1.0"

__all__ = [
    "Card",
    "Constraint",
    "FixedPoint",
    "Full",
    "Known",
    "Options",
    "Prior",
    "Reconstruction",
    "SegpriorError",
    "Stop",
    "Summary",
    "infer",
    "load_prior",
    "segment",
]

_HOMES = {
    "segprior.checkpoint": ("Card", "Prior", "load_prior"),
    "segprior.errors": ("SegpriorError",),
    "segprior.prior.constraint": ("Constraint", "Reconstruction"),
    "segprior.prior.gradient": ("Full", "Stop"),
    "segprior.prior.infer": ("infer",),
    "segprior.prior.solver": ("FixedPoint", "Known"),
    "segprior.inference": ("Options",),
    "segprior.segmentation": ("Summary", "segment"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'segprior' has no attribute {name!r}")
