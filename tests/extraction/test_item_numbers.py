"""The column ``item``: places in the data set, through all calls that fill a store."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import tiny_stores
from helpers.make_format1 import PATH as FORMAT1
from helpers.small import X, extract, rows, values
from torch.utils.data import DataLoader

import nrm_graph as ng
from nrm_graph.extraction import extract as extraction
from nrm_graph.extraction import item_numbers
from nrm_graph.extraction.item_numbers import Numbering, first_item
from nrm_graph.extraction.samples import Sample
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.write.compaction import compact
from nrm_graph.store.write.deletion import delete
from nrm_graph.store.write.writer import Writer


class Broken:
    """Rows of X, some of which fail."""

    def __init__(self, count, *fails):
        self.count, self.fails = count, fails

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i in self.fails:
            raise OSError("gone")
        return X[i]


def places(count):
    return {i: i for i in range(count)}


@pytest.mark.smoke
@pytest.mark.parametrize(
    "inputs",
    [X, list(X), DataLoader(X, batch_size=5), (x for x in X), DataLoader(X, batch_size=None)],
    ids=lambda value: type(value).__name__,
)
def test_a_fresh_store_is_numbered_by_places(tmp_path, inputs):
    with extract(tmp_path / "s.nrm", inputs, batch_size=5) as db:
        assert values(db) == places(12)
        assert db.sql("SELECT item FROM inputs").types == ["BIGINT"]
        table = {"own": db.sql("SELECT item AS place FROM inputs").to_arrow_table()}
        joined = "SELECT count(*) FROM inputs JOIN own ON item = place"
        assert db.sql(joined, tables=table).fetchall() == [(12,)]


def test_targets_and_duplicates_share_a_number(tmp_path):
    data = [X[0], X[1], X[0], X[2]]
    with extract(tmp_path / "s.nrm", data, target=[0, 1], batch_size=3) as db:
        assert rows(db, "item, target", "ALL") == [(i, t) for i in (0, 1, 3) for t in (0, 1)]
        assert values(db) == {0: 0, 1: 1, 3: 2}
    with extract(tmp_path / "s.nrm", list(reversed(data)), target=2) as db:  # keeps its own
        assert rows(db, "item", "item") == [(i,) for i in (0, 0, 0, 1, 1, 1, 3, 3, 3)]
        assert values(db) == {0: 0, 1: 1, 3: 2}


@pytest.mark.parametrize(
    ("kind", "before"),
    [("list", [0, 1, 2]), ("list", [4, 5]), ("stream", [11]), ("keys", [1, 7])],
    ids=str,
)
def test_a_call_that_goes_on_is_numbered_as_if_it_had_never_stopped(tmp_path, kind, before):
    """Whichever shards were committed when a run was killed."""

    def given():
        if kind == "stream":
            return iter(X)
        if kind == "list":
            return list(X)
        found = [{"input": x, "key": f"k{i}"} for i, x in enumerate(X)]
        return type("Keyed", (list,), {"keys": [f"k{i}" for i in range(12)]})(found)

    path = tmp_path / "s.nrm"
    extract(path, given(), batch_size=5).close()
    held = Snapshot(path)
    gone = [e.key for e in held.entries.values() if e.item not in before]
    delete(path, gone, progress=False)
    with extract(path, given(), batch_size=5) as db:
        assert values(db) == places(12)


def test_a_data_set_that_has_grown_and_further_ones_count_on(tmp_path):
    path = tmp_path / "s.nrm"
    extract(path, X[:3]).close()
    with extract(path, X[:5]) as db:
        assert values(db) == places(5)
    with extract(path, X[8:10]) as db:
        assert values(db) == places(5) | {5: 8, 6: 9}
    with extract(path, [X[0], X[7]]) as db:  # 1 is another's: it counts on from there
        assert values(db) == places(5) | {5: 8, 6: 9, 8: 7}
    with extract(path, [X[10], X[0]]) as db:  # 0 cannot be at the place 1
        assert values(db)[9] == 10
    with extract(path, X[:8]) as db:  # all are there, but 5 and 6, whose numbers are taken
        assert {n: i for n, i in values(db).items() if i in (5, 6)} == {15: 5, 16: 6}


def test_failures_keep_their_places(tmp_path):
    path = tmp_path / "s.nrm"
    with extract(path, Broken(5, 0, 3), on_error="skip") as db:
        assert values(db) == {1: 1, 2: 2, 4: 4}
    with extract(path, Broken(5, 3), on_error="skip") as db:
        assert values(db) == {0: 0, 1: 1, 2: 2, 4: 4}
    with extract(path, Broken(6), on_error="skip", batch_size=1) as db:
        assert values(db) == places(6)


def test_reading_ahead_is_bounded(tmp_path, monkeypatch):
    held = {"k3": 3, "k9": 9}

    def read(entries, keys=None):
        found = iter(entries)
        ahead, start = first_item(held, found, keys, lambda item, name: item)
        return len(ahead), start, len(list(found))

    def sample(n):
        return f"item {n}", Sample(f"k{n}", "c", (X[0].numpy(),))

    assert first_item({}, iter([sample(0)]), None, None) == ([], 0)
    entries = [sample(n) for n in range(6)]
    assert read(entries) == (4, 0, 2)
    assert read([sample(9)]) == (1, 9, 0)
    assert read([sample(20), sample(9)]) == (2, 8, 0)
    assert read([sample(20)] * 5 + [sample(3)]) == (6, 10, 0)  # 3 cannot be at the place 5
    assert read([sample(20)], keys=["k20", "k9"]) == (0, 8, 1)
    assert read([sample(20)], keys=["k20"]) == (0, 10, 1)
    monkeypatch.setattr(item_numbers, "AHEAD", 2)
    assert read(entries) == (2, 10, 4)
    monkeypatch.setattr(item_numbers, "AHEAD", 100)
    monkeypatch.setattr(item_numbers, "AHEAD_BYTES", 3 * 32)
    assert read(entries) == (3, 10, 3)


def test_numbers_that_are_taken():
    found = Numbering(0, {"a": 0, "b": 2, "c": 5})
    assert [found.item(k, n) for n, k in enumerate("axcyzb")] == [0, 1, 5, 3, 4, 2]
    assert [found.item(k, n) for n, k in enumerate("xy", 5)] == [11, 12]
    assert found.item("b", 99) == 2


def test_several_writer_threads_and_compaction_keep_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "_writers", lambda: 3)
    path = tmp_path / "s.nrm"
    with extract(path, X, batch_size=2) as db:
        assert values(db) == places(12)
    extract(path, X[:1], target=2).close()
    before = tiny_stores.all_rows(ng.open(path))
    compact(path, progress=False)
    with ng.open(path) as db:
        assert tiny_stores.all_rows(db) == before
        assert values(db) == places(12)
        report = db.verify(sample=1)
        assert report.sound, report.findings
        assert not [n for n in report.notes if "replaced" not in n.problem]


# --- reserved names, and stores of before -----------------------------------------------------

OWN = "item, weights, flags, kept, thresholds"


@pytest.mark.parametrize("name", ["item", "Item", "WEIGHTS", "flags", "kept", "thresholds"])
def test_the_names_are_reserved_in_new_stores(tmp_path, name):
    with pytest.raises(ng.InputError, match=rf"{name}' cannot be used: .*{OWN} are"):
        extract(tmp_path / "s.nrm", [{"input": X[0], name: 3}])


def test_the_store_of_format_1_answers_with_nulls():
    with ng.open(FORMAT1) as db:
        found = db.sql("SELECT * FROM inputs ORDER BY key, target").to_arrow_table()
        assert found.column_names[:10] == [
            *("input_id", "key", "label", "target", "predicted", "logit"),
            *("item", "weights", "flags", "kept"),
        ]
        for name in ("item", "weights", "flags", "kept"):
            assert found[name].null_count == 4
        assert db.verify().sound


def test_old_stores_count_from_places(tmp_path, monkeypatch):
    path = tmp_path / "s.nrm"
    with monkeypatch.context() as before:
        before.setattr(Numbering, "item", lambda self, key, place: None)
        with extract(path, X[:3]) as db:
            assert rows(db) == [(None, None)] * 3
    with extract(path, X[:5]) as db:
        assert rows(db, "item") == [(3,), (4,), (None,), (None,), (None,)]
    with extract(path, X[8:9]) as db:
        assert rows(db, "max(item), count(*)", "ALL") == [(5, 6)]


def old(path, *records):
    """A store of before: a user's field bears the name of a column."""
    tiny_stores.make(path)
    with Writer(path) as writer:
        writer._foreign = frozenset(("item", "weights", "flags"))  # so that the names are free
        for item in records:
            writer.add(item)
    return path


