"""Constraints against their controls: the same knowledge given to a plain segmenter without a prior.

    python scripts/bench_constraints.py fair dubai --prior buildings --prior landcover \
        --opponent runs/unet_fair_equal.safetensors --opponent runs/unet_dubai_equal.safetensors --cell 8 --cell 16

Knowledge is made from the true labels of a split: the shares of the classes in every scene; hints, the shares in cells
of `--cell` metres, every fifth cell told the scene's shares instead; 20 random points a scene, discs of two pixels. It
is synthetic, and cleaner than what is found in offices. A scene is one window at the working resolution.

    nothing    each network alone, the prior with its default solver; the mean of both
    shares     probabilities of each, tilted so that the decided classes keep the scene's shares
    hints      the U-Net's probabilities fitted to the cells softly (the proximal step of `Hints`) and firmly (iterative
               proportional fitting); the hints alone; the prior with `Hints` in its solver
    unary      the prior with the U-Net's probabilities as an `Opinion`; the mean of both stands under `nothing`
    points     the U-Net with the superpixels under the points painted (SLIC, 300 per 256 x 256 pixels); each network
               with the discs known and what they say of what is near and alike, as `segprior segment --known` has it
    clicks     the same, where 20 points lie in the largest errors of each network's own map
    survey     the points as a sample of what is alike (`segprior.prior.alike`), for each network with its own features;
               scores of five draws of points together

Differences are to the control of the kind, which stands first in it, with 95 % intervals by the block bootstrap of
`segprior.counts`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from skimage.segmentation import slic
from torch import Tensor

from segprior.census import Tilt, Zones
from segprior.checkpoint import Prior, load_prior
from segprior.clicks import discs, largest_errors
from segprior.counts import Counter, Counts, Score, joined
from segprior.data import load_dataset, split_named
from segprior.errors import SettingError
from segprior.evaluate import SCORES
from segprior.findings import bounds, check_classes, check_one_image, points, publish
from segprior.plots import Plot, read_plots
from segprior.prior.alike import CLICKS, SURVEYS, Alike, Law, Surveyed, alike_within, evidence
from segprior.prior.constraint import Constraint
from segprior.prior.infer import FixedPoint, Known, Solver, generator_noise, infer
from segprior.prior.joint import UNLABELLED
from segprior.prior.shares import LEAST, PULL, Hints, Regions, soft_tilts, tilted, tilts
from segprior.prior.unary import Opinion, Unary, opinion
from segprior.provenance import commit
from segprior.terminal import counted, run_script

RESULTS = Path(__file__).parent / "results"
SHOWN = {"miou": "mIoU", "mean_boundary_f1": "boundary F1", "ece": "ECE"}
POINTS, RADIUS, SUPERPIXELS = 20, 2, 300 / 256**2
DRAWS = 5
"""Draws of points for a survey; the first is that of the other ways."""
ONE = FixedPoint(times=(1.0,))

Probabilities = npt.NDArray[np.float32]
Index = npt.NDArray[np.uint8]
Points = Sequence[tuple[int, int]]


def main(
    datasets: Annotated[list[str], typer.Argument(help="fair, dubai, or a dataset.toml")],
    *,
    prior: Annotated[list[str], typer.Option(help="the prior of each data set, in their order")],
    opponent: Annotated[list[str], typer.Option(help="a plain segmenter for each data set")],
    cell: Annotated[list[float], typer.Option(help="width of the hints' cells for each data set, in metres")],
    split: Annotated[str, typer.Option(help="train, val or test")] = "val",
    label: Annotated[str, typer.Option(help="what to call the files besides the split")] = "",
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Compare constraints with their controls and write bench_constraints_SPLIT.md and .json."""
    if not len(datasets) == len(prior) == len(opponent) == len(cell):
        raise SettingError(f"wanted a prior, an opponent and a cell for each of {len(datasets)} data sets")
    table: dict[str, dict[str, Any]] = {}
    for name, own, other, width in zip(datasets, prior, opponent, cell, strict=True):
        dataset = load_dataset(name)
        plots = read_plots(dataset, split_named(split), "pairs")
        networks = Networks(load_prior(own), load_prior(other))
        cards = (networks.prior.card, networks.opponent.card)
        check_classes(dataset.name, dataset.legend.names, *(card.legend.names for card in cards))
        check_one_image(*((card.bands, card.mean, card.std) for card in cards))
        found: dict[str, list[Counts]] = {}
        with counted(name, "scenes", len(plots)) as advance:
            for number, plot in enumerate(plots):
                scene = Scene.of(plot, networks.prior, round(width / dataset.res), number)
                drawn: dict[str, list[Counts]] = {}
                for way, p in ways(scene, networks):
                    drawn.setdefault(way, []).append(scene.counts(p, dataset.res))
                for way, parts in drawn.items():
                    found.setdefault(way, []).append(added(parts))
                advance()
        head = f"Prior {Path(own).stem}, U-Net {Path(other).stem}, cells of {width:g} m."
        table[name] = {"head": head, "ways": scored({way: joined(parts) for way, parts in found.items()})}
    write(results, table, "_".join([split, *([label] if label else [])]))


