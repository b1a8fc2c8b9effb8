"""Deletion of keys: from a store and its conditions, and extraction anew."""

from functools import partial

import numpy as np
import pytest
from helpers import interrupted
from helpers.compacted import FACTS, ages, condition_of, files, named, rows, shards, twice
from helpers.tiny_stores import all_rows, record, write

import nrm_graph as ng
from nrm_graph.extraction import extract
from nrm_graph.store.format.schema import content_hash
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.verify import verify
from nrm_graph.store.write import compaction
from nrm_graph.store.write.compaction import compact
from nrm_graph.store.write.deletion import delete
from nrm_graph.store.write.writer import Writer


def test_deletion_and_extraction_anew(path):
    write(
        path, [record(n, t, metadata={"n": n}) for n in range(3) for t in range(2)], shard_inputs=2
    )
    with Writer(path) as writer:
        writer.fail("input1", "another target failed")
    before = rows(path)
    with ng.open(path) as old:
        found = delete(path, ["input1", "input1"], progress=False)
        assert (found.inputs, found.failures, found.conditioned, found.shards) == (2, 1, 0, 2)
        assert "deleted 2 inputs of 1 key, 1 failure;" in str(found)
        assert all_rows(old) == before[0]
    assert sorted(Snapshot(path).by_key) == ["input0", "input2"]
    assert rows(path)[0]["failures"] == []
    with pytest.raises(ng.InputError, match=r"there is no input 'input1'.*did you mean input"):
        delete(path, ["input0", "input1"], progress=False)
    with pytest.raises(ng.InputError, match=r"there is no input 'zzz'.*it holds 2 keys"):
        delete(path, "zzz", progress=False)
    assert sorted(Snapshot(path).by_key) == ["input0", "input2"]
    x = np.array([7, 8, 9], np.float32)
    again = record(1, 0, tensor=x, content=content_hash(x), metadata={"n": 1})
    write(path, [again])
    snapshot = Snapshot(path)
    (identity,) = snapshot.by_key["input1"]
    assert snapshot.tensors(identity)[""].tolist() == [7, 8, 9]
    compact(path, older_than=0, progress=False)
    snapshot = Snapshot(path)
    assert snapshot.tensors(identity)[""].tolist() == [7, 8, 9]
    assert len(snapshot.entries) == 5
    assert len(files(path)) == 5


def test_a_key_that_lost_goes_too(path):
    twice(path, record(0), record(1))
    delete(path, "input0", progress=False)
    assert list(Snapshot(path).by_key) == ["input1"]
    delete(path, "input1", progress=False)
    assert rows(path) == ({t: [] for t in ("inputs", "nodes", "edges", "failures")}, {})


def test_conditions_are_compacted_and_keys_deleted_from_them(path):
    for number in range(3):
        write(path, [record(number)])
    folder = condition_of(path)
    (folder / "condition.json.0123456789abcdef.tmp").write_bytes(b"half")

    def answers():
        with ng.open(path) as db:
            return {
                t: db.sql(f"SELECT * FROM given_{t} ORDER BY ALL").fetchall()
                for t in ("inputs", "nodes", "edges")
            }

    before = answers()
    found = compact(path, progress=False)
    assert (found.shards_before, found.shards_after) == (6, 2)
    assert answers() == before
    assert len(shards(folder)) == 1
    deletion = delete(path, "input1", progress=False)
    assert (deletion.inputs, deletion.conditioned) == (1, 1)
    after = answers()
    kept = set(Snapshot(path).entries)
    assert after == {t: [r for r in rows_ if r[0] in kept] for t, rows_ in before.items()}
    assert len(after["inputs"]) == 2
    ages(path, 2 * compaction.DAY)
    compact(path, progress=False)
    assert files(folder) == named(folder)
    assert not list(folder.glob("*.tmp"))
    # A key that a condition alone holds, as a materialization at work may leave it, goes as well.
    write(folder, [record(7, tensor=False, metadata=FACTS)])
    assert delete(path, "input7", progress=False).conditioned == 1
    assert answers() == after


def test_a_materialization_that_a_deletion_overtook(path):
    """What it commits of a key whose content is another one since is not seen, and goes."""
    write(path, [record(0), record(1)])
    folder = condition_of(path, numbers=())
    with Writer(folder) as writer:
        for number in range(2):
            writer.add(record(number, tensor=False, metadata=FACTS))
        delete(path, "input0", progress=False)
    with ng.open(path) as db:
        (kept,) = db._snapshot.entries
        assert db.sql("SELECT input_id FROM given_inputs").fetchall() == [(kept,)]
    x = np.full(3, 9, np.float32)
    write(path, [record(0, content=content_hash(x), tensor=x)])
    for done in (False, True):
        with ng.open(path) as db:
            assert len(db) == 2
            for table, number in (("inputs", 1), ("nodes", 5), ("edges", 5)):
                found = db.sql(f"SELECT input_id FROM given_{table}").fetchall()
                assert found == number * [(kept,)]
            everything = db.sql("SELECT * FROM given_edges", inputs=["input0"]).fetchall()
            assert everything == []
        problems = [f.problem for f in verify(path, sample=0).findings]
        assert done != any("the store holds another content of this key" in p for p in problems)
        with Writer(folder) as writer:
            assert (writer.content("input0") is None) == done
        compact(path, progress=False)
    assert list(Snapshot(folder).by_key) == ["input1"]


def test_a_real_store_stays_sound(tmp_path, monkeypatch):
    """Verified with its programs and conditions, measured, and continued."""
    path = tmp_path / "s.nrm"
    monkeypatch.setattr(extract, "Writer", partial(Writer, shard_inputs=2))
    with interrupted.extract(path, 5, 2) as db:
        db.materialize(ng.Layer("0")[1], name="given", progress=False)
        before = all_rows(db)
        value = db.measure("k1", 1)(ng.Layer("0")[1])
    compact(path, progress=False)
    report = verify(path, sample=1)
    assert report.sound, report.findings
    assert [n.problem.split(",")[0][2:] for n in report.notes] == ["shards were replaced"]
    with ng.open(path) as db:
        assert all_rows(db) == before
        assert db.measure("k1", 1)(ng.Layer("0")[1]) == value
    delete(path, "k1", progress=False)
    assert verify(path, sample=1).sound
    with interrupted.extract(path, 5, 5) as db:
        db.materialize(ng.Layer("0")[1], name="given", progress=False)
        assert len(db) == len(before["inputs"])
        assert [row[:4] for row in all_rows(db)["inputs"]] == [r[:4] for r in before["inputs"]]
    compact(path, older_than=0, progress=False)
    report = verify(path, sample=1)
    assert report.sound
    assert not report.notes
