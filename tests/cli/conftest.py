"""Images in folders by class, and their store."""

import shutil
import sys
import types

import pytest
from helpers.class_images import CLASSES, MODELS, MODULE, picture

from nrm_graph.cli import main


@pytest.fixture(scope="session")
def class_models():
    """A module of which MODEL names functions."""
    module = types.ModuleType(MODULE)
    for name, make in MODELS.items():
        setattr(module, name, make)
    sys.modules[MODULE] = module
    yield
    del sys.modules[MODULE]


@pytest.fixture(scope="session")
def classes_and_store(tmp_path_factory, class_models):
    """Images in folders by label, and their store."""
    folder = tmp_path_factory.mktemp("bad")
    for i, label in enumerate(CLASSES):
        (folder / "photos" / label).mkdir(parents=True)
        picture(i).save(folder / "photos" / label / "a.png")
    argv = ["extract", f"{MODULE}:net", str(folder / "photos"), "--store", str(folder / "s.nrm")]
    assert main.main([*argv, "--quiet"]) == 0
    return folder


@pytest.fixture
def place(classes_and_store, tmp_path):
    return shutil.copytree(classes_and_store, tmp_path / "w")
