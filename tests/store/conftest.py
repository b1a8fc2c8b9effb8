"""Stores that many tests read or copy, made once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import damaged, interrupted, materialized, reduced, resealed
from helpers.tiny_stores import make, record, write

import nrm_graph as ng


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """Nothing is synced, which is faster; test_commit.py is about when it is."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def path(tmp_path):
    """A store without inputs."""
    return make(tmp_path / "s.nrm")


@pytest.fixture
def three_inputs(path):
    """A store of three inputs, each in its own shard."""
    for number in range(3):
        write(path, [record(number)])
    return path


@pytest.fixture(scope="session")
def two_targets(tmp_path_factory):
    """A store of four inputs in two targets each, to read."""
    folder = make(tmp_path_factory.mktemp("sql") / "s.nrm")
    return write(folder, [record(i, t, metadata={"n": i}) for i in range(4) for t in range(2)])


@pytest.fixture(scope="session")
def honest(tmp_path_factory):
    """A store of one input, to copy before its program, tensors or layers lie."""
    path = tmp_path_factory.mktemp("hostile") / "s.nrm"
    rows = [{"input": torch.linspace(0, 1, 16).reshape(1, 4, 4), "key": "k"}]
    with ng.extract(resealed.network(), rows, path, target=1, progress=False):
        return path


@pytest.fixture(scope="session")
def extracted(tmp_path_factory):
    """A store of a few images in two targets, to copy before something is materialized."""
    path = tmp_path_factory.mktemp("extracted") / "s.nrm"
    interrupted.extract(path, materialized.COUNT, 2).close()
    return path


@pytest.fixture(scope="session")
def conditioned_store(tmp_path_factory):
    """A store whose measures can be computed, with the condition ``b``."""
    path = tmp_path_factory.mktemp("conditioned") / "s.nrm"
    with interrupted.extract(path, 3, 2) as db:
        db.materialize(ng.Layer("0")[2], name="b", progress=False)
    return path


@pytest.fixture(scope="session")
def two_shards(tmp_path_factory):
    """A store of two small shards with custom units, to copy before it is damaged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        path = tmp_path_factory.mktemp("two_shards") / "s.nrm"
        own = {"0": np.arange(12) // 4}
        for rows in (damaged.images(2, (4,)), damaged.images(3, (4,))[2:]):
            ng.extract(damaged.dense(), rows, path, resolution=own, **damaged.OPTIONS).close()
    return path


@pytest.fixture(scope="session")
def reduced_store(tmp_path_factory):
    """A store with reduced tables, ``steps`` and, under an event, ``given``, to read or copy."""
    path = tmp_path_factory.mktemp("reduced") / "s.nrm"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        with reduced.extract(path) as db:
            reduced.materialize(db)
            reduced.materialize(db, "given", reduced.EVENT)
    return path
