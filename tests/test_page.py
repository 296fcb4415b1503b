"""The page of an evaluation: what it says, that it needs nothing else, and what a browser makes of it."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from segprior.counts import Counter
from segprior.errors import OutputError
from segprior.evaluate import Maps, SceneResult, pooled
from segprior.legend import Legend, LegendClass
from segprior.page import RIGHT, WRONG, write_page

LEGEND = Legend((LegendClass("ground", 0, (10, 120, 30)), LegendClass("roof <b>", 1, (40, 60, 200))))
FACTS = {"prior": "a & b", "seed": "0"}


def result(name: str, *, seed: int, maps: bool = True) -> SceneResult:
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 2, (16, 16)), np.ones((10, 10))).astype(np.uint8)
    share = np.clip(0.5 + 0.3 * (truth - 0.5) + rng.normal(0, 0.2, truth.shape), 0, 1).astype(np.float32)
    truth[:5] = 255
    counter = Counter(*truth.shape, classes=2)
    counter.add(0, truth, np.stack([1 - share, share]))
    sure = np.where(truth == 255, np.nan, np.maximum(share, 1 - share)).astype(np.float32)
    image = rng.integers(0, 255, (3, *truth.shape)).astype(np.uint8)
    shown = Maps(image, counter.truth, counter.predicted, sure) if maps else None
    return SceneResult(name, counter.finish(pixel=(0.5, 0.5), tolerance=1.0), shown)


class Reader(HTMLParser):
    """Collects the cells of every table, the pictures, and whatever the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: dict[str, str] = {}
        self.loaded: list[str] = []
        self.tags: set[str] = set()
        self.titles: list[str] = []
        self._cell = self._title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.loaded += [str(v) for k, v in attrs if k in ("src", "href") and not str(v).startswith("data:")]
        if tag == "table":
            self.tables[str(given["id"])] = []
        elif tag == "tr":
            list(self.tables.values())[-1].append([])
        elif tag in ("td", "th"):
            list(self.tables.values())[-1][-1].append("")
            self._cell = True
        elif tag == "img":
            self.pictures[str(given["alt"])] = str(given["src"])
        elif tag == "h3":
            self.titles.append("")
            self._title = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")
        self._title = self._title and tag != "h3"

    def handle_data(self, data: str) -> None:
        if self._cell:
            list(self.tables.values())[-1][-1][-1] += data
        if self._title:
            self.titles[-1] += data


@pytest.fixture(scope="module")
def results() -> list[SceneResult]:
    return [result("one", seed=0), result("two <i>", seed=1), result("three", seed=2, maps=False)]


