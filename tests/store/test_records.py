"""What a writer makes of records: rows in order, types, metadata, failures, and what it refuses."""

import json
import time

import numpy as np
import pyarrow as pa
import pytest
from helpers.tiny_stores import (
    all_rows,
    make,
    manifest_of,
    record,
    tables,
    write,
)
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

import nrm_graph as ng
from nrm_graph.store.format import metadata
from nrm_graph.store.format.schema import EDGES, NODES, content_hash, input_id
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.write.writer import Writer


def replaced(table, column, row, value):
    values = table[column].to_pylist()
    values[row] = value
    at = table.column_names.index(column)
    return table.set_column(at, table.schema.field(column), pa.array(values, table[column].type))


NODE_TABLE, EDGE_TABLE = tables()


@pytest.mark.smoke
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("table", "column", "layer"),
    [
        ("nodes", "relevance", 1),
        ("nodes", "activation", 1),
        ("edges", "relevance", 1),
        ("edges", "conditional", 1),
    ],
)
def test_what_is_not_finite_is_refused_with_input_and_layer(path, table, column, layer, bad):
    whole = {"nodes": NODE_TABLE, "edges": EDGE_TABLE}[table]
    with Writer(path) as writer:
        with pytest.raises(
            ng.InputError, match=f"'input0': {column} of its {table}.*layer {layer}"
        ):
            writer.add(record(0, **{table: replaced(whole, column, 3, bad)}))
        assert writer.add(record(0))  # the writer goes on
    assert len(ng.open(path)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logit": float("nan")}, "its logit is nan"),
        ({"logit": 1e39}, "its logit is 1e\\+39"),
        ({"metadata": {"score": float("inf")}}, "'input0': the metadata 'score' is inf"),
        ({"metadata": {"score": np.float32("nan")}}, "'score' is nan"),
        ({"metadata": {"when": object()}}, "'when' is a object"),
        ({"metadata": {"many": [1]}}, "'many' is a list"),
        ({"metadata": {"big": 1 << 63}}, "at most 64 bits"),
        ({"metadata": {"text": "\ud800"}}, "valid Unicode"),
        ({"metadata": {"Input_ID": 1}}, "reserved, letter case ignored"),
        ({"metadata": {"logit": 1}}, "reserved"),
        ({"metadata": {"": 1}}, "cannot be used"),
        ({"metadata": {"a\nb": 1}}, "printable"),
        ({"metadata": {"a" * 201: 1}}, "1 to 200 characters"),
        ({"metadata": {5: 1}}, "must be text"),
        ({"metadata": {"a": 1, "A": 2}}, "differ in letter case"),
        ({"metadata": {f"f{i}": i for i in range(1001)}}, "at most 1000 metadata fields"),
        ({"key": ""}, "expected a key"),
        ({"key": "\ud800"}, "expected a key"),
        ({"key": "k" * 5000}, "expected a key"),
        ({"target": 1 << 31}, "expected target"),
        ({"target": True}, "expected target"),
        ({"predicted": 1.0}, "expected predicted"),
        ({"label": 5}, "expected a label"),
        ({"content": "abc"}, "expected content"),
        ({"tensor": np.array(["a"])}, "cannot be stored"),
        ({"nodes": NODE_TABLE.drop_columns(["unit"])}, "lack the columns unit"),
        ({"nodes": replaced(NODE_TABLE, "relevance", 0, None)}, "its nodes .*null"),
        (
            {"edges": EDGE_TABLE.set_column(3, "src_unit", pa.array([1 << 40] * 5))},
            "do not fit the store's types",
        ),
        (
            {"nodes": NODE_TABLE.set_column(2, "relevance", pa.array([1e300] * 5))},
            "relevance of its nodes is inf",
        ),
    ],
)
def test_records_that_cannot_be_stored_are_refused(path, changes, message):
    with Writer(path) as writer, pytest.raises(ng.InputError, match=message):
        writer.add(record(0, **changes))
    assert not list((path / "shards").iterdir())


