"""Particles: whether they collapse, and whether their disagreement tells where a map is wrong.

    python scripts/bench_particles.py fair dubai --prior buildings --prior landcover

Each scene of the validation split is one window, solved by `--particles` particles whose noise is independent, with the
default times and with lower ones (at high noise all particles hear the same image and little else), without and with
repulsion: after every step a particle's probabilities p_k become p_k^(1 + s) / m^s, normalised, m being the particles'
geometric mean. The table gives mIoU and ECE of their mean, how much they disagree where the map is right and where it
is wrong (see `segprior.prior.particles`), and the AUROC of finding wrong pixels by 1 - confidence, by entropy and by
disagreement. The result is bench_particles.md and .json. One noise seed, one training of each prior.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from segprior.checkpoint import Prior, load_prior
from segprior.counts import Counter, Counts, joined
from segprior.data import load_dataset
from segprior.errors import SettingError
from segprior.findings import check_classes, publish
from segprior.layers import relative_entropy
from segprior.plots import Plot, read_plots
from segprior.prior.constraint import Constraint
from segprior.prior.infer import FixedPoint, generator_noise, infer
from segprior.prior.joint import UNLABELLED, Layout, OneHotLayout
from segprior.prior.particles import disagreement
from segprior.provenance import commit
from segprior.terminal import counted, run_script

RESULTS = Path(__file__).parent / "results"
TIMES = {"default": (1.0, 0.9, 0.8), "lower": (1.0, 0.7, 0.4), "low": (1.0, 0.5, 0.2)}
REPULSION = (0.0, 0.3, 1.0)
LEAST = 1e-4
"""Probability that repulsion takes every class to have at least."""


@dataclass(frozen=True, slots=True, eq=False)
class Repulsion(Constraint):
    """Pushes the particles of a batch away from their geometric mean; a rule for fixed_point, not an energy.

    count: particles, which stand one after another along the batch.
    """

    layout: OneHotLayout
    count: int
    weight: float
    balanced: bool = False

    def energy(self, eta: Tensor) -> Tensor:
        """There is none: its step is all there is."""
        raise NotImplementedError  # fixed_point, the only form here, never asks for it

    def proximal(self, eta: Tensor, variance: Tensor, layout: Layout | None = None) -> Tensor:
        """p_k^(1 + s) / m^s, normalised."""
        del variance, layout
        image, labels = self.layout.split(eta)
        log_p = torch.log(self.layout.probabilities(labels).clamp(min=LEAST))
        mean = log_p.reshape(self.count, -1, *log_p.shape[1:]).mean(dim=0).repeat(self.count, 1, 1, 1)
        return self.layout.join(image, self.layout.labels_from(log_p + self.weight * (log_p - mean)))


def main(
    datasets: Annotated[list[str], typer.Argument(help="fair, dubai, or a dataset.toml")],
    *,
    prior: Annotated[list[str], typer.Option(help="the prior of each data set, in their order")],
    particles: Annotated[int, typer.Option(help="particles of a scene")] = 4,
    results: Annotated[Path, typer.Option(help="folder of the report")] = RESULTS,
) -> None:
    """Measure particles and write bench_particles.md and .json."""
    if len(datasets) != len(prior) or particles < 2:
        raise SettingError(f"wanted a prior for each of {len(datasets)} data sets and 2 particles or more")
    table: dict[str, dict[str, Any]] = {}
    for name, own in zip(datasets, prior, strict=True):
        dataset, loaded = load_dataset(name), load_prior(own)
        check_classes(name, dataset.legend.names, loaded.card.legend.names)
        plots = read_plots(dataset, "val", "pairs")
        found: dict[str, list[Looked]] = {}
        with counted(name, "scenes", len(plots)) as advance:
            for plot in plots:
                for way, looked in ways(loaded, plot, particles):
                    found.setdefault(way, []).append(looked)
                advance()
        table[name] = {way: scored(parts) for way, parts in found.items()}
    write(results, table, particles)


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """A scene by one way: counts, and of every labelled pixel whether it is wrong and the three signs of it."""

    counts: Counts
    wrong: NDArray[np.bool_]
    signs: dict[str, NDArray[np.float32]]


def ways(prior: Prior, plot: Plot, count: int) -> Iterator[tuple[str, Looked]]:
    """Every way to have particles, and one particle alone."""
    height, width = (n // 32 * 32 for n in plot.shape)
    if plot.image is None or plot.index is None:
        raise SettingError("wanted plots with image and labels")
    y = prior.card.normalise(plot.image[:height, :width].transpose(2, 0, 1))[None]
    seen = np.ones((height, width), np.bool_) if plot.seen is None else plot.seen[:height, :width]
    truth = np.where(seen, plot.index[:height, :width], np.uint8(UNLABELLED))
    valid, layout = torch.from_numpy(seen.copy())[None, None], prior.denoiser.layout
    channels = layout.bands + layout.classes
    *_, last = infer(prior.denoiser, y, valid=valid)
    yield "one particle", looked(last.particles, truth, prior.card.res)
    for times, strength in ((t, s) for t in TIMES for s in REPULSION):
        said = (Repulsion(layout, count, strength),) if strength else ()
        noise = generator_noise(0, (count, channels, height, width))
        *_, last = infer(
            prior.denoiser, y, valid=valid, solver=FixedPoint(times=TIMES[times]), particles=count, noise=noise,
            constraints=said,
        )  # fmt: skip
        yield f"{times} times, repulsion {strength:g}", looked(last.particles, truth, prior.card.res)


def looked(particles: Tensor, truth: NDArray[np.uint8], res: float) -> Looked:
    """Count the mean of particles (K, 1, classes, height, width), and look where it is wrong."""
    p: NDArray[np.float32] = particles.mean(dim=0)[0].numpy()
    counter = Counter(*truth.shape, classes=len(p))
    counter.add(0, truth, p)
    told = truth != UNLABELLED
    apart = disagreement(particles)[0].numpy() if len(particles) > 1 else np.zeros(truth.shape, np.float32)
    signs = {"1 - confidence": 1 - p.max(axis=0), "entropy": relative_entropy(p)[0], "disagreement": apart}
    return Looked(
        counter.finish(pixel=(res, res), tolerance=2 * res),
        (p.argmax(axis=0) != truth)[told],
        {name: sign[told] for name, sign in signs.items()},
    )


def scored(parts: Sequence[Looked]) -> dict[str, float]:
    """Scores of the scenes together."""
    counts, wrong = joined([part.counts for part in parts]), np.concatenate([part.wrong for part in parts])
    signs = {name: np.concatenate([part.signs[name] for part in parts]) for name in parts[0].signs}
    apart = signs["disagreement"]
    return {
        "mIoU": counts.scores.miou,
        "ECE": counts.calibration.ece,
        "disagreement where right": float(apart[~wrong].mean()),
        "where wrong": float(apart[wrong].mean()),
        **{f"AUROC {name}": float(roc_auc_score(wrong, sign)) for name, sign in signs.items()},
    }


def write(results: Path, table: dict[str, dict[str, Any]], particles: int) -> None:
    """Put the tables into words."""
    parts = []
    for name, rows in table.items():
        titles = list(next(iter(rows.values())))
        lines = [f"| {way} | {' | '.join(f'{row[t]:.3f}' for t in titles)} |" for way, row in rows.items()]
        head = f"| way | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}"
        parts.append(f"## {name}\n\n{head}\n" + "\n".join(lines) + "\n")
    text = f"""# {particles} particles, validation

Made by `scripts/bench_particles.py` at commit {commit(Path(__file__))}; the script tells what is what.

{chr(10).join(parts)}"""
    publish(results / "bench_particles", text, table)
    print(text)


if __name__ == "__main__":
    run_script(main)
