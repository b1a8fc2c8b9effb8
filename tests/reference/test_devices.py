"""An accelerator gives the CPU's numbers: the same bodies run on every device, the CPU among them.

Both compute in float32, without TF32, but sum in other orders: a value may differ by some hundred
roundings (6e-8) of the largest of what it is summed with, so ``TOLERANCE`` is 1e-4 of that, a tenth
of what TF32 (10 bits) would cost a single product.  Max-pools pick one of several nearly equal
neurons by those roundings, so that units are channels wherever a pool lies below.
"""

import functools

import numpy as np
import pytest
import torch
from helpers import transformer_networks
from torch import nn

import nrm_graph as ng
from nrm_graph.tables import builder
from nrm_graph.tables.plan import plan

TOLERANCE = 1e-4
BUDGET = 80
KEY = ["dst_layer", "src_layer", "dst_unit", "src_unit"]


def accelerator():
    if not torch.accelerator.is_available():
        pytest.skip("there is no accelerator")
    return torch.accelerator.current_accelerator()


def place_of(name):
    return torch.device("cpu") if name == "cpu" else accelerator()


@pytest.fixture(params=["cpu", pytest.param("accelerator", marks=pytest.mark.gpu)])
def device(request):
    """Return where the numbers are computed that must be the CPU's."""
    return place_of(request.param)


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    ).eval()


def images(count=1):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def language_model():
    return transformer_networks.drawn("gpt2").float()


CASES = {
    "convolutions": (convolutional, images(), "epsilon_gamma", "channel"),
    "neurons": (convolutional, images(), "epsilon_gamma", {"7": "neuron", "9": "neuron"}),
    "attention": (language_model, transformer_networks.IDS, "attn_lrp", "channel"),
}


@functools.cache
def traced(name):
    make, x, _, _ = CASES[name]
    return ng.trace(make(), x)


@pytest.fixture(
    scope="module",
    params=[
        ("cpu", "convolutions"),
        *(pytest.param(("accelerator", name), marks=pytest.mark.gpu) for name in CASES),
    ],
    ids="-".join,
)
def both(request):
    """Return a function that measures, there by default, of a program that is traced once."""
    place = place_of(request.param[0])
    _, x, composite, resolution = CASES[request.param[1]]
    program = traced(request.param[1])

    def measure(device=place):
        return ng.measure(
            program, x, device=device, composite=composite, resolution=resolution, target=1
        )

    measure.device = place
    return measure


def framed(edges):
    """Edges by their ends."""
    return edges.select([*KEY, "relevance", "conditional"]).to_pandas().set_index(KEY)


def assert_close(actual, expected, size):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * size)


def assert_edges_close(actual, expected, thresholds=None):
    """Compare all rows; a row that one side lacks is 0, or lies near a threshold there."""
    found, known = framed(actual).add_suffix("_a"), framed(expected).add_suffix("_b")
    joined = found.join(known, how="outer")
    assert len(found)
    assert len(known)
    for pair, rows in joined.groupby(level=["dst_layer", "src_layer"]):
        size = rows.relevance_b.abs().max()
        alone = rows.relevance_a.isna() | rows.relevance_b.isna()
        limit = 0.0 if thresholds is None else thresholds.get(pair, 0.0)
        lonely = rows[alone].relevance_a.fillna(rows[alone].relevance_b)
        units = lonely.index.get_level_values("dst_unit") >= 0
        assert_close(lonely[units].abs(), limit, size)
        shared = rows[~alone]
        inside = shared.index.get_level_values("dst_unit") >= 0
        assert_close(shared[inside].relevance_a, shared[inside].relevance_b, size)
        q = shared.conditional_b.notna()
        assert (q == shared.conditional_a.notna()).all()
        largest = max(1.0, shared.conditional_b.abs().max()) if q.any() else 1.0
        assert_close(shared.conditional_a[q], shared.conditional_b[q], largest)