@pytest.mark.smoke
def test_rows_are_sorted_and_duplicates_refused(path):
    shuffled = EDGE_TABLE.take(pa.array([3, 0, 4, 1, 2]))
    write(path, [record(0, edges=shuffled, nodes=NODE_TABLE.take(pa.array([4, 3, 2, 1, 0])))])
    snapshot = Snapshot(path)
    (identity,) = snapshot.entries
    assert (
        snapshot.rows(identity, "edges")
        .drop_columns("input_id")
        .equals(EDGE_TABLE.cast(EDGES.remove(0)))
    )
    assert (
        snapshot.rows(identity, "nodes")
        .drop_columns("input_id")
        .equals(NODE_TABLE.cast(NODES.remove(0)))
    )
    twice = pa.concat_tables([EDGE_TABLE, EDGE_TABLE.slice(2, 1)])
    with pytest.raises(ng.InputError, match=r"'input1': its edges hold .*'src_unit': 2} twice"):
        write(path, [record(1, edges=twice)])
    assert len(ng.open(path)) == 1
    assert not list((path / "shards").glob("*.tmp"))


def test_large_inputs_take_several_row_groups(path, monkeypatch):
    monkeypatch.setattr("nrm_graph.store.write.shard.ROWS_PER_GROUP", 100)
    big = [record(i, edges=tables(i, 250 + i)[1]) for i in range(3)]
    write(path, big)
    snapshot = Snapshot(path)
    assert [e.edges for e in snapshot.entries.values()] == [(0, 3), (3, 3), (6, 3)]
    for item in big:
        rows = snapshot.rows(input_id(item.key, 0), "edges")
        assert rows.drop_columns("input_id").equals(item.edges.cast(EDGES.remove(0)))
    with ng.open(path) as db:
        for item in big:
            found = db.sql("SELECT count(*) FROM edges", inputs=[item.key]).fetchall()
            assert found == [(len(item.edges),)]


def test_inputs_without_rows(path):
    write(path, [record(0, edges=EDGE_TABLE.slice(0, 0)), record(1, nodes=NODE_TABLE.slice(0, 0))])
    snapshot = Snapshot(path)
    assert len(snapshot.rows(input_id("input0", 0), "edges")) == 0
    assert len(snapshot.rows(input_id("input1", 0), "nodes")) == 0
    assert len(snapshot.rows(input_id("input1", 0), "edges")) == 5


def test_tensors_may_be_left_out(path):
    write(path, [record(0, tensor=False), record(1)])
    snapshot = Snapshot(path)
    with pytest.raises(ng.InputError, match=r"no tensor of 'input0'.*input="):
        snapshot.tensors(input_id("input0", 0))[""]
    assert snapshot.tensors(input_id("input1", 0))[""].tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["float16", "float64", "int8", "uint64", "bool", ">f4"])
def test_tensors_of_all_types_come_back(path, kind):
    x = np.arange(6).reshape(2, 3).astype(kind).T
    write(path, [record(0, tensor=x, content=content_hash(x))])
    found = Snapshot(path).tensors(input_id("input0", 0))[""]
    assert found.dtype == np.dtype(kind).newbyteorder("=")
    np.testing.assert_array_equal(found, x)


@pytest.mark.smoke
def test_metadata_types_are_fixed_at_first_sight(path):
    write(path, [record(0, metadata={"n": 1, "s": "a", "b": True, "f": 0.5, "later": None})])
    with Writer(path) as writer:
        for number, wrong in enumerate(({"n": "x"}, {"s": 1}, {"b": 1}, {"n": True}, {"f": "x"})):
            with pytest.raises(ng.InputError, match=r"is of type .* in this store, found"):
                writer.add(record(number + 1, metadata=wrong))
        with pytest.raises(ng.InputError, match="'n' and 'N' differ in letter case"):
            writer.add(record(1, metadata={"N": 1}))
        with pytest.raises(ng.InputError, match="cannot hold"):
            writer.add(record(1, metadata={"f": (1 << 53) + 1}))
        writer.add(record(1, metadata={"f": 3, "later": "now"}))  # an int fits a float field
        writer.add(record(2, metadata={"n": 2.5}))  # int widens to float
        with pytest.raises(ng.InputError, match="'later' is of type string"):
            writer.add(record(3, metadata={"later": 1}))
    with ng.open(path) as db:
        rows = db.sql("SELECT n, f, later FROM inputs ORDER BY key")
        assert [str(t) for t in rows.types] == ["DOUBLE", "DOUBLE", "VARCHAR"]
        assert rows.fetchall() == [(1.0, 0.5, None), (None, 3.0, "now"), (2.5, None, None)]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
