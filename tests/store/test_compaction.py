"""Compaction: the same rows in fewer files."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.compacted import ages, files, rows, shards, twice
from helpers.tiny_stores import checksums, make, record, tables, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nrm_graph as ng
from nrm_graph.store.format.schema import content_hash, content_of
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.write import compaction, rewrite
from nrm_graph.store.write.compaction import compact
from nrm_graph.store.write.deletion import delete
from nrm_graph.store.write.writer import Writer


def test_small_shards_become_one_of_the_same_rows(path):
    for number in range(5):
        write(path, [record(number, t, metadata={"n": number}) for t in range(2)])
    with Writer(path) as writer:
        writer.fail("input9", "cannot be read")
    before, sums = rows(path), checksums(path)
    found = compact(path, progress=False)
    assert rows(path) == before
    assert len(shards(path)) == 1
    assert (found.shards_before, found.shards_after, found.merged, found.made) == (6, 1, 6, 1)
    assert found.deleted_files == 0
    assert found.waiting_files == 5 * 4
    assert {n: s for n, s in checksums(path).items() if n in sums} == sums
    assert "6 shards" in str(found)
    assert "became 1" in str(found)
    again = compact(path, progress=False)
    assert (again.merged, again.made, again.shards_after) == (0, 0, 1)
    assert "1 shard (" in str(again)
    assert "left as they are" in str(again)
    ages(path, 2 * compaction.DAY)
    last = compact(path, progress=False)
    assert last.deleted_files == 5 * 4
    assert last.waiting_files == 0
    assert "deleted 20 files" in str(last)
    assert len(files(path)) == 5
    assert rows(path) == before


@pytest.mark.smoke
def test_the_layout_is_that_of_the_writer(path, tmp_path):
    """Row groups of one input each, in order, encoded and hashed alike."""
    records = [record(n, edges=tables(n, 1 + 4 * n)[1], metadata={"n": n}) for n in range(6)]
    for item in records:
        write(path, [item])
    alone = write(make(tmp_path / "alone.nrm"), records)
    compact(path, progress=False)
    (found,) = Snapshot(path).manifests.values()
    (wanted,) = Snapshot(alone).manifests.values()
    assert found.inputs == wanted.inputs
    for table, info in found.files.items():
        assert (info.sha256, info.size) == (wanted.files[table].sha256, wanted.files[table].size)
    with pq.ParquetFile(path / "shards" / found.files["edges"].name) as file:
        assert file.num_row_groups == 6
        for group in range(6):
            bounds = file.metadata.row_group(group).column(0).statistics
            assert bounds.min == bounds.max == found.inputs[group].input_id


def test_limits_of_a_merged_shard(path):
    for number in range(7):
        write(path, [record(number)])
    before = rows(path)
    compact(path, shard_inputs=3, progress=False)
    counts = [len(m.inputs) for m in Snapshot(path).manifests.values()]
    assert sorted(counts) == [1, 3, 3]
    assert rows(path) == before
    size = max(sum(i.size for i in m.files.values()) for m in Snapshot(path).manifests.values())
    compact(path, shard_bytes=size, progress=False)  # those of three are more than half of it
    counts = [len(m.inputs) for m in Snapshot(path).manifests.values()]
    assert sorted(counts) == [1, 3, 3]
    assert rows(path) == before


def test_row_groups_and_manifests_are_bounded(path, monkeypatch):
    monkeypatch.setattr(compaction, "GROUPS_PER_FILE", 4)
    for number in range(9):
        write(path, [record(number)])
    compact(path, shard_inputs=100, progress=False)
    assert sorted(len(m.inputs) for m in Snapshot(path).manifests.values()) == [1, 4, 4]
    monkeypatch.undo()
    sizes = [(path / "shards" / f"{name}.json").stat().st_size for name in shards(path)]
    monkeypatch.setattr(compaction, "MAX_MANIFEST_BYTES", 2 * max(sizes))
    compact(path, progress=False)
    assert len(shards(path)) == 3


def test_inputs_of_several_row_groups(path, monkeypatch):
    for module in ("write.shard", "format.schema"):
        monkeypatch.setattr(f"nrm_graph.store.{module}.ROWS_PER_GROUP", 4)
    for number in range(3):
        write(path, [record(number, edges=tables(number, 11)[1])])
    before = rows(path)
    compact(path, progress=False)
    (found,) = Snapshot(path).manifests.values()
    assert [e.edges for e in found.inputs] == [(0, 3), (3, 3), (6, 3)]
    assert [e.nodes for e in found.inputs] == [(0, 2), (2, 2), (4, 2)]
    assert rows(path) == before


def test_of_pairs_that_two_shards_hold_the_winner_is_kept(path):
    twice(path, record(0), record(0, 1), record(1))
    assert len(shards(path)) == 2
    before = rows(path)
    compact(path, progress=False)
    (found,) = Snapshot(path).manifests.values()
    assert len(found.inputs) == 3
    assert rows(path) == before


def test_a_pair_that_lost_goes_from_a_large_shard_too(path):
    with Writer(path) as first, Writer(path) as second:
        first.add(record(0))
        first.flush()
        for number in range(4):
            second.add(record(number))
    before = rows(path)
    compact(path, shard_inputs=4, progress=False)
    assert [len(m.inputs) for m in Snapshot(path).manifests.values()] == [4]
    assert rows(path) == before


def test_a_merged_shard_takes_the_place_of_its_last(path):
    """A writer that commits a pair meanwhile does not win over the one that was there."""
    write(path, [record(0)])
    with Writer(path) as late:
        late.add(record(0, 1, logit=5.0))
        write(path, [record(0, 1)])
        before = rows(path)
        found = rewrite.shards_of(path)
        names = shards(path)
        late.flush()
        assert rows(path) == before
        rewrite.rewritten(found, names, found.replaced_with(names), lambda _: None)
    assert len(shards(path)) == 2
    assert rows(path) == before


@pytest.mark.smoke
def test_failures_that_count_are_carried(path):
    with Writer(path) as writer:
        writer.fail("input0", "first")
        writer.fail("input1", "second")
        writer.fail("gone", "third")
    write(path, [record(1)])
    with Writer(path) as writer:
        writer.fail("input1", "another target failed")
    write(path, [record(2)])
    write(path, [record(0)])
    before = rows(path)
    assert before[0]["failures"] == [("gone", "third"), ("input1", "another target failed")]
    compact(path, progress=False)
    assert len(shards(path)) == 1
    assert rows(path) == before


def test_a_failure_in_a_shard_that_stays_is_not_passed_by(path):
    """Its key moves behind it, together with others: it still counts."""
    write(path, [record(0)])
    with Writer(path) as writer:
        for number in range(5, 9):
            writer.add(record(number))
        writer.fail("input0", "another target failed")
    write(path, [record(1)])
    before = rows(path)
    compact(path, shard_inputs=5, progress=False)
    assert sorted(len(m.inputs) for m in Snapshot(path).manifests.values()) == [2, 4]
    assert rows(path) == before
    compact(path, progress=False)
    assert rows(path) == before


@pytest.mark.parametrize("job", ["compact", "delete"])
def test_a_failure_that_a_lost_pair_outdates_stays_outdated(path, job):
    """The pair goes, the shard with the failure would stay: both are replaced at one moment."""
    with Writer(path) as one, Writer(path) as other:
        for number in range(2):
            one.add(record(number))
        one.fail("input0", "another target failed")
        one.flush()
        other.add(record(0))
        other.add(record(3))
    before = rows(path)
    assert before[0]["failures"] == []
    if job == "compact":
        compact(path, shard_inputs=2, progress=False)
        assert rows(path) == before
    else:
        delete(path, "input3", progress=False)
        assert rows(path)[0]["failures"] == []
        assert sorted(Snapshot(path).by_key) == ["input0", "input1"]
    assert [m.failures for m in Snapshot(path).manifests.values() if m.failures] == []


def test_a_shard_of_nothing_is_merged_away(path):
    with Writer(path) as writer:
        writer.fail("input0", "x")
    write(path, [record(0)])
    delete(path, "input0", progress=False)
    assert len(shards(path)) >= 1
    write(path, [record(1)])
    before = rows(path)
    compact(path, progress=False)
    assert [len(m.inputs) for m in Snapshot(path).manifests.values()] == [1]
    assert rows(path) == before


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"x": 1}, {"x": 1.5}),  # readers read both as float
        ({"x": 1}, {"X": 1}),
        ({"x": True}, {"x": "text"}),
        ({"x": 2**60}, {"x": 0.5}),
    ],
)
def test_metadata_of_other_types_is_never_converted(path, first, second):
    with Writer(path) as one, Writer(path) as other:  # both meet the field at once
        one.add(record(0, metadata=first))
        other.add(record(1, metadata=second))
    write(path, [record(2)])  # without the field
    before = rows(path)
    compact(path, progress=False)
    assert len(shards(path)) == 2
    assert rows(path) == before


def test_metadata_of_one_type_and_none(path):
    values = [
        {"a": None, "b": ["x", "y"]},
        {"a": 2, "c": "t"},
        {},
        {"b": None, "d": True, "e": 0.1},
    ]
    for number, metadata in enumerate(values):
        write(path, [record(number, metadata=metadata, label=None if number else "l")])
    before = rows(path)[0]
    compact(path, progress=False)
    assert len(shards(path)) == 1
    assert rows(path)[0] == before


def test_keys_of_two_contents_stay_apart(path):
    """One key has one tensor in a shard; what broke that rule stays as it is."""
    with Writer(path) as one, Writer(path) as other:
        one.add(record(0, 0))
        x = np.ones(3, np.float32)
        other.add(record(0, 1, tensor=x, content=content_hash(x)))
    write(path, [record(1)])
    before = rows(path)
    compact(path, progress=False)
    assert len(shards(path)) == 2
    assert rows(path) == before


def test_tensors_once_per_key_and_omitted_ones(path):
    write(path, [record(0, 0)])
    write(path, [record(0, 1), record(1, tensor=False)])
    compact(path, progress=False)
    snapshot = Snapshot(path)
    held = {}
    for name in snapshot.manifests:
        with pq.ParquetFile(snapshot.path(name, "tensors")) as file:
            for row in file.read().to_pylist():
                held.setdefault(row["key"], []).append(row.get("name", ""))
    assert held == {"input0": [""]}
    assert len(shards(path)) == 1


def test_tensors_with_names(path):
    def named(number):
        arrays = {"b": np.full(2, number), "a": np.full((2, 2), 0.5 * number)}
        return record(number, tensor=arrays, content=content_of(arrays))

    for number in range(2):
        write(path, [named(number)])
    compact(path, progress=False)
    snapshot = Snapshot(path)
    for number, (identity,) in enumerate(snapshot.by_key.values()):
        found = snapshot.tensors(identity)
        assert list(found) == ["b", "a"]
        assert np.array_equal(found["b"], np.full(2, number))
    write(path, [record(2)])
    with pytest.raises(ng.StoreError, match="some have names and some have none"):
        compact(path, progress=False)
    assert not list((path / "shards").glob("*.tmp"))


WORDS = st.sampled_from(["a", "b", "c", "d"])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), WORDS, st.integers(0, 1)),
        st.tuples(st.just("other"), WORDS, st.integers(0, 1)),
        st.tuples(st.just("fail"), WORDS, st.integers(0, 9)),
        st.tuples(st.just("commit")),
        st.tuples(st.just("compact"), st.integers(1, 6), st.sampled_from([0.0, 3600.0])),
        st.tuples(st.just("delete"), WORDS),
    ),
    max_size=20,
)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=ACTIONS)
def test_any_history_answers_as_without_compaction(tmp_path_factory, actions):
    """Two writers, failures, deletions: no compaction changes an answer."""
    path = make(tmp_path_factory.mktemp("h") / "s.nrm")
    writers = [Writer(path), Writer(path)]
    try:
        for what, *rest in actions:
            if what in ("add", "other"):
                key, target = rest
                writers[what == "other"].add(record(ord(key), target, key=key))
            elif what == "fail":
                writers[0].fail(rest[0], str(rest[1]))
            elif what == "commit":
                for writer in writers:
                    writer.flush()
            elif what == "compact":
                before = rows(path)
                compact(path, shard_inputs=rest[0], older_than=rest[1], progress=False)
                assert rows(path) == before
            elif what == "delete":
                for writer in writers:
                    writer.close()
                before = rows(path)
                known = {e.key for e in Snapshot(path).entries.values()}
                known |= {key for key, _ in before[0]["failures"]}
                if rest[0] in known:
                    delete(path, rest, progress=False)
                    after = rows(path)
                    gone = {i for i, e in before[1].items() if e[0]["key"] == rest[0]}
                    assert after[1] == {i: e for i, e in before[1].items() if i not in gone}
                    for table in ("inputs", "nodes", "edges"):
                        kept = [row for row in before[0][table] if row[0] not in gone]
                        assert after[0][table] == kept
                    kept = [row for row in before[0]["failures"] if row[0] != rest[0]]
                    assert after[0]["failures"] == kept
                else:
                    with pytest.raises(ng.InputError, match="there is no input"):
                        delete(path, rest, progress=False)
                writers = [Writer(path), Writer(path)]
    finally:
        for writer in writers:
            writer.close()
    before = rows(path)
    compact(path, older_than=0, progress=False)
    assert rows(path) == before
    assert len(Snapshot(path).manifests) <= 1


@pytest.mark.parametrize("table", ["inputs", "nodes", "edges", "tensors"])
def test_damage_is_not_copied(path, table):
    for number in range(3):
        write(path, [record(number)])
    name = shards(path)[1]
    file = path / "shards" / f"{name}.{table}.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    before = files(path)
    with pytest.raises(ng.StoreError, match=f"{name}.*is damaged"):
        compact(path, progress=False)
    assert files(path) == before


def test_bad_arguments(path, tmp_path):
    for options in (
        {"shard_inputs": 0},
        {"shard_inputs": True},
        {"shard_bytes": 1.5},
        {"older_than": -1},
        {"older_than": float("nan")},
        {"older_than": "day"},
    ):
        with pytest.raises(ng.InputError, match=next(iter(options))):
            compact(path, progress=False, **options)
    for keys in ([], 5, [5], None):
        with pytest.raises(ng.InputError, match="expected keys to delete"):
            delete(path, keys, progress=False)
    for job in (compact, lambda p: delete(p, "x")):
        with pytest.raises(ng.StoreError):
            job(tmp_path / "none.nrm")
    (path / "shards").rmdir()
    with pytest.raises(ng.StoreError, match="cannot lock"):
        compact(path, progress=False)
