"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest

# albumentations calls home at import unless told not to
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_data)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real imagery: SEGPRIOR_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("SEGPRIOR_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real imagery: {folder} is not a folder; set SEGPRIOR_DATA to the one that holds it")
    return folder.resolve()
