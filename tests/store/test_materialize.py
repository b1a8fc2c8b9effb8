"""Conditioned tables of many inputs: the rows of ``m.given``, whatever interrupts on the way."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import interrupted
from helpers.materialized import CHANNEL, COUNT, PIXEL, rows

import nrm_graph as ng
from nrm_graph.store.read.sql_guard import chosen_inputs
from nrm_graph.store.verify import verify


@pytest.fixture
def path(extracted, tmp_path):
    return shutil.copytree(extracted, tmp_path / "s.nrm")


def sorted_rows(table):
    names = [c for c in table.column_names if c not in ("relevance", "activation", "conditional")]
    return table.sort_by([(name, "ascending") for name in names]).to_pylist()


@pytest.mark.parametrize(
    "event",
    [pytest.param(CHANNEL, marks=pytest.mark.slow), PIXEL, ~PIXEL & ng.Layer("input")[:, :3]],
)
def test_rows_are_those_of_the_conditioned_measures(path, event):
    with ng.open(path) as db:
        assert db.materialize(event, name="B", progress=False) is None
        listed = {row[0]: row[1:] for row in rows(db, "b")["inputs"]}
        assert set(listed) == set(db._snapshot.entries)
        for identity in db._snapshot.entries:
            m = db.measure(identity)
            relevance, bound, amplification, absorbed, status, reason = listed[identity]
            found = {
                table: db.sql(f"SELECT * FROM B_{table} WHERE input_id = {identity}")
                .to_arrow_table()
                .drop_columns(["input_id"])
                for table in ("nodes", "edges")
            }
            assert relevance == pytest.approx(m(event), rel=1e-6, abs=1e-12)
            try:
                given = m.given(event)
            except ng.UndefinedConditional as error:
                told = str(error)
                assert (bound, amplification, absorbed, status) == (None, None, None, "undefined")
                assert reason == told
                assert not len(found["nodes"])
                assert not len(found["edges"])
                continue
            assert (status, reason) == ("defined", None)
            assert amplification == given.amplification >= 1
            assert bound == np.float32(given.condition_error)
            assert absorbed == pytest.approx(given.absorbed)
            for table, expected in zip(("nodes", "edges"), given.tables(), strict=True):
                assert sorted_rows(found[table]) == sorted_rows(
                    expected.select(found[table].column_names).cast(found[table].schema)
                )
            # And the strongest node of every layer by the definition: two events and a quotient.
            for layer in db.topology.layers:
                query = (
                    f"SELECT unit, relevance FROM B_nodes WHERE input_id = {identity} "
                    f"AND layer_id = {layer.layer_id} AND unit >= 0 "
                    "ORDER BY abs(relevance) DESC LIMIT 1"
                )
                for unit, relevance in db.sql(query).fetchall():
                    single = ng.Layer(layer.name).units([unit])
                    expected = m(single & event) / m(event)
                    assert relevance == pytest.approx(expected, rel=1e-4, abs=1e-4)
        report = db.verify(sample=2)
        assert report.sound, report.findings
        assert report.conditions == 1
        (row,) = db.conditions().to_pylist()
    undefined = sum(status == "undefined" for *_, status, _ in listed.values())
    assert (undefined > 0) == (event is PIXEL)
    assert undefined < len(listed)
    mean = np.mean([relevance for relevance, *_ in listed.values()])
    assert row.pop("mean_relevance") == pytest.approx(mean)
    assert row == {
        "name": "B",
        "event": repr(event),
        "where": None,
        "inputs": len(listed),
        "undefined": undefined,
        "nodes": None,
    }


@pytest.mark.smoke
def test_tables_in_sql(path):
    with ng.open(path) as db:
        before = db.sql("SELECT count(*) FROM nodes").fetchall()
        assert db.conditions().num_rows == 0
        db.materialize(CHANNEL, name="first", where="target = 1", progress=False)
        db.materialize(PIXEL, name="second", progress=False)
        assert db.conditions()["name"].to_pylist() == ["first", "second"]
        assert db.conditions()["where"].to_pylist() == ["target = 1", None]
        assert db.sql("SELECT count(*) FROM nodes").fetchall() == before
        for name in ("first", "second"):
            for table in ("nodes", "edges"):
                kinds = [
                    dict(zip(r.columns, map(str, r.types), strict=True))
                    for r in (db.sql(f"SELECT * FROM {t}") for t in (table, f"{name}_{table}"))
                ]
                assert kinds[0] == kinds[1]
        listed = {name for (name,) in db.sql("SHOW TABLES").fetchall()}
        assert {f"first_{table}" for table in ("inputs", "nodes", "edges")} < listed
        facts = db.sql("SELECT * FROM first_inputs")
        assert facts.columns == [
            *("input_id", "relevance", "error", "amplification", "absorbed", "status", "reason")
        ]
        joined = db.sql(
            "SELECT key, target, status, sum(n.relevance) FROM inputs "
            "JOIN first_inputs USING (input_id) JOIN first_nodes n USING (input_id) "
            "JOIN layers USING (layer_id) WHERE name = '4' AND unit >= 0 GROUP BY ALL ORDER BY key"
        ).fetchall()
        assert [(key, target) for key, target, *_ in joined] == [(f"k{i}", 1) for i in range(COUNT)]
        assert [total for *_, total in joined] == pytest.approx([1] * COUNT, abs=1e-4)
        # The binding of inputs holds for these tables too, also for inputs that they lack.
        one = rows(db, "first", inputs=["k1"])
        assert len(one["inputs"]) == 1
        assert {r[0] for r in one["nodes"]} == {one["inputs"][0][0]}
        other = next(i for i, e in db._snapshot.entries.items() if e.target != 1)
        assert rows(db, "first", inputs=[other]) == {"inputs": [], "nodes": [], "edges": []}
        for query in (
            "COPY first_nodes TO 'x'",
            f"SELECT * FROM '{path}/conditions/first/condition.json'",
            "SELECT * FROM third_nodes",
        ):
            with pytest.raises(ng.QueryError):
                db.sql(query)
        with pytest.raises(ng.InputError, match="cannot name a table"):
            db.sql("SELECT 1", tables={"First_nodes": pa.table({"a": [1]})})
    with ng.open(path) as db:  # in a later process
        assert db.sql("SELECT count(*) FROM SECOND_inputs").fetchall()[0][0] == len(db)


def test_an_open_database_sees_what_another_materialized(path):
    with ng.open(path) as db, ng.open(path) as other:
        other.materialize(CHANNEL, name="B", progress=False)
        with pytest.raises(ng.QueryError, match="no table 'b_nodes'"):
            db.sql("SELECT * FROM B_nodes")
        db.refresh()
        assert db.sql("SELECT count(*) FROM B_inputs").fetchall()[0][0] == len(db)


def test_a_condition_that_is_removed_while_it_is_read(path):
    with ng.open(path) as db:
        db.materialize(CHANNEL, name="B", progress=False)
        shutil.rmtree(path / "conditions" / "b")
        with pytest.raises(ng.QueryError, match=r"^the file .+ is no longer there: open the store"):
            db.sql("SELECT sum(relevance) FROM B_nodes").fetchall()
        db.refresh()
        assert db.conditions().num_rows == 0


def test_nothing_is_chosen(path):
    with ng.open(path) as db:
        for options in (
            {"where": "key = 'nothing'"},
            {"where": "false"},
            {"where": "n > NULL"},
            {"where": "key = 'k1'", "inputs": ["k0", "k2"]},
            {"inputs": []},
        ):
            with pytest.raises(ng.InputError, match=r"^no input is chosen by .+ holds \d+"):
                db.materialize(CHANNEL, name="B", progress=False, **options)
    assert not (path / "conditions").exists()


def test_a_store_without_inputs_has_empty_conditions(path):
    ng.delete(path, [f"k{n}" for n in range(COUNT)])
    with ng.open(path) as db:
        db.materialize(CHANNEL, name="B", progress=False)
        assert rows(db, "B") == {"inputs": [], "nodes": [], "edges": []}
        (row,) = db.conditions().to_pylist()
        assert (row["inputs"], row["undefined"], row["mean_relevance"]) == (0, 0, None)
        assert db.verify(sample=1).sound


def test_a_store_that_grows_and_inputs_one_by_one(path):
    with ng.open(path) as db:
        db.materialize(CHANNEL, name="B", inputs=["k0"], progress=False)
        first = rows(db, "B")
        db.materialize(CHANNEL, name="B", inputs=["k1", *db._matching("k2")], progress=False)
        assert len({r[0] for r in rows(db, "B")["inputs"]}) == len(db._matching("k0")) * 3
        shards = {p: p.read_bytes() for p in (path / "conditions" / "b" / "shards").iterdir()}
    interrupted.extract(path, COUNT + 2, 3).close()
    with ng.open(path) as db:
        db.materialize(CHANNEL, name="B", progress=False)
        assert {r[0] for r in rows(db, "B")["inputs"]} == set(db._snapshot.entries)
        assert set(first["edges"]) <= set(rows(db, "B")["edges"])
        assert all(p.read_bytes() == data for p, data in shards.items())
        assert db.verify(sample=2).sound


def test_another_condition_of_the_name_is_refused(path):
    with ng.open(path) as db:
        db.materialize(CHANNEL, name="B", where="target = 1", progress=False)
        before = rows(db, "B")
        for event, where, message in (
            (PIXEL, "target = 1", r"another event: it has 0\[2\], asked for is 0\[2, 3, 1\]"),
            (CHANNEL, None, "another where: it has 'target = 1', asked for is None"),
        ):
            with pytest.raises(ng.StoreError, match=message):
                db.materialize(event, name="B", where=where, progress=False)
        with pytest.raises(ng.InputError, match="'b' differs in letter case alone"):
            db.materialize(CHANNEL, name="b", where="target = 1", progress=False)
        assert rows(db, "B") == before


@pytest.mark.smoke
@pytest.mark.parametrize(
    "name",
    [
        *("", "a b", "1a", "_a", "a/b", "../x", "..", ".", "a.b", "é", "a" * 61, "a\n", "a\0"),
        *("nodes", "Inputs", "layers", "edges", "flows", "FAILURES", 'a"b', "a;b", "/x", "a-b"),
        *(3, None),
    ],
)
def test_names(path, name):
    with ng.open(path) as db, pytest.raises(ng.InputError, match="cannot name a condition"):
        db.materialize(CHANNEL, name=name, progress=False)
    assert not (path / "conditions").exists()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"event": "0[1]"}, ng.EventError, "expected an event"),
        ({"event": ng.Layer("nothing")[1]}, ng.EventError, "nothing"),
        ({"event": ng.Layer("0")[99]}, ng.EventError, "does not fit"),
        ({"event": ng.Layer("0").units([10**6])}, ng.EventError, "units"),
        ({"where": "nothing = 1"}, ng.QueryError, "nothing"),
        ({"where": 3}, ng.QueryError, "as text"),
        ({"where": ""}, ng.QueryError, "one SQL condition"),
        ({"where": "key"}, ng.QueryError, "k0"),
        ({"where": "1, 2"}, ng.QueryError, "one SQL condition"),
        ({"where": "true) OR (true"}, ng.QueryError, "one SQL condition"),
        ({"where": "true) UNION (SELECT 1"}, ng.QueryError, "one SQL condition"),
        ({"where": "true) ORDER BY (key"}, ng.QueryError, "one SQL condition"),
        ({"where": "true); SELECT (1"}, ng.QueryError, "one statement"),
        ({"where": "key = ?"}, ng.QueryError, "one SQL condition"),
        ({"where": "key IN (SELECT a FROM 'x.csv')"}, ng.QueryError, "no table"),
        ({"where": "getenv('HOME') = 'x'"}, ng.QueryError, "getenv"),
        ({"inputs": ["nothing"]}, ng.InputError, "no input 'nothing'"),
        ({"inputs": [3]}, ng.InputError, "no input_id 3"),
        ({"inputs": 3}, ng.InputError, "a list of keys"),
        ({"inputs": "k0"}, ng.InputError, "a list of keys"),
        ({"device": "nothing"}, ng.InputError, "device"),
    ],
)
def test_what_is_asked_for_wrongly(path, options, kind, message):
    with ng.open(path) as db, pytest.raises(kind, match=message):
        db.materialize(**{"event": CHANNEL, "name": "B", "progress": False, **options})
    assert not (path / "conditions").exists()


def test_conditions_of_sql_choose_inputs(path):
    with ng.open(path) as db:
        for where, keys in (
            ("key = 'k1' -- the second", {"k1"}),
            ("n > 0 AND key IN (SELECT key FROM inputs WHERE n < 3)", {"k1", "k2"}),
            ("input_id IN (SELECT input_id FROM nodes WHERE relevance > 1e9)", set()),
        ):
            assert {
                key
                for (key,) in db.sql(
                    f"SELECT key FROM inputs WHERE input_id IN ({chosen_inputs(where)})"
                ).fetchall()
            } == keys


def test_a_store_without_tensors(tmp_path):
    rows_ = [{"input": torch.rand(1, 6, 6), "key": "k"}]
    path = tmp_path / "s.nrm"
    options = {"composite": "epsilon", "target": 1, "progress": False, "tensors": "omit"}
    db = ng.extract(interrupted.network(), rows_, path, **options)
    with db, pytest.raises(ng.InputError, match="with tensors='keep' to materialize"):
        db.materialize(CHANNEL, name="B", progress=False)
    assert not (path / "conditions").exists()


@pytest.mark.parametrize(
    ("resolution", "options"),
    [
        ("neuron", {"coverage": 0.6}),
        ("channel", {"top": 7}),
        ("neuron", {"mantissa_bits": 6}),
        pytest.param("channel", {"coverage": 0.6}, marks=pytest.mark.slow),
        pytest.param("neuron", {"top": 7}, marks=pytest.mark.slow),
        pytest.param("channel", {"mantissa_bits": 6}, marks=pytest.mark.slow),
    ],
)
def test_pruning_and_rounding_are_the_stores(tmp_path, options, resolution):
    """What is left out stands in pruned rows, so that totals are those of the complete tables."""
    data = interrupted.Images(2)
    with ng.extract(
        interrupted.network(),
        data,
        tmp_path / "s.nrm",
        composite="epsilon",
        target=1,
        resolution=resolution,
        progress=False,
        **options,
    ) as db:
        db.materialize(CHANNEL, name="B", progress=False)
        report = db.verify(sample=2)
        assert report.sound, report.findings
        for identity in db._snapshot.entries:
            given = db.measure(identity).given(CHANNEL)
            _, edges = given.tables()
            query = (
                "SELECT dst_layer, src_layer, sum(CAST(relevance AS DOUBLE)), count(*), "
                "sum(abs(relevance)) FROM {} GROUP BY ALL ORDER BY ALL"
            )
            found = db.sql(query.format("B_edges"), inputs=[identity]).fetchall()
            whole = db.sql(query.format("whole"), tables={"whole": edges}).fetchall()
            assert [row[:2] for row in found] == [row[:2] for row in whole]
            eps = 2**-7 if "mantissa_bits" in options else 1e-5
            for (*_, before, n, size), (*_, after, kept, _) in zip(whole, found, strict=True):
                assert after == pytest.approx(before, abs=eps * size + 1e-5)
                assert kept <= n + 2 * 36 + 1
            if "top" in options:
                counts = db.sql(
                    "SELECT count(*) FROM B_edges WHERE dst_unit >= 0 AND src_unit >= 0 "
                    "GROUP BY dst_layer, src_layer",
                    inputs=[identity],
                ).fetchall()
                assert max(n for (n,) in counts) <= 7
                lost = db.sql("SELECT count(*) FROM B_nodes WHERE unit = -3").fetchall()
                assert lost[0][0] > 0 or resolution == "channel"


def test_numbers_that_float32_cannot_hold_are_listed(path, monkeypatch):
    plain_given = ng.Measure.given

    def given(self, event):
        found = plain_given(self, event)
        nodes, edges = found.tables()
        values = nodes["relevance"].to_numpy().copy()
        values[0] = np.inf
        place = nodes.schema.get_field_index("relevance")
        nodes = nodes.set_column(place, "relevance", pa.array(values))
        object.__setattr__(found, "tables", lambda event: (nodes, edges))
        return found

    monkeypatch.setattr(ng.Measure, "given", given)
    with ng.open(path) as db:
        db.materialize(CHANNEL, name="B", inputs=["k0"], progress=False)
        found = rows(db, "B")
        assert {row[5] for row in found["inputs"]} == {"undefined"}
        assert all("expected finite numbers" in row[6] for row in found["inputs"])
        assert not found["nodes"]
        assert not found["edges"]


def test_a_store_without_conditions_is_as_before(extracted):
    with ng.open(extracted) as db:
        assert db.conditions().num_rows == 0
        assert db.meta["format_version"] == 1
    assert not (extracted / "conditions").exists()
    report = verify(extracted, sample=0)
    assert report.conditions == 0
    assert "condition" not in str(report)


def test_conditions_of_bounded_stores_are_bounded(tmp_path):
    """The strongest edges of the conditioned tables, with thresholds of their own."""
    x = [{"input": torch.randn(1, 8, 8), "key": str(i)} for i in range(3)]
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(216, 4)
    ).eval()
    path = tmp_path / "s.nrm"
    A, B = ng.Layer("0")[1:4], ng.Layer("0")[3:6, 2:]
    with ng.extract(net, x, path, resolution="neuron", max_edges=300, progress=False) as db:
        for name, event in (("single", A), ("union", A & ng.Layer("input")[:, :5] | B)):
            db.materialize(event, name=name, progress=False)
            for identity in db.sql("SELECT input_id FROM inputs").to_arrow_table()[0].to_pylist():
                complete = db.measure(identity).given(event).tables()[1].to_pandas()
                where = f"WHERE input_id = {identity}"
                rows = db.sql(f"SELECT * FROM {name}_edges {where}").df()
                thresholds = db.sql(f"SELECT * FROM {name}_thresholds {where}").df()
                assert 250 < len(rows) <= 300
                for row in thresholds.itertuples():
                    pair = f"dst_layer == {row.dst_layer} and src_layer == {row.src_layer}"
                    whole, mine = complete.query(pair), rows.query(pair)
                    kept = mine[mine.dst_unit >= 0]
                    both = kept.merge(whole, on=["dst_unit", "src_unit"])
                    assert len(both) == len(kept)
                    np.testing.assert_allclose(both.relevance_x, both.relevance_y, rtol=1e-5)
                    strong = (whole.relevance.abs() > row.threshold * (1 + 1e-5)).sum()
                    assert strong <= len(kept)
                    size = whole.relevance.abs().sum()
                    assert abs(mine.relevance.sum() - whole.relevance.sum()) < 1e-5 * size
        report = db.verify()
        assert report.sound, report.findings
