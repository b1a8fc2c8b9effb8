"""Versions of torch: one that nobody tested warns once, and pyproject.toml asks for the oldest."""

import re
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from nrm_graph.network.tracing import versions
from nrm_graph.network.tracing.trace import trace

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))[
    "project"
]


@pytest.fixture
def version(monkeypatch):
    """Return a function that lets torch be of another version."""
    versions._warn_if_untested.cache_clear()
    yield lambda text: monkeypatch.setattr(torch, "__version__", text)
    versions._warn_if_untested.cache_clear()


def traced():
    trace(nn.Linear(2, 2), torch.ones(2))


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("2.16.0", traced),
        ("3.0.0a0+git1234", versions.warn_if_untested),
        ("2.8.1+cu128", versions.warn_if_untested),
        ("2.100.0", versions.warn_if_untested),
    ],
)
def test_an_untested_version_warns_once(version, text, call):
    version(text)
    with pytest.warns(UserWarning, match=rf"tested with torch 2\.9 to 2\.\d+, found {text[:5]}"):
        call()
    call()


@pytest.mark.parametrize("text", ["2.9.0", "2.10.0", "2.15.0+cu132", "2.15.1"])
def test_tested_versions_do_not_warn(version, text):
    version(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.warn_if_untested()


def test_the_version_at_hand_is_tested():
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert versions.TESTED[0] <= release <= versions.TESTED[1]


def test_the_project_asks_for_the_oldest_tested_version_and_no_newest():
    oldest = ".".join(map(str, versions.TESTED[0]))
    assert [d for d in PROJECT["dependencies"] if re.match(r"torch\b", d)] == [f"torch>={oldest}"]


def test_the_documentation_states_the_range():
    text = (Path(__file__).parents[2] / "docs" / "versions.md").read_text("utf-8")
    oldest, newest = (".".join(map(str, tested)) for tested in versions.TESTED)
    assert f"| torch | {oldest} | {newest} |" in " ".join(text.split())
