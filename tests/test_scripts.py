"""The scripts, end to end on a generated data set and a tiny prior."""

import json
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from generated import save_random, write_dataset
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import get_encoder

from segprior.checkpoint import Card, load_prior, read_card
from segprior.counts import Counter, Counts
from segprior.data import load_dataset
from segprior.errors import OutputError, SettingError, TrainingError
from segprior.evaluate import evaluate, pooled
from segprior.findings import points, publish_counts, read_counts
from segprior.options import Options
from segprior.plots import read_plots
from segprior.prior.alike import SURVEYS
from segprior.prior.infer import FixedPoint
from segprior.prior.joint import Times
from segprior.prior.network import NetworkShape, old_encoder_names
from segprior.solvers import solver_named
from segprior.validation import temperature

pytestmark = pytest.mark.slow


def script(root: Path, name: str) -> dict[str, Any]:
    return runpy.run_path(str(root / "scripts" / f"{name}.py"))


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("rectangles"))


@pytest.fixture(scope="module")
def prior(descriptor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of random layers that knows how long it was trained."""
    d = load_dataset(str(descriptor))
    card = Card(
        name="tiny",
        legend=d.legend,
        bands=d.bands,
        res=d.res,
        mean=d.mean,
        std=d.std,
        network=NetworkShape(3, 2, "mobilenet_v2", decoder=(32, 16, 16, 8, 8), label_path=(16, 16, 16)),
        training={
            "seconds": 2,
            "settings": {"batch": 2, "tile": 32, "rate": 1e-3},
            "before": {"seconds": 1},
        },
    )
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    save_random(card, path, seed=1)
    return path


@pytest.mark.slow
def test_accuracies_are_compared(root: Path, descriptor: Path, prior: Path, tmp_path: Path) -> None:
    main = script(root, "bench_accuracy")["main"]
    entries = [f"one={prior},steps=1", f"again={prior},steps=1,seed=3", f"more={prior},steps=2,turns=2"]
    main(str(descriptor), entry=entries, headline="roof", label="here", results=tmp_path)
    table = json.loads((tmp_path / "bench_accuracy_rectangles_val_here.json").read_text())
    assert [row["entry"] for row in table["rows"]] == ["one", "again", "more"]
    one, again, more = (row["scores"] for row in table["rows"])
    assert list(one) == ["IoU roof", "mIoU", "boundary F1", "ECE", "Brier"]
    # one step knows no noise; two steps in two turns are something else
    assert one == again
    assert one["Brier"] != more["Brier"]
    found = pooled(
        list(
            evaluate(
                load_dataset(str(descriptor)),
                "val",
                prior=prior,
                options=Options(solver=solver_named("fixed_point", 1)),
            )
        )
    )
    assert one["IoU roof"][0] == pytest.approx(found.scores.iou[1], abs=1e-5)
    for row, scores in zip(table["rows"], (one, again, more), strict=True):
        for title, (value, low, high) in row["differences"].items():
            assert low <= value <= high
            assert value == pytest.approx(scores[title][0] - one[title][0], abs=2e-5)
        assert list(row["iou"]) == ["ground", "roof"]
        assert np.mean([value for value, _, _ in row["iou"].values()]) == pytest.approx(scores["mIoU"][0], abs=1e-5)
        for name, (value, low, high) in row["iou_differences"].items():
            assert low <= value <= high
            assert value == pytest.approx(row["iou"][name][0] - table["rows"][0]["iou"][name][0], abs=2e-5)
    text = (tmp_path / "bench_accuracy_rectangles_val_here.md").read_text()
    assert text.count("| more |") == 3
    assert text.count("| one |") == 2
    last = table["rows"][2]
    cells = (f"{last['iou'][c][0]:.3f}, {points(last['iou_differences'][c])}" for c in ("ground", "roof"))
    assert f"| more | {' | '.join(cells)} |" in text
    counts, classes = read_counts(tmp_path / "bench_accuracy_rectangles_val_here.npz")
    assert classes == ("ground", "roof")
    assert [round(c.scores.miou, 5) for c in counts.values()] == [s["mIoU"][0] for s in (one, again, more)]


@pytest.mark.slow
def test_a_network_that_is_gone_is_compared_with(
    root: Path, descriptor: Path, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = script(root, "bench_accuracy")["main"]
    entries = [f"one={prior},steps=1", f"more={prior},steps=2,turns=2"]
    main(str(descriptor), entry=entries, label="both", results=tmp_path)
    main(
        str(descriptor),
        entry=entries[1:],
        kept=[f"one={tmp_path}/bench_accuracy_rectangles_val_both.npz"],
        results=tmp_path,
    )
    both, kept = (
        json.loads((tmp_path / f"bench_accuracy_rectangles_val{end}.json").read_text())["rows"] for end in ("_both", "")
    )
    assert [row["entry"] for row in kept] == ["one", "more"]
    assert kept[0]["kept"] == "bench_accuracy_rectangles_val_both.npz"
    for key in ("checkpoint", "sha256", "training_seconds", "options"):
        assert kept[0][key] == both[0][key], "its provenance is kept too"
    assert [row["scores"] for row in kept] == [row["scores"] for row in both]
    assert [row["differences"] for row in kept] == [row["differences"] for row in both]
    stored = tmp_path / "bench_accuracy_rectangles_val_both.npz"
    main(str(descriptor), kept=[f"more={stored}", f"one={stored}"], label="turned", results=tmp_path)
    turned = json.loads((tmp_path / "bench_accuracy_rectangles_val_turned.json").read_text())["rows"]
    assert [row["scores"] for row in turned] == [row["scores"] for row in both[::-1]]
    for title, (value, low, high) in turned[1]["differences"].items():
        assert [-value, -high, -low] == pytest.approx(both[1]["differences"][title], abs=2e-5)
    assert not (tmp_path / "bench_accuracy_rectangles_val_turned.npz").exists(), "its counts are those it was given"
    main(str(descriptor), kept=[f"one={tmp_path}/bench_accuracy_rectangles_val.npz"], label="again", results=tmp_path)
    (again,) = json.loads((tmp_path / "bench_accuracy_rectangles_val_again.json").read_text())["rows"]
    assert again["kept"] == "bench_accuracy_rectangles_val_both.npz", "where it was measured, not where it was copied"
    with pytest.raises(SettingError, match=r"wanted boundaries met within 0\.6 m, those of .* are within two working"):
        main(str(descriptor), kept=[f"one={stored}"], tolerance=0.6, results=tmp_path)
    with pytest.raises(SettingError, match="by --entry or --kept, got neither"):
        main(str(descriptor), results=tmp_path)
    publish_counts(tmp_path / "others.npz", {"one": predicted(0.8, 0)}, ("ground", "roof"))
    for text, message in (
        ("two=bench_accuracy_rectangles_val_both.npz", "wanted NAME=FILE.npz with counts of rectangles.*: one, more"),
        ("more=bench_accuracy_rectangles_val_both.npz", "wanted names that differ"),
        ("one=others.npz", "wanted counts of the scenes of rectangles, val"),
    ):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SettingError, match=message):
            main(str(descriptor), entry=entries[1:], kept=[text], results=tmp_path)


@pytest.mark.slow
def test_trainings_are_put_together(root: Path, tmp_path: Path) -> None:
    """A U-Net that is right in 80 and 84 of 100 pixels in its two trainings, a prior that is in 90 and 86."""
    for number, shares in enumerate(((0.8, 0.9), (0.84, 0.86))):
        found = {name: predicted(right, number) for name, right in zip(("U-Net", "prior"), shares, strict=True)}
        publish_counts(tmp_path / f"seed{number}.npz", found, ("ground", "roof"))
    files = [tmp_path / f"seed{number}.npz" for number in range(2)]
    script(root, "across_seeds")["main"](files, output=tmp_path / "both", headline=["roof"])
    first, second = json.loads((tmp_path / "both.json").read_text())["rows"]
    assert list(first["scores"]) == ["IoU roof", "mIoU", "boundary F1", "ECE", "Brier"]
    # with classes as frequent, of which a share a is right, IoU is a / (2 - a)
    assert first["scores"]["mIoU"] == pytest.approx([0.8 / 1.2, 0.84 / 1.16], abs=0.01)
    value, low, high = second["differences"]["mIoU"]
    assert second["apart"]["mIoU"] == pytest.approx([0.9 / 1.1 - 0.8 / 1.2, 0.86 / 1.14 - 0.84 / 1.16], abs=0.01)
    assert value == pytest.approx(np.mean(second["apart"]["mIoU"]), abs=1e-4)
    assert 0 < low < value < high
    text = (tmp_path / "both.md").read_text()
    assert text.count("| prior |") == 2
    assert f"; {', '.join(f'{100 * v:+.1f}' for v in second['apart']['mIoU'])} |" in text


def predicted(right: float, seed: int) -> Counts:
    truth = np.random.default_rng(7).integers(0, 2, (512, 512)).astype(np.uint8)
    wrong = np.random.default_rng([8, seed]).random(truth.shape) >= right
    counter = Counter(*truth.shape, classes=2)
    counter.add(0, truth, np.stack([truth == wrong, truth != wrong]).astype(np.float32))
    return counter.finish(pixel=(1.0, 1.0), tolerance=1.0)


def test_other_entries_and_other_files_are_not_put_together(root: Path, tmp_path: Path) -> None:
    main = script(root, "across_seeds")["main"]
    paths = [tmp_path / f"{name}.npz" for name in "abc"]
    publish_counts(paths[0], {"U-Net": predicted(0.8, 0)}, ("ground", "roof"))
    publish_counts(paths[1], {"prior": predicted(0.8, 0)}, ("ground", "roof"))
    paths[2].write_bytes(b"none of these")
    for files, headline, message in (
        (paths[:2], [], "wanted entries U-Net of ground, roof, got entries prior"),
        (paths[:1], ["road"], "wanted a class of ground, roof, got road"),
        (paths[2:], [], "wanted counts of predictions"),
        ([tmp_path / "d.npz"], [], "wanted counts of predictions"),
    ):
        with pytest.raises(SettingError, match=message):
            main(files, output=tmp_path / "both", headline=headline)
    assert not list(tmp_path.glob("both*"))


@pytest.mark.parametrize(
    "entry",
    [
        "tiny",
        "=tiny",
        "a=",
        "a=tiny,speed=3",
        "a=tiny,steps=many",
        "a=tiny,solver=none",
        "a=tiny,steps=0",
        "a=tiny,times=1/half",
        "a=tiny,times=1/0.5,steps=2",
        "a=tiny,times=1/2",
    ],
)
def test_an_entry_that_says_nothing_is_refused(root: Path, entry: str) -> None:
    with pytest.raises(SettingError, match="wanted"):
        script(root, "bench_accuracy")["Entry"].parse(entry)


def test_an_entry_may_give_the_times(root: Path) -> None:
    entry = script(root, "bench_accuracy")["Entry"].parse("a=tiny,times=1/0.5/0.25,t_image=0.1")
    assert entry.options.solver == FixedPoint(times=(1.0, 0.5, 0.25), t_image=0.1)


def test_imagenet_weights_are_named_by_position(root: Path, tmp_path: Path) -> None:
    with old_encoder_names():
        encoder = get_encoder("timm-tf_efficientnet_lite0", in_channels=3, depth=5, weights=None)
    given = {f"other.{n}.{k.rsplit('.', 1)[-1]}": v for n, (k, v) in enumerate(encoder.state_dict().items())}
    torch.save({**given, "fc.weight": torch.zeros(10, 1280)}, tmp_path / "w.pth")
    main = script(root, "imagenet_weights")["main"]
    main(tmp_path / "out.safetensors", source=tmp_path / "w.pth")
    assert all(torch.equal(encoder.state_dict()[k], v) for k, v in load_file(tmp_path / "out.safetensors").items())
    encoder.load_state_dict(load_file(tmp_path / "out.safetensors"))
    for wrong in (dict(list(given.items())[1:]), dict(list(given.items())[:9]), dict(reversed(given.items()))):
        torch.save(wrong, tmp_path / "w.pth")
        with pytest.raises(TrainingError, match="wanted"):
            main(tmp_path / "wrong.safetensors", source=tmp_path / "w.pth")
    assert not (tmp_path / "wrong.safetensors").exists()


@pytest.mark.slow
def test_the_baseline_takes_the_time_of_a_prior(root: Path, descriptor: Path, prior: Path, tmp_path: Path) -> None:
    main = script(root, "baseline_unet")["main"]
    out = tmp_path / "unet.safetensors"
    main(
        str(descriptor),
        output=out,
        like=prior,
        arch="fpn",
        encoder="mobilenet_v2",
        encoder_weights="none",
        results=tmp_path / "results",
    )
    card, told = read_card(out), json.loads((tmp_path / "results" / "unet.json").read_text())
    assert (card.plain, card.network.arch) == (True, "fpn")
    assert told["length"]["seconds"] == 3, "the time of the prior and of the one it started from"
    assert told["length"]["steps"] == max(1, round(3 / told["length"]["step_seconds"]))
    assert card.training["settings"]["steps"] == told["length"]["steps"]
    assert (card.training["settings"]["batch"], card.training["settings"]["tile"]) == (2, 32)
    assert "| pooled |" in (tmp_path / "results" / "unet.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results", "unet.csv", "unet.png", "unet.safetensors"]
    few, one = (
        pooled(list(evaluate(load_dataset(str(descriptor)), "val", prior=out, options=Options(solver=solver))))
        for solver in (solver_named("fixed_point", 3), solver_named("fixed_point", 1))
    )
    assert np.array_equal(few.confusion, one.confusion), "a plain segmenter has one step"
    assert told["validation"]["pooled"]["confusion"] == one.confusion.tolist()


def test_the_baseline_wants_one_length(root: Path, descriptor: Path, tmp_path: Path) -> None:
    main = script(root, "baseline_unet")["main"]
    with pytest.raises(SettingError, match="wanted one of"):
        main(str(descriptor), output=tmp_path / "unet.safetensors", steps=3, seconds=4.0)
    with pytest.raises(SettingError, match="wanted one of"):
        main(str(descriptor), output=tmp_path / "unet.safetensors")


def test_an_interrupted_baseline_keeps_its_length(root: Path, descriptor: Path, tmp_path: Path) -> None:
    names = script(root, "baseline_unet")
    plan = names["Plan"](load_dataset(str(descriptor)), tmp_path / "u.safetensors", plain=True)
    plan.beside(".run").touch()
    plan.beside(".length.json").write_text('{"steps": 77, "seconds": 5.0, "step_seconds": 0.1}')
    assert names["remembered"](plan, 9.0).steps == 77


@pytest.mark.slow
def test_the_solvers_are_compared_row_by_row(root: Path, descriptor: Path, prior: Path, tmp_path: Path) -> None:
    main = script(root, "compare_solvers")["main"]

    def run(*only: str, cells: int = 0) -> list[dict[str, Any]]:
        main([str(descriptor)], prior=[str(prior)], only=only, cells=cells, crop=32, device="cpu", results=tmp_path)
        rows: list[dict[str, Any]] = json.loads((tmp_path / "compare_solvers.json").read_text())
        return rows

    first = run("one step")
    assert [(r["way"], r["seed"], r["evaluations"]) for r in first] == [("one step", 0, 1), ("one step", 1, 1)]
    rows = run("one step", "mean of four", "fixed_point, 3", "stop, 20")
    assert rows[:2] == first, "what is there is not computed again"
    counts = {r["way"]: r["evaluations"] for r in rows}
    assert counts == {
        "fixed_point, 3 steps down to 0.6": 3,
        "fixed_point, 3 steps down to 0.4": 3,
        "one step": 1,
        "mean of four one-step draws": 4,
        "fixed_point, 3 steps": 3,
        "stop, 20 steps": 21,
        "fixed_point, 3 steps, labels' input zeroed": 3,
        "fixed_point, 3 steps, t_image = 0.1": 3,
        "fixed_point, 3 steps, t_image = 0.3": 3,
    }
    assert len(rows) == 2 * len(counts)
    options = Options(solver=solver_named("fixed_point", 3), seed=1)
    product = pooled(list(evaluate(load_dataset(str(descriptor)), "val", prior=prior, options=options)))
    (row,) = (r for r in rows if (r["way"], r["seed"]) == ("fixed_point, 3 steps", 1))
    assert row["pooled"]["confusion"] == product.confusion.tolist()
    assert (tmp_path / "compare_solvers.md").read_text().count("\n| ") == 1 + len(counts)
    (cell,) = {tuple(r["regions"][0]) for r in run("one step", cells=1)}
    assert cell == ("three at 32, 32", 32, 32, 32, 32), "the middle one of nine"


def test_a_blind_network_sees_pure_noise_in_the_labels(root: Path, prior: Path) -> None:
    blinded = script(root, "compare_solvers")["blinded"]
    seeing, blind = load_prior(prior).denoiser, blinded(load_prior(prior)).denoiser
    x_t = torch.randn(1, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    at = [Times(torch.full((1, 1, 1, 1), 0.3), torch.full((1, 1, 1, 1), t)) for t in (1.0, 0.4)]
    with torch.no_grad():
        start, later = (seeing.predict(x_t, times).logits for times in at)
        torch.testing.assert_close(blind.predict(x_t, at[0]).logits, start)
        likelihood = seeing._label_inputs(at[1].labels)[1] * x_t[:, 3:]
        torch.testing.assert_close(blind.predict(x_t, at[1]).logits, start + likelihood)
        assert not torch.allclose(later, start + likelihood, atol=1e-3), "the seeing one takes the labels in"


@pytest.mark.slow
def test_a_card_tells_copies_from_samples(root: Path, descriptor: Path, prior: Path, tmp_path: Path) -> None:
    names = script(root, "model_card")
    for _ in range(2):
        names["main"](str(prior), str(descriptor), tiles=4, samples=2, tile=32, sheets=tmp_path / "s", results=tmp_path)
    records = json.loads((tmp_path / "tiny_card.json").read_text())
    assert len(records) == 2
    assert {k: v for k, v in records[0].items() if k != "seconds"} == {
        k: v for k, v in records[1].items() if k != "seconds"
    }
    assert (tmp_path / "tiny_card.md").read_text().count("## What tiny remembers") == 2
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["tiny_nearest.png"]
    plots = read_plots(load_dataset(str(descriptor)), "train", "pairs")
    image = plots[0].image
    assert image is not None
    copy = np.ascontiguousarray(np.rot90(image[32:64, 64:96])[:, ::-1])
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    found = names["nearest"]([copy, noise], plots, tile=32)
    assert found.distance[0] == pytest.approx(0, abs=1e-5)
    assert np.array_equal(found.tiles[0], image[32:64, 64:96])
    assert found.distance[1] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("baseline_unet", ("nowhere", "-o", "x.safetensors", "--steps", "1"), "wanted a data set"),
        ("compare_solvers", ("fair",), "prior"),
        ("model_card", ("missing.safetensors", "fair"), "no such file"),
        ("imagenet_weights", ("x.safetensors", "--source", "missing.pth"), "missing.pth"),
    ],
)
def test_bad_input_of_a_script_is_one_line(
    root: Path, tmp_path: Path, name: str, arguments: tuple[str, ...], told: str
) -> None:
    command = [sys.executable, str(root / "scripts" / f"{name}.py"), *arguments]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment(root))
    assert ran.returncode == 2
    assert told in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root), "NO_ALBUMENTATIONS_UPDATE": "1"}


def test_imagery_stays_out_of_the_checkout(root: Path, tmp_path: Path) -> None:
    check = script(root, "model_card")["check_ignored"]
    check(tmp_path)
    if not (root / ".git").exists():
        pytest.skip("no git checkout")
    with pytest.raises(SettingError, match="git ignores"):
        check(root / "tests")


def test_particles_are_looked_at(root: Path, descriptor: Path, prior: Path, tmp_path: Path) -> None:
    script(root, "bench_particles")["main"]([str(descriptor)], prior=[str(prior)], particles=2, results=tmp_path)
    (rows,) = json.loads((tmp_path / "bench_particles.json").read_text()).values()
    alone = rows.pop("one particle")
    assert alone["where wrong"] == 0
    assert alone["AUROC disagreement"] == 0.5
    assert len(rows) == 9
    for times in ("default", "lower", "low"):
        apart = [rows[f"{times} times, repulsion {s}"]["where wrong"] for s in ("0", "0.3", "1")]
        assert apart == sorted(apart)
        assert apart[0] > 0
    assert "| one particle |" in (tmp_path / "bench_particles.md").read_text()


def test_hints_are_made_and_used(root: Path, descriptor: Path, prior: Path, tmp_path: Path) -> None:
    """Blocks of eight pixels, a fifth of them told the shares of the scene; they lift a prior that knows nothing."""
    main = script(root, "make_hints")["main"]
    main(str(descriptor), output=tmp_path, cell=8.0, split=["val"], seed=0, results=tmp_path)
    with rasterio.open(tmp_path / "three.tif") as made:
        shares = made.read()
        assert made.descriptions == ("ground", "roof")
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-6)
    plot = read_plots(load_dataset(str(descriptor)), "val", "pairs")[0]
    assert plot.index is not None
    true = (plot.index == 1).reshape(12, 8, 12, 8).mean(axis=(1, 3))
    whole = tomllib.loads((tmp_path / "three.toml").read_text())["shares"]
    assert whole == pytest.approx({"ground": (plot.index == 0).mean(), "roof": (plot.index == 1).mean()}, abs=1e-5)
    spoiled = np.isclose(shares[1], (plot.index == 1).mean())
    assert spoiled.sum() == pytest.approx(144 // 5, abs=2)
    np.testing.assert_allclose(shares[1][~spoiled], true[~spoiled], atol=1e-6)
    found = json.loads((tmp_path / "hints_rectangles.json").read_text())["splits"]["val"]["mIoU"][0]
    assert 0.5 < found < 1
    bench = script(root, "bench_accuracy")["main"]
    entries = [f"alone={prior}", f"told={prior},hint={tmp_path}/{{stem}}.tif,clusters=2"]
    bench(str(descriptor), entry=entries, label="hints", results=tmp_path)
    rows = json.loads((tmp_path / "bench_accuracy_rectangles_val_hints.json").read_text())["rows"]
    assert rows[1]["scores"]["mIoU"][0] > rows[0]["scores"]["mIoU"][0] + 0.2


def test_a_temperature_is_fitted_and_kept(root: Path, descriptor: Path, prior: Path, tmp_path: Path) -> None:
    target = tmp_path / "sure.safetensors"
    script(root, "calibrate")["main"](prior, str(descriptor), output=target)
    assert read_card(prior).temperature == 1.0
    card, plots = read_card(target), read_plots(load_dataset(str(descriptor)), "val", "pairs")
    assert card.temperature == round(temperature(load_prior(prior), plots), 4) != 1.0
    assert load_prior(target).denoiser.temperature == card.temperature


@pytest.mark.slow
def test_levers_are_compared_with_the_default(root: Path, descriptor: Path, tmp_path: Path) -> None:
    """Rows come one after the other, in one table; a lever that changes nothing gives the same scores."""
    main = script(root, "levers")["main"]
    (tmp_path / "priors").mkdir()
    few: dict[str, Any] = {
        "output": tmp_path / "priors",
        "tile": 32,
        "batch": 5,
        "steps": 2,
        "encoder_weights": "none",
        "results": tmp_path,
    }
    pairs: dict[str, Any] = {"kinds": "0.6,0.4,0,0,0"}
    for name, changed in (("default", {}), ("same", {}), ("pairs", pairs), ("noisy", {"clean": False})):
        main(str(descriptor), name=name, **few, **changed)
    main(str(descriptor), name="narrow", widths="8,16,24", label="wide", **few)
    table = json.loads((tmp_path / "levers_rectangles.json").read_text())
    rows = table["rows"]
    names = ("default", "same", "pairs", "noisy")
    assert list(rows) == [f"{name}, {way}" for name in names for way in ("one step", "3 steps")]
    cards = [read_card(tmp_path / "priors" / f"{name}.safetensors") for name in names]
    assert [card.network.clean for card in cards] == [True, True, True, False]
    assert [table["trainings"][name]["clean"] for name in names] == [True, True, True, False]
    assert rows["same, 3 steps"]["mIoU"] == [rows["default, 3 steps"]["mIoU"][0], [0.0, 0.0, 0.0]]
    assert rows["pairs, one step"]["ECE"][1] != [0.0, 0.0, 0.0]
    assert "kinds=(0.6, 0.4, 0.0, 0.0, 0.0)" in table["trainings"]["pairs"]["settings"]
    assert (tmp_path / "levers_rectangles.md").read_text().count("| pairs, ") == 2
    assert read_card(tmp_path / "priors" / "narrow.safetensors").network.label_path == (8, 16, 24)
    (narrow,) = json.loads((tmp_path / "levers_rectangles_wide.json").read_text())["trainings"].values()
    assert narrow["widths"] == [8, 16, 24]
    # one that was stopped after its training gets its row, and nothing is trained again
    (tmp_path / "levers_rectangles.npz").unlink()
    (tmp_path / "levers_rectangles.json").unlink()
    before = (tmp_path / "priors" / "pairs.safetensors").stat().st_mtime_ns
    main(str(descriptor), name="pairs", **few, **pairs)
    assert (tmp_path / "priors" / "pairs.safetensors").stat().st_mtime_ns == before
    again = json.loads((tmp_path / "levers_rectangles.json").read_text())["rows"]["pairs, one step"]["mIoU"]
    assert again[0] == rows["pairs, one step"]["mIoU"][0]
    with pytest.raises(OutputError, match="it exists"):
        main(str(descriptor), name="pairs", **few)
    with pytest.raises(SettingError, match="wanted shares of pair, segment, joint, image, label as numbers"):
        main(str(descriptor), name="odd", kinds="many", **few)
    for widths in ("8,16", "8,16,0", "wide"):
        with pytest.raises(SettingError, match=r"wanted .*widths"):
            main(str(descriptor), name="odd", widths=widths, **few)


def test_surveys_are_drawn_and_told(root: Path, descriptor: Path, prior: Path, tmp_path: Path) -> None:
    """More points bring more, of a network that knows nothing; clicks lie where its map is wrong."""
    names = script(root, "bench_survey")
    names["main"]([str(descriptor)], prior=[str(prior)], results=tmp_path)
    ((_, found),) = json.loads((tmp_path / "bench_survey_val.json").read_text()).items()
    gains = found["gains"]
    assert [len(v) for v in gains.values()] == [5] * 5 + [1]
    assert np.mean(gains["100 random points"]) > max(0, np.mean(gains["5 random points"]))
    in_accuracy = found["gains_in_accuracy"]
    assert list(in_accuracy) == list(gains)
    assert np.mean(in_accuracy["100 random points"]) > 0
    assert in_accuracy != gains
    names["main"]([str(descriptor)], prior=[str(prior)], base=5.0, label="base5", results=tmp_path)
    ((_, other),) = json.loads((tmp_path / "bench_survey_val_base5.json").read_text()).items()
    assert (found["base"], other["base"]) == (SURVEYS.base, 5.0)
    assert other["alone"] == found["alone"]
    assert other["gains"] != gains
    plots = read_plots(load_dataset(str(descriptor)), "val", "pairs")
    scene = names["Scene"].of(plots[0], load_prior(prior), SURVEYS)
    clicks = scene.clicks(5)
    assert len(clicks)
    rows, cols = clicks.T
    assert bool((scene.alone[rows, cols] != scene.truth[rows, cols]).all())
    assert "| 100 random points |" in (tmp_path / "bench_survey_val.md").read_text()
    with pytest.raises(SettingError, match="wanted a prior for each of 1 data sets, got 2"):
        names["main"]([str(descriptor)], prior=[str(prior)] * 2, results=tmp_path)
