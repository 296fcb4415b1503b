"""How to segment: the settings of an inference, and what is told of an image.

`Options` is what the command line, the Python interface and evaluations fill in; nothing here computes anything.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from segprior.census import SharesSource
from segprior.device import resolved
from segprior.errors import SettingError
from segprior.hint import HintSource
from segprior.known import KnownSource
from segprior.opinion import UnarySource
from segprior.prior.alike import Alike
from segprior.prior.infer import FixedPoint, Solver
from segprior.stretch import Stretch
from segprior.survey import SurveySource
from segprior.told import Sources
from segprior.windows import cover

STEM = "{stem}"
"""Stands for the name of an image without its ending."""

Source = TypeVar("Source", KnownSource, SurveySource, UnarySource, HintSource, SharesSource)


@dataclass(frozen=True, slots=True)
class Options:
    """How to segment.

    solver: see `segprior.prior.solver`; a plain segmenter takes one step whatever it is. samples: particles averaged.
    tile_size, overlap: working pixels, multiples of 32. batch_size: windows solved at once. seed: of the noise. bands:
    numbers from 1 or colours ("red"), None for the prior's. res: metres on the ground of a native pixel, None for what
    the georeference says. stretch: the values that become 0 and 255; None takes 8-bit bands as they are and others by
    their percentiles. on_error: what damaged blocks of the image are, the end ("stop") or without data ("nodata").
    device: "auto", "cpu" or "cuda". known: places whose class is known, see `segprior.known`. survey: places that were
    looked up without regard to the map and speak for what is alike, see `segprior.survey`; alike, clicked: what they
    and points of `known` say, which `strips` finds for itself. unary: what other maps say, see `segprior.opinion`.
    hints: coarse maps, see `segprior.hint`. clusters: of colours that labels are to follow, 0 for none, and what that
    weighs, see `segprior.prior.clusters`. shares: of the classes in the raster or its zones, see `segprior.census`;
    `segment` keeps them, `strips` gives what comes before. novelty: whether to tell how unlike the training images a
    place is, as one more channel; see `segprior.prior.familiar`. start: a plain segmenter of the prior's classes,
    bands and resolution, from whose map the solver starts. disagreement: whether to tell how much the samples, 2 or
    more, disagree, as one more channel; see `segprior.prior.particles`.
    """

    solver: Solver = field(default_factory=FixedPoint)
    samples: int = 1
    tile_size: int = 256
    overlap: int = 64
    batch_size: int = 4
    seed: int = 0
    bands: tuple[int | str, ...] | None = None
    res: float | None = None
    stretch: Stretch | None = None
    on_error: Literal["stop", "nodata"] = "stop"
    device: str = "auto"
    known: tuple[KnownSource, ...] = ()
    survey: tuple[SurveySource, ...] = ()
    alike: Alike | None = field(default=None, repr=False)
    clicked: Alike | None = field(default=None, repr=False)
    unary: tuple[UnarySource, ...] = ()
    hints: tuple[HintSource, ...] = ()
    clusters: int = 0
    clusters_weight: float = 1.0
    shares: SharesSource | None = None
    novelty: bool = False
    start: str | None = None
    disagreement: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch_size < 1:
            raise SettingError(f"wanted samples and batch size of 1 or more, got {self.samples} and {self.batch_size}")
        if self.disagreement and self.samples < 2:
            raise SettingError(f"wanted 2 samples or more to disagree, got {self.samples}; take --samples 4")
        if not 0 <= self.seed < 1 << 63:
            raise SettingError(f"wanted a seed from 0 to 2^63 - 1, got {self.seed}")
        if self.clusters < 0 or self.clusters == 1 or not self.clusters_weight >= 0:
            raise SettingError(f"wanted no clusters (0) or 2 and more, got {self.clusters}, {self.clusters_weight}")
        if self.on_error not in ("stop", "nodata"):
            raise SettingError(f"wanted to stop at damage or to take it as nodata, got {self.on_error!r}")
        resolved(self.device)  # raises for what is not there
        cover(1, 1, size=self.tile_size, overlap=self.overlap)  # raises for what windows cannot be

    @property
    def sources(self) -> Sources:
        """What is told window by window."""
        return Sources(self.known, self.unary, self.hints)

    @property
    def files(self) -> tuple[str, ...]:
        """All that is read besides the image and its prior."""
        named = [source.path for sources in (self.known, self.survey, self.unary, self.hints) for source in sources]
        others = (None if self.shares is None else self.shares.path, *(hint.table for hint in self.hints), self.start)
        return (*named, *(path for path in others if path is not None))

    @property
    def extras(self) -> int:
        """Number of channels besides the classes."""
        return self.novelty + self.disagreement

    def of(self, image: str) -> "Options":
        """Return the same with the stem of an image's name in the place of {stem} in the names of what is told."""
        stem = Path(image).stem

        def named(source: Source) -> Source:
            return replace(source, path=source.path.replace(STEM, stem))

        return replace(
            self,
            known=tuple(named(source) for source in self.known),
            survey=tuple(named(source) for source in self.survey),
            unary=tuple(named(source) for source in self.unary),
            hints=tuple(named(source) for source in self.hints),
            shares=None if self.shares is None else named(self.shares),
        )

    @property
    def resolved_device(self) -> str:
        """The device that "auto" stands for here."""
        return resolved(self.device)
