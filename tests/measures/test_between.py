"""Neuron-level edges that are not stored: exact for any sets, in chunks, under any condition."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from reference.brute_networks import (
    close,
    conditions,
    links,
    measure,
    random_mask,
    reached,
    sampled,
    walks,
)
from torch import nn

import nrm_graph as ng
from nrm_graph.measures import kernel_edges, neuron_edges

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(params=sampled())
def case(request):
    return walks(*request.param), measure(*request.param)


def dense(table: pa.Table, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    relevance, conditional = np.zeros(shape), np.zeros(shape)
    j, i = table["dst_unit"].to_numpy(), table["src_unit"].to_numpy()
    assert len(np.unique(j.astype(np.int64) * shape[1] + i)) == len(table)
    relevance[j, i] = table["relevance"].to_numpy()
    conditional[j, i] = table["conditional"].to_numpy()
    return relevance, conditional


def test_edges_between_sets_are_those_of_the_walks(case):
    w, m = case
    rng = np.random.default_rng(20)
    for dst, src in links(w):
        masks = [random_mask(rng, w.shapes[name]) for name in (dst, src)]
        sets = [ng.Layer(name)[mask] for name, mask in zip((dst, src), masks, strict=True)]
        table = m.edges(dst, src, by="neuron", dst=sets[0], src=sets[1])
        q = w.steps[dst].q[src]
        inside = np.outer(masks[0].ravel(), masks[1].ravel())
        relevance, conditional = dense(table, q.shape)
        close(relevance, w.flow(dst, src) * inside, w.variation())
        here = reached(w, dst)  # elsewhere rules need not give a kernel
        close(conditional[here], (q * inside)[here], np.abs(q).max())


def test_pseudo_edges_of_a_set(case):
    w, m = case
    rng = np.random.default_rng(21)
    for layer, step in w.steps.items():
        mask = random_mask(rng, w.shapes[layer])
        table = m.edges(layer, layer, by="neuron", dst=ng.Layer(layer)[mask])
        for unit, share in ((-1, step.bias), (-2, step.stabilizer)):
            rows = table.filter(pa.compute.equal(table["src_unit"], unit))
            found = np.zeros(share.shape)
            found[rows["dst_unit"].to_numpy()] = rows["relevance"].to_numpy()
            close(found, w.marginal(layer) * share * mask.ravel(), w.variation())


def test_edges_under_a_condition(case):
    w, m = case
    rng = np.random.default_rng(22)
    for given, on in conditions(w, rng, 2):
        r, conditioned = w.total(on), m.given(given)
        scale = w.variation() / abs(r)
        for dst, src in links(w):
            q = w.steps[dst].q[src]
            table = conditioned.edges(dst, src, by="neuron")
            relevance, conditional = dense(table, q.shape)
            close(relevance, w.flow(dst, src, on) / r, scale)
            if len(conditioned.terms) > 1:
                assert table["conditional"].null_count == len(table)
                continue
            # R(j -> i | B) = R(j | B) q_B(i | j)
            at = (w.marginal(dst, on) / r)[:, None]
            known = ~np.isnan(conditional)
            product = np.where(known, at * np.nan_to_num(conditional), relevance)
            close(product, w.flow(dst, src, on) / r, scale)


def big() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(6, 8, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 3, stride=2, dilation=2),
        nn.Flatten(),
        nn.Linear(4 * 9 * 9, 5),
    )


@pytest.fixture(scope="module")
def m():
    x = torch.randn(2, 17, 17, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # Channels, so that no table holds these edges.
    made = ng.measure(big(), x, target=1, dtype="float64", resolution={"0": "channel"})
    assert any(not part.single for part in made.partitions)
    return made


PAIRS = [("0", "input"), ("3", "0"), ("5", "3"), ("7", "5")]


@pytest.mark.smoke
@pytest.mark.parametrize(("upper", "lower"), PAIRS)
def test_chunks_make_no_difference(m, upper, lower, monkeypatch):
    whole = m.edges(upper, lower, by="neuron")
    n = m.topology.layer(upper).n_neurons
    monkeypatch.setattr(kernel_edges, "CHUNK", 50)
    assert m.edges(upper, lower, by="neuron").equals(whole)
    rng = np.random.default_rng(5)
    for size in (1, 3, n // 2):
        chosen = np.zeros(n, bool)
        chosen[rng.choice(n, size, replace=False)] = True
        dst = ng.Layer(upper)[chosen.reshape(m.topology.layer(upper).shape)]
        part = m.edges(upper, lower, by="neuron", dst=dst)
        assert part.equals(whole.filter(pa.array(chosen[whole["dst_unit"].to_numpy()])))
        streamed = m.edge_batches(upper, lower, dst=dst).read_all()
        keys = [("dst_unit", "ascending"), ("src_unit", "ascending")]
        assert streamed.sort_by(keys).combine_chunks().equals(part.combine_chunks())


@pytest.mark.smoke
@pytest.mark.parametrize(("upper", "lower"), PAIRS)
def test_they_sum_to_the_stored_table(m, upper, lower):
    fine = m.edges(upper, lower, by="neuron")
    ids = [m.topology.layer(name).layer_id for name in (upper, lower)]
    units = [m.partitions[i].labels.ravel() for i in ids]
    table = np.zeros([m.partitions[i].n_units for i in ids])
    place = [u[fine[c].to_numpy()] for u, c in zip(units, ("dst_unit", "src_unit"), strict=True)]
    np.add.at(table, tuple(place), fine["relevance"].to_numpy())
    stored = m.edges(upper, lower)
    expected = np.zeros_like(table)
    expected[stored["dst_unit"].to_numpy(), stored["src_unit"].to_numpy()] = stored["relevance"]
    np.testing.assert_allclose(
        table, expected, rtol=0, atol=1e-12 * np.abs(fine["relevance"]).sum()
    )


def test_the_strongest_leave_the_rest_on_record(m):
    whole = m.edges("3", "0", by="neuron")
    size = np.sort(np.abs(whole["relevance"].to_numpy()))[::-1]
    total = whole["relevance"].to_numpy().sum()
    for option in ({"top": 20}, {"coverage": 0.5}):
        some = m.edges("3", "0", by="neuron", **option)
        count = option.get("top") or int(np.searchsorted(np.cumsum(size), 0.5 * size.sum())) + 1
        relevance = some["relevance"].to_numpy()
        np.testing.assert_array_equal(np.abs(relevance), size[:count])
        left = float(some.schema.metadata[b"left_out"])
        assert relevance.sum() + left == pytest.approx(total, abs=1e-12)


def test_limits_of_edges_that_are_few_weak_or_none(m):
    whole = m.edges("3", "0")
    assert len(m.edges("3", "0", top=len(whole))) == len(whole)  # the weakest as well
    for by in ("unit", "neuron"):
        absorbed = m.edges("3", "3", by=by)
        assert len(m.edges("3", "3", by=by, top=2)) == min(2, len(absorbed))
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        net[0].weight.fill_(-1.0)
        net[0].bias.fill_(-1.0)
        net[2].bias.fill_(1.0)
    silent = ng.measure(net, torch.ones(2), target=0)
    for by in ("unit", "neuron"):
        for option in ({"top": 3}, {"coverage": 0.5}):
            few = silent.edges("0", "input", by=by, **option)
            assert not few["relevance"].to_numpy().any()
            assert float(few.schema.metadata[b"left_out"]) == 0.0


def test_what_cannot_be_asked(m, monkeypatch):
    with pytest.raises(ng.EventError, match="a neuron set of layer 3"):
        m.edges("3", "0", by="neuron", dst=ng.Layer("0")[0])
    with pytest.raises(ng.EventError, match="does not read input directly"):
        m.edge_batches("3", "input")
    with pytest.raises(ng.InputError, match="go with by='neuron'"):
        m.edges("3", "0", dst=ng.Layer("3")[0])
    with pytest.raises(ng.InputError, match="by must be one of"):
        m.edges("3", "0", by="pixel")
    monkeypatch.setattr(neuron_edges, "MAX_ROWS", 100)
    with pytest.raises(ng.InputError, match="edge_batches"):
        m.edges("3", "0", by="neuron")


def test_the_logit_scale_and_sql(tmp_path):
    x = torch.randn(2, 17, 17, generator=torch.Generator().manual_seed(1))
    rows = [{"input": x, "key": "a"}]
    with ng.extract(
        big(), rows, tmp_path / "s.nrm", target=1, resolution={"0": "channel"}, progress=False
    ) as db:
        plain, scaled = db.measure("a"), db.measure("a", scale="logit")
        fine = plain.edges("3", "0", by="neuron")
        np.testing.assert_allclose(
            scaled.edges("3", "0", by="neuron")["relevance"].to_numpy(),
            fine["relevance"].to_numpy() * plain.logit,
            rtol=1e-6,
        )
        ((total,),) = db.sql(
            "SELECT sum(CAST(e.relevance AS DOUBLE)) FROM e JOIN layers ON layer_id = e.dst_layer "
            "WHERE name = '3'",
            tables={"e": fine},
        ).fetchall()
        ((stored,),) = db.sql(
            "SELECT sum(CAST(relevance AS DOUBLE)) FROM flows WHERE dst = '3' AND src = '0'"
        ).fetchall()
        size = np.abs(fine["relevance"].to_numpy()).sum()
        assert abs(total - stored) < 1e-6 * size
