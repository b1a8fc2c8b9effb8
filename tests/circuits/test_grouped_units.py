"""Units that are asked for at query time: exact sums of what a store holds by neurons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import bounded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import nrm_graph as ng
from nrm_graph.network.grouped_units import asked_units, grouped_units

KEYS = ["dst_layer", "dst_unit", "src_layer", "src_unit"]


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """Every neuron-level edge of eight images; two labels."""
    path = tmp_path_factory.mktemp("grouped") / "s.nrm"
    images = bounded.Images()
    for place, row in enumerate(images.rows):
        row["label"] = "ab"[place % 2]
    with ng.extract(
        bounded.program(), images.rows, path, target=1, resolution="neuron", max_edges="all",
        progress=False,
    ) as store:  # fmt: skip
        store.materialize(ng.Layer("first")[1], name="through", progress=False)
        yield store


def channels(db, ids, units):
    """Channels of the neurons of a table's columns; pseudo-units and vectors stay."""
    sizes = {layer.layer_id: layer.shape for layer in db.topology.layers}
    area = np.array([np.prod(sizes[i][1:]) if len(sizes[i]) == 3 else 1 for i in ids], np.int64)
    return np.where(units < 0, units, units // area)


def dense(db, table="edges"):
    """Values of every channel edge of every input, as one frame, by pandas alone."""
    rows = db.sql(f"SELECT * FROM {table}").df()
    for end in ("dst", "src"):
        rows[f"{end}_unit"] = channels(db, rows[f"{end}_layer"], rows[f"{end}_unit"])
    rows["relevance"] = rows["relevance"].astype(np.float64)
    sums = rows.groupby([*KEYS, "input_id"]).relevance.sum()
    return sums.unstack(fill_value=0.0)


def named(db, edges):
    """Nodes of a graph, (layer name, unit), as the index of :func:`dense` has them."""
    ids = {layer.name: layer.layer_id for layer in db.topology.layers}
    return [(ids[d[0]], d[1], ids[s[0]], s[1]) for s, d in edges]


def test_a_circuit_is_the_sum_over_neurons(db):
    values = dense(db)
    graph = db.circuit(by="channel", top=500, connected=False, weight="unit")
    assert graph.graph["by"] == dict.fromkeys(("x", "first", "second", "add", "pool"), "channel")
    assert len(graph.edges) == (values.mean(axis=1) != 0).sum()
    for edge, name in zip(graph.edges, named(db, graph.edges), strict=True):
        row, data = values.loc[name], graph.edges[edge]
        assert data["relevance"] == pytest.approx(row.mean(), abs=1e-12)
        assert data["std"] == pytest.approx(row.std(), abs=1e-12)
        assert data["inputs"] == (row != 0).sum()
        assert "conditional" not in data
    size = values.abs().max(axis=0)  # every input's own strongest
    few = db.circuit(by="channel", top=20, connected=False)
    least = values.abs().apply(lambda column: column.nlargest(20).min())
    for edge, name in zip(few.edges, named(db, few.edges), strict=True):
        strong = (values.loc[name].abs() >= least).mean()
        assert few.edges[edge]["top_share"] == strong
    assert size.shape == (8,)
    nodes = db.sql("SELECT * FROM nodes WHERE unit >= 0").df()
    nodes["unit"] = channels(db, nodes["layer_id"], nodes["unit"])
    sums = nodes.groupby(["layer_id", "unit"]).relevance.sum() / 8
    ids = {layer.name: layer.layer_id for layer in db.topology.layers}
    for (layer, unit), data in graph.nodes(data=True):
        if unit >= 0:
            assert data["relevance"] == pytest.approx(sums[ids[layer], unit], abs=1e-6)
            assert ("activation" in data) is (layer in ("last", "output"))


def test_conditions_and_connected_graphs(db):
    values = dense(db, "through_edges")
    share = db.sql("SELECT relevance FROM through_inputs ORDER BY input_id").df().relevance
    graph = db.circuit(by="channel", given="through", top=30)
    assert graph.graph["connected"]
    for edge, name in zip(graph.edges, named(db, graph.edges), strict=True):
        mean = (values.loc[name].to_numpy() * share).sum() / share.sum()
        assert graph.edges[edge]["relevance"] == pytest.approx(mean, abs=1e-6)


def test_contrasts_equal_scipy_on_dense_pairs(db):
    result = db.contrast("label = 'a'", "label = 'b'", by="channel", weight="unit", edges=500)
    values = dense(db)
    labels = db.sql("SELECT label FROM inputs ORDER BY input_id").df().label.to_numpy()
    for row in result.table.to_pylist():
        pair = values.loc[tuple(row[key] for key in KEYS)].to_numpy()
        a, b = pair[labels == "a"], pair[labels == "b"]
        assert row["difference"] == pytest.approx(a.mean() - b.mean(), abs=1e-9)
        assert row["welch_p"] == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    graph = result.graph(10)
    assert graph.graph["by"]["first"] == "channel"
    nodes = db.sql("SELECT n.*, label FROM nodes n JOIN inputs USING (input_id)").df()
    nodes["unit"] = channels(db, nodes["layer_id"], nodes["unit"])
    ids = {layer.name: layer.layer_id for layer in db.topology.layers}
    for (layer, unit), data in graph.nodes(data=True):
        mine = nodes[(nodes.layer_id == ids[layer]) & (nodes.unit == unit)]
        means = mine.groupby("label").relevance.sum() / 4
        assert data["relevance"] == pytest.approx(means["a"] - means["b"], abs=1e-6)


def test_stability_prototypes_and_ablation_take_the_same_units(db):
    stability = db.stability(by="channel", top=20, splits=5, draws=20)
    values = dense(db).mean(axis=1).abs().nlargest(20)
    names = {tuple(row[key] for key in KEYS) for row in stability.edges.to_pylist()}
    assert names == set(values.index)
    graph = db.circuit("label = 'a'", by="channel", top=30)
    near = db.prototypes(graph, k=2)
    assert set(near["side"].to_pylist()) == {"nearest", "farthest"}
    curves = ng.evaluate.faithfulness(db, graph, by="units", draws=1)
    assert curves is not None
    alike = ng.evaluate.randomization(db, graph, draws=1)
    assert {"first", "second"} <= set(alike.layers)


def test_one_input_from_rows_from_the_program_and_from_a_store_of_channels(db, tmp_path):
    stored = db.subgraph("k3", top=500, by="channel", connected=False)
    computed = db.measure("k3").subgraph(500, by="channel", connected=False)
    row = bounded.Images().rows[3]
    with ng.extract(
        bounded.program(), [row], tmp_path / "c.nrm", target=1, resolution="channel",
        max_edges="all", progress=False,
    ) as other:  # fmt: skip
        grouped = other.subgraph("k3", top=500, connected=False)
    for graph in (stored, computed):
        assert graph.graph["by"]["second"] == "channel"
        assert set(graph.edges) == set(grouped.edges)
        for edge in grouped.edges:
            expected = grouped.edges[edge]["relevance"]
            assert graph.edges[edge]["relevance"] == pytest.approx(expected, abs=2e-6)
        for node in grouped:
            if node[0] in ("first", "second", "add"):
                assert graph.nodes[node]["name"] == grouped.nodes[node]["name"]


def test_edges_of_a_measure_in_any_units(db):
    m = db.measure("k0")
    every = m.edges("second", "first", by="channel")
    assert len(every) == 4 * 4
    five = m.edges("second", "first", by={"second": "channel", "first": "neuron"}, top=5)
    assert len(five) == 5
    size = np.abs(five["relevance"].to_numpy())
    assert (np.diff(size) <= 0).all()
    left = float(five.schema.metadata[b"left_out"])
    total = every["relevance"].to_numpy().sum()
    assert five["relevance"].to_numpy().sum() + left == pytest.approx(total, abs=1e-12)
    neurons = m.edges("second", "first", by="neuron", top=5)
    assert len(neurons) == 5
    assert min(neurons["src_unit"].to_pylist()) >= 0
    half = m.edges("second", "first", by="channel", coverage=0.5)
    sizes = np.sort(np.abs(every["relevance"].to_numpy()))[::-1]
    fewest = int(np.searchsorted(np.cumsum(sizes), 0.5 * sizes.sum())) + 1
    assert len(half) == fewest


def test_bounded_pairs_say_what_a_sum_may_lack(db, tmp_path):
    path = tmp_path / "few.nrm"
    with ng.extract(
        bounded.program(), bounded.Images().rows, path, target=1, resolution="neuron",
        max_edges=3000, progress=False,
    ) as few:  # fmt: skip
        values = dense(db).mean(axis=1)
        graph = few.circuit(by="channel", top=40, connected=False)
        lacking = [data for _, _, data in graph.edges(data=True) if "missing" in data]
        assert lacking
        for edge, name in zip(graph.edges, named(db, graph.edges), strict=True):
            data = graph.edges[edge]
            if "missing" in data:
                assert data["low"] <= values[name] <= data["high"]
            else:
                assert data["relevance"] == pytest.approx(values[name], abs=1e-6)
        exact = few.circuit(by="channel", top=40, connected=False, exact=True)
        for edge, name in zip(exact.edges, named(db, exact.edges), strict=True):
            assert exact.edges[edge]["relevance"] == pytest.approx(values[name], abs=1e-6)
            assert "missing" not in exact.edges[edge]
        assert any(
            "sums of what is stored" in f for f in few.subgraph("k0", by="channel").graph["flags"]
        )
        contrast = few.contrast("key < 'k4'", "key >= 'k4'", by="channel", exact=True, edges=40)
        assert contrast.unknown == 0
        stability = few.stability(by="channel", top=5, splits=2, draws=5, exact=True)
        assert not stability.certified


def test_what_cannot_be_grouped_is_refused(db, tmp_path):
    for by, text in (
        ("pixel", "by must be one of"),
        (3, "by must be one of"),
        ("head", "no layer of the network has such units"),
        ({"nowhere": "channel"}, "nowhere"),
        ({"first": np.zeros((2, 2), int)}, "integer array of shape"),
    ):
        with pytest.raises(ng.NrmError, match=text):
            db.circuit(by=by)
    db.materialize(name="steps", watch=["first"], nodes=4, progress=False)
    with pytest.raises(ng.InputError, match=r"by= or tables="):
        db.circuit(by="channel", tables="steps")
    with ng.extract(
        bounded.program(), bounded.Images([0]).rows, tmp_path / "c.nrm", target=1,
        resolution="channel", progress=False,
    ) as grouped:  # fmt: skip
        with pytest.raises(ng.InputError, match="a unit lies in several"):
            grouped.circuit(by="neuron")
        assert "by" not in grouped.circuit(by="channel").graph


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_any_coarser_units_sum_to_the_same_totals(db, data):
    layer = db.topology.layer("first")
    count = data.draw(st.integers(1, 5))
    seed = data.draw(st.integers(0, 2**32 - 1))
    labels = np.random.default_rng(seed).integers(0, count, layer.shape)
    labels.ravel()[:count] = np.arange(count)
    graph = db.circuit(by={"first": labels, "second": "channel"}, top=999_999, connected=False)
    units = grouped_units(db.topology, db.partitions, {"first": labels})
    assert units is not None
    assert units.sizes(layer.layer_id).sum() == labels.size
    nodes = db.sql("SELECT * FROM nodes WHERE unit >= 0").df().query("layer_id == @layer.layer_id")
    sums = np.bincount(labels.ravel()[nodes.unit], nodes.relevance, minlength=count) / 8
    for (name, unit), node in graph.nodes(data=True):
        if name == "first" and unit >= 0:
            assert node["relevance"] == pytest.approx(sums[unit], abs=1e-6)
    assert (
        asked_units(db.topology, db.partitions, {"first": labels})[layer.layer_id].n_units == count
    )


def test_tokens_of_sequences():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Flatten(),
                              torch.nn.Linear(18, 2))  # fmt: skip
    m = ng.measure(net, torch.randn(1, 3, 4), target=0, composite="epsilon")
    tokens = m.subgraph(100, by="token", connected=False)
    assert {unit for name, unit in tokens if name == "0" and unit >= 0} == {0, 1, 2}
    features = m.subgraph(100, by="feature", connected=False)
    assert {unit for name, unit in features if name == "0" and unit >= 0} - {0, 1, 2}


def test_a_measure_with_other_units(db):
    m = db.measure("k1")
    other = m.with_units("channel")
    np.testing.assert_array_equal(other.marginal("first"), m.marginal("first", by="channel"))
    assert other(ng.Layer("first").units([1])) == pytest.approx(m(ng.Layer("first")[1]), abs=1e-12)
    assert other.meaning == m.meaning
    ax = ng.plots.plot_flow(other, layers=["first", "second"], top=2)
    assert any("others" in text.get_text() for text in ax.texts)
    back = other.with_units("neuron")
    np.testing.assert_array_equal(back.marginal("first"), m.marginal("first"))
    with pytest.raises(ng.InputError, match=r"with_units\(by\)\.given\(event\)"):
        m.given(ng.Layer("first")[1]).with_units("channel")