def test_a_field_of_that_name_wins_in_old_stores(tmp_path):
    metadata = {"item": "left", "weights": 3, "flags": ["red"]}
    path = old(tmp_path / "s.nrm", tiny_stores.record(0, metadata=metadata))
    (file,) = (path / "shards").glob("*.json")
    assert "item" not in json.loads(file.read_text())["inputs"][0]
    more = tiny_stores.record(
        1, metadata={"item": "right", "weights": 4}, item=7, flags=("absorbed",)
    )
    weighted = tiny_stores.record(2)
    weighted = replace(weighted, target=None, weights='{"0":1.0}')
    with Writer(path) as writer:
        assert writer.items == {}
        writer.add(more)
        with pytest.raises(ng.StoreError, match="has a metadata field 'weights' from before"):
            writer.add(weighted)
    for _ in range(2):
        with ng.open(path) as db:
            told = rows(db, "item, weights, flags", "key")
            assert told == [("left", 3, ["red"]), ("right", 4, None)]
            assert db._snapshot.foreign == {"item", "weights", "flags"}
            # Rows made by hand conserve nothing.
            told = [f for f in db.verify(sample=0).findings if f.layer is None]
            assert not [f for f in told if "replaced" not in f.problem]
            assert db.circuit(top=3).graph["target"] == 0
        compact(path, progress=False)
    with Writer(path) as writer:
        writer.add(tiny_stores.record(3, metadata={"Other": 1}, item=9))
    with ng.open(path) as db:
        assert rows(db, "item", "key") == [("left",), ("right",), (None,)]


