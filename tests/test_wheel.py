"""The built wheel, installed away from the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from tiny import tiny_prior

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(root)], cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a venv that holds the wheel; its dependencies are those of this interpreter."""
    folder = tmp_path_factory.mktemp("wheel") / "venv"
    venv.create(folder, with_pip=False)
    interpreter = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter)]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], cwd=folder)
    # a .pth file adds folders without reading their own .pth files, so an editable segprior in them stays unseen
    site = Path(run([interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], cwd=folder).strip())
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(here)) + "\n", encoding="utf-8")
    return interpreter


def run(command: list[str | Path], *, cwd: Path, code: int = 0) -> str:
    ours = ("PYTHON", "COV_", "SEGPRIOR_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def source_files(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in files}


def test_wheel_holds_the_package_its_weights_and_the_descriptors(root: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {f"segprior/{name}" for name in source_files(root / "segprior")}
    descriptors = {f"segprior/datasets/{name}" for name in source_files(root / "datasets")}
    assert {"segprior/datasets/fair/dataset.toml", "segprior/datasets/dubai/dataset.toml"} <= descriptors
    assert {name for name in names if name.startswith("segprior/")} == package | descriptors
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_runs_away_from_the_checkout(root: Path, python: Path, tmp_path: Path) -> None:
    code = "import segprior; print(segprior.__file__); print(segprior.__version__)"
    file, version = run([python, "-c", code], cwd=tmp_path).splitlines()
    package = Path(file).parent
    assert package.is_relative_to(python.parents[1])
    assert not package.is_relative_to(root)
    assert version in (root / "segprior" / "__init__.py").read_text(encoding="utf-8")
    assert source_files(package / "datasets") == source_files(root / "datasets")


@pytest.mark.slow
def test_commands_of_the_wheel_run_away_from_the_checkout(root: Path, python: Path, tmp_path: Path) -> None:
    """A folder of its own, no SEGPRIOR_DATA, and neither checkout nor data set in sight."""
    segprior = [python, "-m", "segprior"]
    version = run([*segprior, "--version"], cwd=tmp_path)
    assert version.strip() == "segprior " + run([python, "-c", VERSION], cwd=tmp_path).strip()
    console = python.with_name("segprior.exe" if os.name == "nt" else "segprior")
    assert run([console, "--version"], cwd=tmp_path) == version
    tiny_prior(tmp_path / "tiny.safetensors")
    assert "tiny: joint prior over image and labels" in run([*segprior, "info", "tiny.safetensors"], cwd=tmp_path)
    small = ["--prior", "tiny.safetensors", "-n", "1", "--size", "32", "--steps", "2"]
    run([*segprior, "sample", "-o", "drawn", *small], cwd=tmp_path)
    tile = ["--tile-size", "32", "--overlap", "0"]
    image = ["drawn/pair_000.tif", "-o", "mask.tif", "--prior", "tiny.safetensors"]
    assert "mask.tif: " in run([*segprior, "segment", *image, *tile], cwd=tmp_path)
    files = run([*segprior, "data", "verify", "dubai"], cwd=tmp_path, code=1).splitlines()
    assert len(files) == 12
    assert all(line.startswith("missing ") for line in files)
    names = run([python, "-c", NAMES], cwd=tmp_path).split()
    assert names == sorted(path.stem for path in (root / "segprior" / "weights").glob("*.safetensors"))


VERSION = "import importlib.metadata as m; print(m.version('segprior'))"
NAMES = "from segprior.checkpoint import prior_names; print(*prior_names())"
