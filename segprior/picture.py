"""Pictures for people: class maps in their colours, panels side by side, confidence, loss curves. All are PNG files.

    colour, shade, rgb    arrays -> uint8 (height, width, 3), red, green and blue
    panels                such images side by side under their titles, with the legend as a colour key
    loss_curve            how a training run went

Figures are made without pyplot, so nothing here needs a screen or changes a caller's figures. A file appears whole or
not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from segprior.errors import OutputError, SettingError
from segprior.legend import Legend
from segprior.target import AnyPath, replacing

NO_COLOUR = (255, 255, 255)
"""Shown where there is nothing to show: no class, no confidence. White, as the page is; few legends use it."""

SHADES = "viridis"
"""Matplotlib's name of the colours of confidence: dark for 0, bright for 1, in order of lightness."""

_DPI = 150
_LEAST_SPAN = 5.0  # points of mIoU
_PANEL = 3.6  # inches, the longer side of a panel

Rgb = NDArray[np.uint8]
"""An image to look at: uint8 (height, width, 3)."""


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """An image (height, width, 3) under its title; `bar` puts the colour bar of `shade` beside it."""

    title: str
    image: Rgb
    bar: bool = False

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8 or not self.image.size:
            raise SettingError(
                f"wanted an image of uint8 (height, width, 3) for {self.title!r}, "
                f"got {self.image.dtype} {self.image.shape}; see colour, shade and rgb"
            )


def colour(index: NDArray[np.uint8], legend: Legend) -> Rgb:
    """Paint class indices (height, width) in the legend's colours, 255 in NO_COLOUR; LegendError on other indices."""
    table = np.full((256, 3), NO_COLOUR, np.uint8)
    for value, (*color, alpha) in legend.colormap().items():
        if alpha:
            table[value] = color
    painted: Rgb = table[legend.to_value(index)]
    return painted


def shade(confidence: NDArray[np.floating[Any]]) -> Rgb:
    """Paint shares (height, width) in [0, 1] in SHADES, NaN in NO_COLOUR."""
    painted: Rgb = colormaps[SHADES](np.nan_to_num(confidence), bytes=True)[..., :3]
    return np.where(np.isfinite(confidence)[..., None], painted, np.array(NO_COLOUR, np.uint8))


def rgb(bands: NDArray[np.uint8]) -> Rgb:
    """Show the first three of uint8 (bands, height, width) as red, green and blue; the first one in grey if fewer."""
    shown = bands[:3] if len(bands) >= 3 else np.repeat(bands[:1], 3, axis=0)
    return np.ascontiguousarray(shown.transpose(1, 2, 0))


def panels(
    path: AnyPath,
    items: Sequence[Panel],
    legend: Legend | None,
    *,
    columns: int | None = None,
    gaps: bool = False,
    overwrite: bool = False,
) -> None:
    """Draw panels row by row into a PNG.

    Args:
        path: the PNG.
        items: one panel or more; all are drawn at one width.
        legend: the classes to explain below the panels; None for no key.
        columns: panels in a row; None for all in one row up to four.
        gaps: whether the key explains NO_COLOUR as well.
        overwrite: whether an existing file may be replaced.

    Raises:
        SettingError: no panels, or less than one column.
        OutputError: the file cannot be written.

    """
    columns = min(len(items), 4) if columns is None else columns
    if not items or columns < 1:
        raise SettingError(f"wanted one panel and one column or more, got {len(items)} panels in {columns} columns")
    rows = ceil(len(items) / columns)
    tallest = max(item.image.shape[0] / item.image.shape[1] for item in items)
    wide, high = _PANEL / max(1.0, tallest), _PANEL * min(1.0, tallest)
    figure = Figure((columns * (wide + 0.35) + 0.2, rows * (high + 0.45) + 0.6), dpi=_DPI, layout="constrained")
    for axes, item in zip(
        figure.subplots(rows, columns, squeeze=False).flat, _padded(items, rows * columns), strict=True
    ):
        axes.set_axis_off()
        if item is not None:
            axes.imshow(item.image)
            axes.set_title(item.title, fontsize=10)
        if item is not None and item.bar:
            figure.colorbar(ScalarMappable(Normalize(0, 1), colormaps[SHADES]), ax=axes, shrink=0.8)
    if legend is not None:
        _key(figure, legend, gaps=gaps)
    _save(figure, path, overwrite=overwrite, cut="tight")


