"""A browser for the tests that are driven in one, and a store that they look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers import browser
from helpers.explorer_pages import Looked

import nrm_graph as ng
from nrm_graph.cli.demo.fashion_cnn import CLASSES, load_demo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

    from nrm_graph.database import Database

IMAGES = 24


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the browser saves files in."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chrome(downloads: Path) -> Iterator[Chrome]:
    """One browser for a module; tests that use it are marked slow."""
    with browser.chrome(downloads=downloads) as running:
        yield running


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store of the demo's images, by channel."""
    model, images = load_demo()
    path = tmp_path_factory.mktemp("explorer") / "demo.nrm"
    options = {"resolution": "channel", "classes": CLASSES, "progress": False}
    ng.extract(model, images[:IMAGES], path, **options).close()
    return path


@pytest.fixture(scope="module")
def db(store: Path) -> Iterator[Database]:
    with ng.open(store) as db:
        yield db


@pytest.fixture(scope="module")
def looked(chrome: Chrome, store: Path) -> Iterator[Looked]:
    """The browser, looking at the store; at the end its console holds no error."""
    with ng.explore(store, browser=False) as explorer:
        looked = Looked(chrome, explorer)
        yield looked
        assert looked.serious() == []