@dataclass(frozen=True, slots=True)
class Networks:
    """The prior and its opponent."""

    prior: Prior
    opponent: Prior

    def map(
        self,
        which: Prior,
        scene: "Scene",
        constraints: Sequence[Constraint] = (),
        places: Points = (),
        survey: Points = (),
    ) -> Probabilities:
        """Probabilities (classes, height, width) of a scene; one step of a plain segmenter, else the default solver."""
        known = None
        if places:
            known, heard = scene.told(which, places)
            constraints = (*constraints, heard)
        solver: Solver = ONE if which.card.plain else FixedPoint()
        channels = len(which.card.bands) + len(which.card.legend)
        noise = generator_noise(0, (1, channels, *scene.truth.shape))
        denoiser = Surveyed(which.denoiser, scene.alike(which, survey)) if survey else which.denoiser
        *_, last = infer(
            denoiser, scene.y, valid=scene.seen, constraints=constraints, known=known, solver=solver, noise=noise
        )
        p: Probabilities = last.probabilities[0].numpy()
        return p


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A plot of the split, cut to multiples of 32, and what is known of it.

    image: (height, width, bands). y: normalised. truth: class index. shares: of the scene. cells: regions of the hints.
    points: (row, column), DRAWS times.
    """

    image: npt.NDArray[np.uint8]
    y: Tensor
    seen: Tensor
    truth: Index
    shares: npt.NDArray[np.float32]
    cells: Regions
    points: list[Points]

    @classmethod
    def of(cls, plot: Plot, prior: Prior, cell: int, seed: int) -> "Scene":
        """Make the knowledge of a plot; cell: pixels."""
        image, truth, seen = plot.pair(32)
        height, width = truth.shape
        classes = len(prior.card.legend)
        shares = counts_by(np.zeros(truth.shape, np.int64), truth, classes, 1)[0]
        rows, cols = (n // cell for n in np.mgrid[:height, :width])
        index = rows * (int(cols.max()) + 1) + cols
        told = counts_by(index, truth, classes, int(index.max()) + 1)
        told[(told.sum(axis=1) == 0) | (np.arange(len(told)) % 5 == 0)] = shares
        at = np.argwhere(truth != UNLABELLED)
        rng = np.random.default_rng(seed)
        chosen = [at[rng.choice(len(at), POINTS, replace=False)] for _ in range(DRAWS)]
        return cls(
            image,
            prior.card.normalise(image.transpose(2, 0, 1))[None],
            torch.from_numpy(seen)[None, None],
            truth,
            shares,
            Regions(torch.from_numpy(index)[None], torch.from_numpy(told)),
            [[(int(row), int(col)) for row, col in draw] for draw in chosen],
        )

    def counts(self, p: Probabilities, res: float) -> Counts:
        """Count probabilities against the truth."""
        counter = Counter(*self.truth.shape, classes=len(p))
        counter.add(0, self.truth, p)
        return counter.finish(pixel=(res, res), tolerance=2 * res)

    def told(self, prior: Prior, places: Points) -> tuple[Known, Unary]:
        """What points say: discs around them are known, and what is near and alike is told."""
        layout = prior.denoiser.layout
        index = torch.from_numpy(discs(self.truth, places, RADIUS))[None]
        heard = evidence(prior.denoiser, self.y, self.seen, self.alike(prior, places, CLICKS))
        return Known(layout.encode(index), (index != UNLABELLED)[:, None]), Unary(heard, layout)

    def alike(self, prior: Prior, places: Points, law: Law = SURVEYS) -> Alike:
        """What a network lacks, by a survey or by clicks."""
        at = torch.tensor(places)
        index = torch.from_numpy(self.truth)[tuple(at.T)]
        return alike_within(prior.denoiser, self.y, self.seen, at, index, law=law)


def added(parts: Sequence[Counts]) -> Counts:
    """Counts of the same blocks, drawn several times, put together."""
    return Counts(*(np.sum([getattr(part, f.name) for part in parts], axis=0) for f in fields(Counts)))


def counts_by(index: npt.NDArray[np.int64], truth: Index, classes: int, regions: int) -> npt.NDArray[np.float32]:
    """Shares (regions, classes) of the truth, 0 where a region has none."""
    there = truth != UNLABELLED
    place = index[there] * classes + truth[there]
    count = np.bincount(place, minlength=regions * classes).reshape(regions, classes)
    shares: npt.NDArray[np.float32] = (count / np.maximum(1, count.sum(axis=1, keepdims=True))).astype(np.float32)
    return shares


def ways(scene: Scene, networks: Networks) -> Iterator[tuple[str, Probabilities]]:
    """Every way's probabilities, its name beginning with its kind."""
    prior, layout = networks.prior, networks.prior.denoiser.layout
    unet, free = networks.map(networks.opponent, scene), networks.map(prior, scene)
    yield "nothing: U-Net", unet
    yield "nothing: prior", free
    yield "nothing: mean of both", np.asarray((unet + free) / 2, np.float32)
    yield "shares: U-Net", kept(unet, scene.shares)
    yield "shares: prior", kept(free, scene.shares)
    cells = scene.cells
    yield "hints: U-Net, softly", fitted(unet, cells, lambda p, i, s: soft_tilts(p, i, s, pull=PULL))
    yield "hints: U-Net, firmly", fitted(unet, cells, tilts)
    yield "hints: alone", cells.shares[cells.index[0]].permute(2, 0, 1).numpy()
    yield "hints: prior", networks.map(prior, scene, [Hints(cells, layout)])
    yield "unary: U-Net", unet
    told = Opinion(opinion(torch.from_numpy(unet)[None]), layout)
    yield "unary: prior", networks.map(prior, scene, [told])
    for kind in ("points", "clicks"):
        theirs, ours = (
            scene.points[0] if kind == "points" else largest_errors(decided(p), scene.truth, POINTS)
            for p in (unet, free)
        )
        yield f"{kind}: U-Net, superpixels", filled(unet, scene, theirs)
        yield f"{kind}: U-Net, alike", networks.map(networks.opponent, scene, places=theirs)
        yield f"{kind}: prior", networks.map(prior, scene, places=ours)
    for drawn in scene.points:
        yield "survey: U-Net", networks.map(networks.opponent, scene, survey=drawn)
        yield "survey: prior", networks.map(prior, scene, survey=drawn)


