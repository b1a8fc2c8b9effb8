"""The view ``units`` and the ends of ``flows``: coordinates, against indices of NumPy."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from helpers.architectures import ARCHITECTURES, inputs, network
from helpers.tiny_stores import make, record, write

import nrm_graph as ng
from nrm_graph.events.unit_sets import unit_set
from nrm_graph.network.layout import layout
from nrm_graph.network.topology import LayerInfo, Topology
from nrm_graph.network.unit_coordinates import COORDINATES, coordinates, spelling
from nrm_graph.network.units import RESOLUTIONS, partition, resolve
from nrm_graph.store.read.unit_views import UnitViews

QUICK = ("signal",)


def asked(topology, parts):
    """Connection with the view of a network's units."""
    con = duckdb.connect()
    rows = [
        {"layer_id": layer.layer_id, "name": layer.name, "n_units": part.n_units}
        for layer, part in zip(topology.layers, parts, strict=True)
    ]
    con.from_arrow(pa.Table.from_pylist(rows)).create("layers")
    views = UnitViews(topology, [part.resolution for part in parts], {})
    con.execute(f"CREATE VIEW units AS {views.queries()['units']}")
    return con


def check(topology, parts):
    """Neurons whose indices give the coordinates of a unit are those of the unit."""
    with asked(topology, parts) as con:
        table = con.sql("SELECT * FROM units ORDER BY layer_id, unit").fetchnumpy()
    ends = np.cumsum([part.n_units for part in parts])
    assert len(table["unit"]) == ends[-1]
    for layer, part, end in zip(topology.layers, parts, ends, strict=True):
        rows = {name: values[end - part.n_units : end] for name, values in table.items()}
        assert rows["unit"].tolist() == list(range(part.n_units))
        assert set(rows["layer"]) <= {layer.name}
        told = {n: np.ma.getdata(rows[n]) for n in COORDINATES if np.ma.count(rows[n])}
        assert all(np.ma.count_masked(rows[n]) == 0 for n in told)
        if part.resolution == "custom":
            assert not told
            continue
        if part.n_units <= 1:
            continue
        assert told, (layer, part.resolution)
        tuples = set(zip(*(values.tolist() for values in told.values()), strict=True))
        assert len(tuples) == part.n_units, "coordinates tell units apart"
        index = expected(layer, part, told)
        for name, values in told.items():
            assert np.array_equal(values[part.labels], index[name]), (layer, part.resolution, name)


def expected(layer, part, told):
    """Coordinates of every neuron, from its index and the shape alone."""
    where = np.indices(layer.shape)
    flat = {1: np.zeros(layer.shape, int)}
    shape, axes = layer.shape, len(layer.shape)

    def joined(begin, end):
        value = flat[1]
        for axis in range(begin, end):
            value = value * shape[axis] + where[axis]
        return value

    if "channel" in told:
        return {
            "channel": where[0],
            "token": joined(1, 2) if axes == 2 else None,
            "row": joined(1, axes - 1),
            "column": where[-1],
        }
    if "head" in told:
        head = max(0, axes - 3)
        return {
            "head": where[head],
            "token": joined(0, head),
            "row": where[max(-2, -axes)],
            "column": where[-1],
        }
    return {
        "feature": where[-1],
        "token": joined(0, axes - 1),
        "row": joined(0, axes - 2),
        "column": where[max(-2, -axes)],
    }


def topologies(name):
    program = ng.trace(network(name), inputs(name))
    topology = layout(program).topology
    yield topology, resolve(topology)
    for kind in RESOLUTIONS:
        if kind == "neuron":
            small = [layer for layer in topology.layers if layer.n_neurons <= 30_000]
            yield topology, resolve(topology, {layer.name: "neuron" for layer in small})
        else:
            yield topology, resolve(topology, kind)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ARCHITECTURES]
)
def test_coordinates_round_trip(name):
    for topology, parts in topologies(name):
        check(topology, parts)


SHAPES = ((), (4,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 1, 2, 3, 2))


@pytest.mark.parametrize("resolution", [*RESOLUTIONS, "custom"])
@pytest.mark.parametrize("shape", SHAPES)
def test_units_are_written_as_events_write_them(shape, resolution):
    layer = LayerInfo(1, "a.b", "sum", shape, 1)
    own = np.arange(layer.n_neurons).reshape(shape) // 2 if resolution == "custom" else resolution
    part = partition(layer, own)
    written = spelling(layer, part.resolution)
    for unit in range(part.n_units):
        event = unit_set(layer, part.resolution, unit)
        assert f"a.b{written.text(unit)}" == repr(event)
        assert np.array_equal(event.mask(shape, part), part.labels == unit)