def test_items_that_are_no_counts_are_refused(tmp_path):
    path = tiny_stores.make(tmp_path / "s.nrm")
    with Writer(path) as writer:
        for item in (-1, True, 1.5, 1 << 62):
            with pytest.raises(ng.InputError, match="its item to be a count"):
                writer.add(tiny_stores.record(0, item=item))
        writer.add(tiny_stores.record(0, item=4))
    (file,) = (path / "shards").glob("*.json")
    text = file.read_text()
    for wrong in ("-1", "true", '"4"', "1.5"):
        file.write_text(text.replace('"item": 4', f'"item": {wrong}'))
        with pytest.raises(ng.StoreError, match=r"expected inputs\[0\]\.item to be"):
            ng.open(path)
    file.write_text(text.replace('"item": 4', '"item": 5'))
    with ng.open(path) as db:
        errors = [f.problem for f in db.verify(sample=0).errors]
    assert "item is 4, the manifest says 5" in errors


def test_conditions_have_no_items(tmp_path):
    with extract(tmp_path / "s.nrm", X[:3]) as db:
        db.materialize(ng.Layer("0")[0], name="b", progress=False)
        columns = db.sql("SELECT * FROM b_inputs").columns
        assert "item" not in columns
        assert db.verify().sound
        assert torch.equal(X[0], torch.from_numpy(db._snapshot.tensors(db._matching(
            rows(db, "key")[0][0])[0])[""].copy()))  # fmt: skip