def kept(p: Probabilities, shares: npt.NDArray[np.float32]) -> Probabilities:
    """Tilt a scene to its shares as `segprior segment --shares` does."""
    tilt = Tilt.of(lambda: [(0, p)], Zones(shares[None], None, ("scene",), p.shape[2]))
    return tilt(0, p)


def fitted(p: Probabilities, cells: Regions, solve: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Probabilities:
    """Tilt cells to their shares."""
    flat = torch.from_numpy(p).reshape(len(p), -1).T
    index = cells.index.reshape(-1)
    q = tilted(torch.log(flat.clamp(min=LEAST)), index, solve(flat, index, cells.shares))
    found: Probabilities = q.T.reshape(p.shape).contiguous().numpy()
    return found


def decided(p: Probabilities) -> Index:
    """Class index of probabilities."""
    return np.asarray(p.argmax(axis=0), np.uint8)


def filled(p: Probabilities, scene: Scene, places: Points) -> Probabilities:
    """Paint the superpixels under the points, each with its point's class."""
    found = p.copy()
    parts = slic(scene.image, n_segments=round(SUPERPIXELS * scene.truth.size), compactness=10, start_label=0)
    for row, col in places:
        found[:, parts == parts[row, col]] = np.eye(len(p), dtype=np.float32)[scene.truth[row, col]][:, None]
    return found


def scored(counts: dict[str, Counts]) -> dict[str, dict[str, Any]]:
    """Scores with intervals, and the differences to the first way of the same kind and to the prior alone."""
    measures: dict[str, Score] = {title: SCORES[key] for key, title in SHOWN.items()}
    first: dict[str, Counts] = {}
    rows = {}
    for way, found in counts.items():
        control = first.setdefault(way.partition(":")[0], found)
        rows[way] = {
            title: [
                bounds(found, measure),
                bounds(found, measure, against=control),
                bounds(found, measure, against=counts["nothing: prior"]),
            ]
            for title, measure in measures.items()
        }
    return rows


def write(results: Path, table: dict[str, dict[str, Any]], what: str) -> None:
    """Put the tables into words."""
    titles = (*SHOWN.values(), "mIoU to its control", "boundary F1 to it", "mIoU to the prior alone")
    parts = []
    for name, found in table.items():
        lines = [
            f"| {way} | {' | '.join(f'{row[t][0][0]:.3f}' for t in SHOWN.values())} | {points(row['mIoU'][1])} "
            f"| {points(row['boundary F1'][1])} | {points(row['mIoU'][2])} |"
            for way, row in found["ways"].items()
        ]
        head = f"| way | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}"
        parts.append(f"## {name}\n\n{found['head']}\n\n{head}\n" + "\n".join(lines) + "\n")
    text = f"""# Constraints against their controls, {what.replace("_", ", ")}

Made by `scripts/bench_constraints.py` at commit {commit(Path(__file__))}. Knowledge is synthetic, made from the labels;
the script tells how. A scene is one window, one noise seed, one training of each network. Differences in points
(hundredths) with 95 % intervals by a bootstrap over blocks of 128 pixels; a kind's control stands first in it.

{chr(10).join(parts)}"""
    publish(results / f"bench_constraints_{what}", text, table)
    print(text)


if __name__ == "__main__":
    run_script(main)