@pytest.mark.parametrize("usual", ["channel", "feature", "head"])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_neurons_have_all_coordinates_of_their_axes(shape, usual):
    layer = LayerInfo(1, "a", "sum", shape, 1)
    told = coordinates(layer, "neuron", usual)
    places = [tuple(s.of(unit) for s in told.values()) for unit in range(layer.n_neurons)]
    assert len(set(places)) == layer.n_neurons


def layer_row(layer_id, name, shape, resolution, units, kind="dense"):
    named = {"name": name, "kind": kind, "shape": shape, "resolution": resolution}
    return {"layer_id": layer_id, "n_units": units, "depth": layer_id, "aliases": []} | named


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    layers = [
        layer_row(0, "x", [1, 1, 3], "neuron", 3, "input"),
        layer_row(1, "a'b", [4, 2, 2], "channel", 4, "convolution"),
        layer_row(2, "1", [2], "neuron", 2),
    ]
    path = make(tmp_path_factory.mktemp("tiny") / "s.nrm", layers=layers)
    return write(path, [record(0), record(1)])


def test_flows_say_their_ends(tiny):
    with ng.open(tiny) as db:
        rows = db.sql("SELECT dst_unit, src_unit, dst_name, src_name FROM flows").fetchall()
        assert len(rows) == 10
        for dst, src, upper, lower in rows:
            assert (upper, lower) == (f"a'b[{dst}]", f"x[0, 0, {src}]")
        assert db.sql("SELECT * FROM flows").columns[:9] == [
            *("input_id", "key", "label", "dst", "dst_unit", "src", "src_unit"),
            *("relevance", "conditional"),
        ]
        joined = db.sql(
            'SELECT layer, unit, channel, "column" FROM nodes JOIN units USING (layer_id, unit) '
            "WHERE input_id = (SELECT min(input_id) FROM inputs) ORDER BY ALL"
        )
        assert joined.fetchall() == [
            ("1", 1, None, None),
            ("a'b", 3, 3, None),
            ("x", 0, 0, 0),
            ("x", 2, 0, 2),
        ]


def test_pseudo_units_are_said_in_words():
    layers = (LayerInfo(0, "x", "dense", (3,), 0),)
    query = UnitViews(Topology(layers, ()), ["neuron"], {}).queries()["flows"]
    with duckdb.connect() as con:
        con.execute("CREATE TABLE inputs AS SELECT 0 AS input_id, 'k' AS key, NULL AS label")
        con.execute("CREATE TABLE layers AS SELECT 0 AS layer_id, 'x' AS name")
        for unit, words in {-1: "bias", -4: "remainder", -9: "-9"}.items():
            con.execute(
                "CREATE OR REPLACE TABLE edges AS SELECT 0 AS input_id, 0 AS dst_layer, 1 AS "
                f"dst_unit, 0 AS src_layer, {unit} AS src_unit, 1 AS relevance, 1 AS conditional"
            )
            assert con.execute(query).fetchall()[0][-2:] == ("x[1]", f"x {words}")


def test_many_units_are_numbered_in_parts(tmp_path):
    shape = [1 << 8, 1 << 8, 1 << 8]
    layers = [
        layer_row(0, "x", shape, "neuron", 1 << 24, "input"),
        layer_row(1, "1", [2], "neuron", 2),
    ]
    with ng.open(make(tmp_path / "s.nrm", layers=layers, groups=[[1, 0, 1]])) as db:
        row = db.sql("SELECT * FROM units WHERE layer_id = 0 LIMIT 1 OFFSET 70000").fetchall()[0]
        assert row[:4] == (0, "x", 70000, None)
        assert db.sql("SELECT * FROM units LIMIT 1").columns[4:] == list(COORDINATES)


def test_units_of_ones_own_have_names_alone():
    layers = (LayerInfo(0, "x", "input", (2, 3), 0), LayerInfo(1, "0", "dense", (4,), 1))
    parts = (partition(layers[0], [[0, 0, 1], [1, 2, 2]]), partition(layers[1], "neuron"))
    check(Topology(layers, ()), parts)
    query = UnitViews(Topology(layers, ()), ["custom", "neuron"], {0: {1: "it's"}}).queries()
    with duckdb.connect() as con:
        con.execute("CREATE TABLE layers AS SELECT 0 AS layer_id, 'x' AS name, 3 AS n_units")
        nothing = (None,) * len(COORDINATES)
        assert con.execute(f"SELECT * FROM ({query['units']}) ORDER BY unit").fetchall() == [
            (0, "x", unit, name, *nothing) for unit, name in ((0, None), (1, "it's"), (2, None))
        ]
