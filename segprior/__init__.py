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
    from segprior.census import SharesSource
    from segprior.checkpoint import Card, Prior, load_prior
    from segprior.errors import SegpriorError
    from segprior.hint import HintSource
    from segprior.known import KnownSource
    from segprior.opinion import UnarySource
    from segprior.options import Options
    from segprior.prior.alike import Alike, Surveyed, alike
    from segprior.prior.attributes import Attributes
    from segprior.prior.clusters import Clusters
    from segprior.prior.constraint import Constraint, Reconstruction
    from segprior.prior.gradient import Full, Stop
    from segprior.prior.infer import infer
    from segprior.prior.shares import Hints, Regions, Shares
    from segprior.prior.solver import FixedPoint, Known
    from segprior.prior.unary import Opinion, Unary
    from segprior.segmentation import Summary, segment
    from segprior.survey import SurveySource

__version__ = "0.1.0"

__all__ = [
    "Alike",
    "Attributes",
    "Card",
    "Clusters",
    "Constraint",
    "FixedPoint",
    "Full",
    "HintSource",
    "Hints",
    "Known",
    "KnownSource",
    "Opinion",
    "Options",
    "Prior",
    "Reconstruction",
    "Regions",
    "SegpriorError",
    "Shares",
    "SharesSource",
    "Stop",
    "Summary",
    "SurveySource",
    "Surveyed",
    "Unary",
    "UnarySource",
    "alike",
    "infer",
    "load_prior",
    "segment",
]

_HOMES = {
    "segprior.checkpoint": ("Card", "Prior", "load_prior"),
    "segprior.errors": ("SegpriorError",),
    "segprior.prior.alike": ("Alike", "Surveyed", "alike"),
    "segprior.prior.attributes": ("Attributes",),
    "segprior.prior.clusters": ("Clusters",),
    "segprior.prior.constraint": ("Constraint", "Reconstruction"),
    "segprior.prior.gradient": ("Full", "Stop"),
    "segprior.prior.infer": ("infer",),
    "segprior.prior.solver": ("FixedPoint", "Known"),
    "segprior.options": ("Options",),
    "segprior.census": ("SharesSource",),
    "segprior.hint": ("HintSource",),
    "segprior.known": ("KnownSource",),
    "segprior.opinion": ("UnarySource",),
    "segprior.prior.shares": ("Hints", "Regions", "Shares"),
    "segprior.prior.unary": ("Opinion", "Unary"),
    "segprior.survey": ("SurveySource",),
    "segprior.segmentation": ("Summary", "segment"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'segprior' has no attribute {name!r}")
