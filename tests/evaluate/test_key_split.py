"""Keys that are held out: the same share of every label, known by a seed."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny_stores
from torch import nn

import nrm_graph as ng
from nrm_graph.errors import InputError
from nrm_graph.evaluate import Split, faithfulness, split
from nrm_graph.store.write.writer import Writer

pytestmark = pytest.mark.usefixtures("remembered_traces")


def store(path, keys):
    """Make a store without a network, of keys with labels."""
    tiny_stores.make(path)
    with Writer(path) as writer:
        for n, (key, label) in enumerate(keys):
            for target in (0, 1):
                writer.add(tiny_stores.record(n, target, key=key, label=label))
    return ng.open(path)


KEYS = [
    *[(f"cat{n}", "cat") for n in range(12)],
    *[(f"dog{n}", "dog") for n in range(4)],
    ("it's one", "rare"),
    *[(f"free{n}", None) for n in range(3)],
]


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    with store(tmp_path_factory.mktemp("split") / "s.nrm", KEYS) as view:
        yield view


def counts(parts):
    held = [row["label"] for row in parts.table.to_pylist() if row["held_out"]]
    return {label: held.count(label) for label in ("cat", "dog", "rare", None)}


@pytest.mark.smoke
def test_every_label_has_the_same_share_held_out(db):
    parts = split(db)
    assert isinstance(parts, Split)
    assert counts(parts) == {"cat": 3, "dog": 1, "rare": 0, None: 1}
    assert not set(parts.circuit) & set(parts.held_out)
    assert {*parts.circuit, *parts.held_out} == {key for key, _ in KEYS}
    assert parts.table["key"].to_pylist() == sorted(key for key, _ in KEYS)
    assert repr(parts) == "<Split of 20 keys of 4 labels, seed 0: 15 for circuits, 5 held out>"
    assert parts.to_pandas()["held_out"].sum() == 5
    assert counts(split(db, share=0.5)) == {"cat": 6, "dog": 2, "rare": 0, None: 2}
    # One of two keys or more is on either side, however small or large the share.
    assert counts(split(db, share=1e-9)) == {"cat": 1, "dog": 1, "rare": 0, None: 1}
    assert counts(split(db, share=0.999)) == {"cat": 11, "dog": 3, "rare": 0, None: 2}


def test_a_seed_chooses_and_chooses_again(db):
    assert split(db, seed=3).held_out == split(db, seed=3).held_out
    assert len({split(db, seed=seed).held_out for seed in range(8)}) > 4


def test_more_inputs_move_few_keys(db, tmp_path):
    with store(tmp_path / "s.nrm", [*KEYS, ("cat99", "cat")]) as larger:
        before, after = set(split(db).held_out), set(split(larger).held_out)
    assert len(before ^ after) <= 2


def test_conditions_choose_both_parts(db):
    parts = split(db, "label = 'cat'", share=0.5)
    assert len(parts.circuit) == len(parts.held_out) == 6
    query = f"SELECT DISTINCT key FROM inputs WHERE {parts.held_out_where} AND target = 0"
    assert {key for (key,) in db.sql(query).fetchall()} == set(parts.held_out)
    odd = split(db, "label = 'rare' OR key = 'free1' OR key = 'free2'", share=0.5)
    quoted = Split(odd.held_out, ("it's one",), odd.table, 0.5, 0).held_out_where
    assert quoted == "key IN ('it''s one')"
    assert db.sql(f"SELECT count(*) FROM inputs WHERE {quoted}").fetchall() == [(2,)]


def test_wrong_arguments(db):
    for share in (0, 1, -0.5, "0.5", True, float("nan")):
        with pytest.raises(InputError, match="share must be a number between 0 and 1"):
            split(db, share=share)
    with pytest.raises(InputError, match="seed must be a whole number"):
        split(db, seed=-1)
    with pytest.raises(InputError, match="none of the 1 keys can be held out: expected two"):
        split(db, "label = 'rare'")
    with pytest.raises(InputError, match="no input is chosen"):
        split(db, "label = 'horse'")


def test_faithfulness_names_it_where_held_out_keys_lack(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    rows = [{"input": torch.rand(3), "key": f"k{n}", "label": "cat"} for n in range(8)]
    options = {"composite": "epsilon", "target": 0, "progress": False}
    with ng.extract(net, rows, tmp_path / "s.nrm", **options) as db:
        whole = db.circuit("label = 'cat'")
        with pytest.raises(InputError, match=r"inputs=ng\.evaluate\.split\(db\)\.circuit\)"):
            faithfulness(db, whole, progress=False)
        with pytest.raises(InputError, match=r"such as inputs=ng\.evaluate\.split\(db\)\.circuit"):
            faithfulness(db, whole, "label = 'cat'", progress=False)
        parts = split(db)
        circuit = db.circuit("label = 'cat'", inputs=parts.circuit)
        where = f"label = 'cat' AND {parts.held_out_where}"
        curves = faithfulness(db, circuit, where, draws=2, progress=False)
    assert set(curves.keys) == set(parts.held_out)