def loss_curve(
    path: AnyPath,
    history: Sequence[tuple[int, float, float, float]],
    validations: Sequence[tuple[int, float, float]] = (),
    *,
    overwrite: bool = False,
) -> None:
    """Draw how a training run went: losses above, scores below, over the steps; what a plain network lacks is left out.

    Args:
        path: the PNG.
        history: (step, one_step, later, image): cross-entropy of the labels at pure noise and at later times in nats
            per pixel, and mean squared error of the image's velocity, in units of the normalised bands' variance;
            NaN where a step had none.
        validations: (step, mIoU of one step, mIoU of a few steps) in [0, 1].
        overwrite: whether an existing file may be replaced.

    Raises:
        SettingError: an empty history.
        OutputError: the file cannot be written.

    """
    if not history:
        raise SettingError("wanted a history of one step or more to draw, got none")
    figure = Figure((8, 6), dpi=100, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    steps, *losses = np.array(history, np.float64).T
    names = (
        "labels at pure noise (nats/pixel)",
        "labels at later times (nats/pixel)",
        "image (variance of its velocity)",
    )
    for number, (values, name) in enumerate(zip(losses, names, strict=True)):
        if not np.isfinite(values).any():
            continue  # a plain network has but the first
        above.plot(steps, values, color=f"C{number}", alpha=0.25, linewidth=0.6)
        above.plot(steps, smoothed(values, span=max(1, len(steps) // 50)), color=f"C{number}", label=name)
    above.set_ylabel("training loss")
    above.set_ylim(0, _ceiling(losses))
    if above.lines:
        above.legend(fontsize=8)
    if validations:
        at, one_step, few_step = np.array(validations, np.float64).T
        below.plot(at, 100 * one_step, color="C0", marker="o", label="one step")
        if not np.array_equal(one_step, few_step):  # a plain network takes one step, however many it is asked for
            below.plot(at, 100 * few_step, color="C1", marker="s", label="few steps")
        below.legend(fontsize=8)
        _widen(below)
    else:
        below.text(0.5, 0.5, "not validated yet", ha="center", va="center", transform=below.transAxes)
    below.set_ylabel("validation mIoU (%)")
    below.set_xlabel("training step")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    _save(figure, path, overwrite=overwrite)


def smoothed(values: NDArray[np.float64], *, span: float) -> NDArray[np.float64]:
    """Average values over about the last `span` of them, with weights that fall off exponentially; NaN weighs 0."""
    keep = 1.0 - 1.0 / max(1.0, span)
    total, weight = 0.0, 0.0
    averages = np.full(len(values), np.nan)
    for place, value in enumerate(values):
        total, weight = keep * total, keep * weight
        if np.isfinite(value):
            total, weight = total + value, weight + 1.0
        if weight > 0:
            averages[place] = total / weight
    return averages


def _ceiling(losses: Sequence[NDArray[np.float64]]) -> float:
    """Find the top of the axis: a few wild steps shall not press the curves flat."""
    finite = np.concatenate(losses)[np.isfinite(np.concatenate(losses))]
    return 1.1 * max(float(np.quantile(finite, 0.995)), 1e-6) if finite.size else 1.0


def _widen(axes: Axes) -> None:
    """Let the axis of scores span _LEAST_SPAN or more: a few hundredths shall not look like a fall."""
    low, high = axes.get_ylim()
    room = max(0.0, _LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - room, high + room)


def _padded(items: Sequence[Panel], count: int) -> list[Panel | None]:
    return [*items, *[None] * (count - len(items))]


def _key(figure: Figure, legend: Legend, *, gaps: bool) -> None:
    """Explain the classes, and NO_COLOUR where there are `gaps`, in a row below everything."""
    entries = [(entry.name, entry.color) for entry in legend.classes] + [("no data", NO_COLOUR)] * gaps
    patches = [
        Patch(facecolor=(r / 255, g / 255, b / 255), edgecolor="black", label=name) for name, (r, g, b) in entries
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), fontsize=9, frameon=False)


def _save(figure: Figure, path: AnyPath, *, overwrite: bool, cut: Literal["tight"] | None = None) -> None:
    with replacing(path, overwrite=overwrite) as fresh:
        try:
            figure.savefig(fresh, format="png", bbox_inches=cut)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