@pytest.fixture(scope="module")
def folder(results: list[SceneResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page") / "look"
    write_page(place, results, LEGEND, title="tiny on something", facts=FACTS)
    return place


@pytest.fixture(scope="module")
def page(folder: Path) -> Reader:
    reader = Reader()
    reader.feed((folder / "index.html").read_text(encoding="utf-8"))
    return reader


def test_the_page_is_alone(folder: Path, page: Reader) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "scores.json"]
    assert page.loaded == []
    assert not page.tags & {"script", "link", "iframe", "b", "i" * 2}
    assert "url(" not in (folder / "index.html").read_text(encoding="utf-8")


def test_the_tables_hold_the_scores(page: Reader, results: list[SceneResult]) -> None:
    rows = page.tables["scores"]
    assert rows[0] == ["scene", "pixels", "mIoU", "F1", "boundary F1", "accuracy", "ECE", "Brier"]
    assert [row[0] for row in rows[1:]] == ["one", "two <i>", "three", "pooled", "95 % interval"]
    whole = pooled(results)
    assert rows[4][1] == "74 400"
    for row, found in zip(rows[1:5], (*results, whole), strict=True):
        wanted = (
            found.scores.miou,
            found.scores.mean_f1,
            found.counts.mean_boundary_f1,
            found.scores.accuracy,
            found.calibration.ece,
            found.counts.brier,
        )
        assert row[2:] == [f"{value:.3f}" for value in wanted]
    low, high = (float(bound) for bound in rows[5][2].split(" to "))
    assert low < whole.scores.miou < high
    assert [row[0] for row in page.tables["classes"][1:]] == ["ground", "roof <b>"]
    assert page.tables["classes"][2][1] == f"{whole.scores.iou[1]:.3f}"
    of_roofs = (whole.confusion[1].sum(), whole.confusion[:, 1].sum())
    assert page.tables["classes"][0][-2:] == ["share in truth", "share in map"]
    assert page.tables["classes"][2][-2:] == [f"{count / whole.confusion.sum():.3f}" for count in of_roofs]
    shares = whole.confusion / whole.confusion.sum(axis=1, keepdims=True)
    found_shares = [[float(cell) for cell in row[1:]] for row in page.tables["confusion"][1:]]
    np.testing.assert_allclose(found_shares, 100 * shares, atol=0.051)


def test_every_scene_has_its_pictures(page: Reader, results: list[SceneResult]) -> None:
    assert page.titles == ["one", "two <i>"]
    names = ("image", "truth", "prediction", "confidence", "errors")
    assert list(page.pictures) == [
        "reliability diagram",
        *(f"{what} of {scene}" for scene in page.titles for what in names),
    ]
    arrays = {k: imread(io.BytesIO(base64.b64decode(v.split(",")[1]))) for k, v in page.pictures.items()}
    maps = results[0].maps
    assert maps is not None
    np.testing.assert_allclose(arrays["image of one"][..., :3], maps.image.transpose(1, 2, 0) / 255, atol=1e-3)
    errors = np.round(255 * arrays["errors of one"][..., :3]).astype(int)
    known = maps.truth != 255
    assert (errors[~known] == 255).all()
    assert (errors[known & (maps.truth == maps.predicted)] == RIGHT).all()
    assert (errors[known & (maps.truth != maps.predicted)] == WRONG).all()


def test_the_numbers_lie_beside_it(folder: Path, results: list[SceneResult]) -> None:
    table = json.loads((folder / "scores.json").read_text())
    assert {k: v for k, v in table.items() if k != "scores"} == FACTS
    assert list(table["scores"]) == ["one", "two <i>", "three", "pooled"]
    assert table["scores"]["pooled"]["brier"] == pytest.approx(pooled(results).counts.brier, abs=1e-5)


def test_one_scene_needs_no_sum(tmp_path: Path, results: list[SceneResult]) -> None:
    write_page(tmp_path / "look", results[:1], LEGEND, title="t", facts={})
    reader = Reader()
    reader.feed((tmp_path / "look" / "index.html").read_text(encoding="utf-8"))
    assert [row[0] for row in reader.tables["scores"][1:]] == ["one", "95 % interval"]


def test_nothing_to_count(tmp_path: Path) -> None:
    counter = Counter(8, 8, classes=2)
    empty = SceneResult("empty", counter.finish(pixel=(1, 1), tolerance=1))
    write_page(tmp_path / "look", [empty], LEGEND, title="t", facts={})
    reader = Reader()
    reader.feed((tmp_path / "look" / "index.html").read_text(encoding="utf-8"))
    assert set(reader.tables["scores"][1][2:]) == {"–"} == set(reader.tables["scores"][2][2:])


def test_files_that_exist_are_kept(folder: Path, results: list[SceneResult]) -> None:
    before = (folder / "index.html").read_bytes()
    with pytest.raises(OutputError, match="it exists"):
        write_page(folder, results, LEGEND, title="other", facts={})
    assert (folder / "index.html").read_bytes() == before


def test_a_browser_shows_it(folder: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on PATH (Debian's package chromium) to open the page with")
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--window-size=1400,2400", f"--screenshot={tmp_path / 'shot.png'}", "--dump-dom"),
        (folder / "index.html").as_uri(),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert "tiny on something" in ran.stdout
    shot = imread(tmp_path / "shot.png")
    assert shot.shape[:2] == (2400, 1400)
    # the red of errors and the classes' own colours are on the screen
    for red, green, blue in (WRONG, *(c.color for c in LEGEND.classes)):
        near = np.abs(255 * shot[..., :3] - np.array([red, green, blue])).max(axis=2) < 12
        assert near.sum() > 300, (red, green, blue)
    assert re.search(r"<td>pooled</td>", ran.stdout)