NAMES = st.text(min_size=1, max_size=10).filter(lambda name: metadata.name_problem(name) is None)


@given(
    fields=st.dictionaries(NAMES, VALUES, max_size=6),
    key=st.text(min_size=1, max_size=20),
    target=st.integers(-(1 << 31), (1 << 31) - 1),
    label=st.none() | st.text(max_size=5),
    logit=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
@profile(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_record_comes_back(tmp_path_factory, fields, key, target, label, logit):
    folded = {name.casefold() for name in fields}
    path = make(tmp_path_factory.mktemp("p") / "s.nrm")
    item = record(0, target, metadata=fields, key=key, label=label, logit=logit)
    if len(folded) < len(fields):
        with pytest.raises(ng.InputError, match="letter case"):
            write(path, [item])
        return
    write(path, [item])
    with ng.open(path) as db:
        found = db.sql("SELECT * FROM inputs").to_arrow_table().to_pylist()
        assert found == [
            {
                "input_id": input_id(key, target),
                "key": key,
                "label": label,
                "target": target,
                "predicted": target,
                "logit": logit,
                "item": None,
                "weights": None,
                "flags": None,
                "kept": None,
                **fields,
            }
        ]
        snapshot = Snapshot(path)
        assert snapshot.facts(input_id(key, target)) == {
            name: value for name, value in found[0].items() if value is not None or name == "label"
        }
        assert snapshot.tensors(input_id(key, target))[""].tolist() == [0, 0, 0]


@given(st.lists(st.tuples(st.integers(0, 3), VALUES), max_size=12))
@profile(max_examples=200, deadline=None)
def test_a_field_has_one_type_whatever_comes(rows):
    fields = metadata.Fields()
    accepted = []
    for name, value in rows:
        try:
            accepted.append(fields.accept({f"f{name}": value}))
        except ng.InputError:
            continue
    types, columns = metadata.columns(accepted)
    assert types == fields.types
    for name, array in columns.items():
        assert str(array.type) == str(metadata.ARROW_TYPES[types[name]])
        values = [row.get(name) for row in accepted]
        if types[name] == "float":  # integers from before the first float were widened
            values = [None if v is None else float(v) for v in values]
        assert array.to_pylist() == values


def test_failures(path):
    with Writer(path) as writer:
        writer.fail("a", "too large")
        writer.fail("b", "first")
        writer.fail("b", "second \ud800")
        writer.fail("c", "x" * 5000)
        writer.add(record(0, key="c"))
    assert json.loads(manifest_of(path).read_text())["failures"][0] == {
        "key": "a",
        "error": "too large",
    }
    with ng.open(path) as db:
        assert db.sql("SELECT * FROM failures ORDER BY key").fetchall() == [
            ("a", "too large"),
            ("b", "second \\ud800"),
        ]
    with Writer(path) as writer:
        writer.fail("d", "a shard of failures alone")
        with pytest.raises(ng.InputError, match="expected a key"):
            writer.fail("", "x")
    with Writer(path) as writer:
        writer.add(record(1, key="a"))
        writer.flush()
        writer.fail("c", "another target failed later")
    with ng.open(path) as db:
        assert [key for key, _ in all_rows(db)["failures"]] == ["b", "c", "d"]
        assert len(db) == 2


def test_opening_is_quick(tmp_path):
    """Nothing in opening grows worse than the number of inputs."""
    path = make(tmp_path / "s.nrm")
    write(path, [record(i, tensor=False) for i in range(300)], shard_inputs=10)
    began = time.perf_counter()
    db = ng.open(path)
    assert len(db) == 300
    assert time.perf_counter() - began < 5