def test_laws(both):
    """Cuts sum to 1; of every unit, edges that arrive and edges that leave sum to its node."""
    m = both()
    assert m.start.device.type == both.device.type
    nodes, edges = (table.to_pandas() for table in m.tables())
    for layer in m.topology.layers[:-1]:
        cut = m.cut(layer.name)
        size = nodes[nodes.layer_id == layer.layer_id].relevance.abs().sum()
        assert_close(cut.total, 1.0, max(1.0, size))
    real = nodes[nodes.unit >= 0].set_index(["layer_id", "unit"]).relevance
    size = real.abs().groupby("layer_id").sum().max()
    output = m.topology.output.layer_id
    leaving = edges[edges.dst_unit >= 0].groupby(["dst_layer", "dst_unit"]).relevance.sum()
    arriving = edges[edges.src_unit >= 0].groupby(["src_layer", "src_unit"]).relevance.sum()
    inputs = {layer.layer_id for layer in m.topology.inputs}
    above = real[~real.index.get_level_values(0).isin(inputs)]
    assert_close(leaving.reindex(above.index).fillna(0), above, size)
    below = real[real.index.get_level_values(0) != output]
    assert_close(arriving.reindex(below.index).fillna(0), below, size)


def test_complete_tables(both):
    (nodes, edges), (known_nodes, known_edges) = both().tables(), both("cpu").tables()
    assert nodes.select(["layer_id", "unit"]).equals(known_nodes.select(["layer_id", "unit"]))
    for column in ("relevance", "activation"):
        known = known_nodes[column].to_numpy(zero_copy_only=False)
        found = nodes[column].to_numpy(zero_copy_only=False)
        assert_close(found, known, np.nanmax(np.abs(known)))
    assert_edges_close(edges, known_edges)


def bounded(m):
    (tables,) = builder.sample_tables(
        m.state, m.start, plan(m.network, m.partitions, max_edges=BUDGET)
    )
    return tables


def test_bounded_tables(both):
    """The same rows, but for near ties at the thresholds; the same share and thresholds."""
    found, known = bounded(both()), bounded(both("cpu"))
    assert found.edges.num_rows == pytest.approx(known.edges.num_rows, abs=2)
    assert found.kept.share == pytest.approx(known.kept.share, abs=0.02)  # an edge more or less
    assert_edges_close(found.edges, known.edges, known.kept.thresholds)
    complete = both("cpu").tables()[1].to_pandas()
    for pair, rows in complete[complete.src_unit >= 0].groupby(["dst_layer", "src_layer"]):
        size = rows.relevance.abs().max()
        near = {found.kept.thresholds.get(pair, 0.0), known.kept.thresholds.get(pair, 0.0)}
        between = rows.relevance.abs().between(min(near), max(near)).sum()
        assert between <= 3 or max(near) - min(near) <= TOLERANCE * size


def test_deferred_tables_are_those_made_at_once(both, monkeypatch):
    """Where the pass does not wait for the host, rows are made when it is over."""
    m = both()
    direct, few = m.tables(), bounded(m)
    deferred = []
    monkeypatch.setattr(
        builder.Tables,
        "_do",
        lambda tables, call: (deferred.append(call), tables.later.append(call)),
    )
    later = both()
    nodes, edges = later.tables()
    assert deferred
    assert (nodes.equals(direct[0]), edges.equals(direct[1])) == (True, True)
    again = bounded(later)
    assert again.edges.equals(few.edges)
    assert again.kept.thresholds == few.kept.thresholds


def test_conditions(both):
    m, known = both(), both("cpu")
    layer = m.topology.layers[len(m.topology.layers) // 2].name
    event = known.strongest(layer, 2)
    under, expected = m.given(event), known.given(event)
    assert under.condition_relevance == pytest.approx(expected.condition_relevance, rel=TOLERANCE)
    for below in m.topology.inputs:
        values = expected.marginal(below.name)
        assert_close(under.marginal(below.name), values, np.abs(values).max())
    assert_edges_close(under.tables()[1], expected.tables()[1])


def test_events_and_joints(both):
    m, known = both(), both("cpu")
    names = [layer.name for layer in m.topology.layers]
    upper, lower = names[-2], names[1]
    event = known.strongest(upper, 2) & known.strongest(lower, 2)
    joint, expected = m.joint(upper, lower), known.joint(upper, lower)
    size = np.abs(expected.values).max()
    assert_close(joint.values, expected.values, size)
    assert_close(m(event), known(event), size)
    assert_close(m(~event), 1 - known(event), max(1.0, size))


def test_paths(both):
    found, known = (m.paths(3) for m in (both(), both("cpu")))
    assert_close([p.relevance for p in found], [p.relevance for p in known], 1.0)


OPTIONS = {"composite": "epsilon_gamma", "resolution": "channel", "progress": False}


def extract(path, place, **options):
    items = [{"input": x, "key": str(i)} for i, x in enumerate(images(3))]
    return ng.extract(
        options.pop("model", None) or traced("convolutions"),
        items,
        path,
        device=place,
        **OPTIONS,
        **options,
    )


@pytest.mark.parametrize("budget", [{}, {"max_edges": 90}], ids=["complete", "bounded"])
def test_extraction(tmp_path, device, budget):
    """A store does not know where it was made; ``auto`` is the accelerator."""
    place = "auto" if device.type != "cpu" else "cpu"
    stores = extract(tmp_path / "a", place, **budget), extract(tmp_path / "b", "cpu", **budget)
    of_one = "WHERE input_id = (SELECT input_id FROM inputs WHERE key = '0')"
    queries = (
        f"SELECT * FROM edges {of_one}",
        f"SELECT dst_layer, src_layer, threshold FROM thresholds {of_one}",
    )
    (edges, _), (known, limits) = (
        [db.sql(query).to_arrow_table() for query in queries] for db in stores
    )
    thresholds = {
        (row["dst_layer"], row["src_layer"]): row["threshold"] for row in limits.to_pylist()
    }
    assert bool(thresholds) == bool(budget)
    assert_edges_close(edges, known, thresholds)
    assert stores[0].meta["program_hash"] == stores[1].meta["program_hash"]
    assert stores[0].verify().findings == ()
    event = ng.Layer("3")[:4]
    found = []
    for db, where in zip(stores, (device, "cpu"), strict=True):
        db.materialize(event, name="c", device=where)
        total = "SELECT sum(relevance) FROM c_nodes"
        found.append([db.measure("1", device=where)(event), *db.sql(total).fetchall()[0]])
        db.close()
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=10 * TOLERANCE)


def test_a_model_and_its_input_on_different_devices(device):
    expected = ng.measure(traced("convolutions"), images(), target=1, device="cpu").tables()[1]
    pairs = [
        (convolutional().to(device), images()),
        (convolutional(), images().to(device)),
        (convolutional().to(device), images().to(device)),
    ]
    for model, x in pairs if device.type != "cpu" else pairs[:1]:
        for place in (device, "cpu"):
            m = ng.measure(model, x, target=1, device=place)
            assert_edges_close(m.tables()[1], expected)


def test_weights_on_the_device(tmp_path, device):
    net = convolutional()
    extract(tmp_path / "s", device, model=net, weights="named").close()
    weights = {name: tensor.to(device) for name, tensor in net.state_dict().items()}
    with ng.open(tmp_path / "s", weights=weights) as db:
        for place in (device, "cpu"):
            m = db.measure("0", device=place)
            assert m.cut("3").total == pytest.approx(1.0, abs=TOLERANCE)


def test_a_full_device(tmp_path, device, monkeypatch):
    """What the device itself says, where more is asked of it than any has, in one line."""

    def too_much(*args):
        return torch.empty(1 << 50, dtype=torch.uint8, device=device)

    with monkeypatch.context() as full:
        full.setattr(builder, "kernel_of", too_much)
        with pytest.raises(ng.NrmError, match=r"not enough memory .*; try a smaller batch") as told:
            extract(tmp_path / "s", device)
        assert "\n" not in str(told.value)
        m = ng.measure(traced("convolutions"), images(), target=1, device=device)
        with pytest.raises(ng.NrmError, match="not enough memory"):
            m.tables()
    with extract(tmp_path / "s", device) as db:  # goes on
        assert db.sql("SELECT count(*) FROM inputs").fetchall() == [(3,)]
