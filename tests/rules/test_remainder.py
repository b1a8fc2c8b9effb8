"""The remainder of rules that do not conserve, in reports, stores and their verification."""

import math

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.network.topology import REMAINDER
from nrm_graph.plots import plot_report, plot_subgraph

pytestmark = pytest.mark.usefixtures("remembered_traces")


class Attention(nn.Module):
    """One head over four tokens, a residual sum, a mean and two classes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.q, self.k, self.v = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        y = self.norm(x)
        scores = self.q(y) @ self.k(y).transpose(1, 2) / math.sqrt(3)
        return self.head((x + torch.softmax(scores, -1) @ self.v(y)).mean(1))


def network():
    torch.manual_seed(0)
    return Attention().eval()


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
OPTIONS = {"target": 1, "composite": "attn_lrp"}


@pytest.mark.smoke
def test_reports_and_cuts_hold_the_remainder():
    m = ng.measure(network(), X, dtype="float64", **OPTIONS)
    rows = m.report().to_pylist()
    (soft,) = [row for row in rows if row["kind"] == "softmax"]
    assert abs(soft["remainder"]) > 1e-6
    assert all(row["remainder"] == 0 for row in rows if row["kind"] != "softmax")
    held = sum(row[k] for row in rows for k in ("bias", "stabilizer", "remainder"))
    ends = sum(row["sum"] for row in rows if row["kind"] == "input")
    assert held + ends == pytest.approx(1, abs=1e-10)
    assert m.absorbed == pytest.approx(held, abs=1e-12)
    for layer in m.topology.layers:
        assert float(m.cut(layer.name)) == pytest.approx(1, abs=1e-10)
    given = m.given(ng.Layer(soft["layer"])[0])
    rows = given.report().to_pylist()
    held = sum(row[k] for row in rows for k in ("bias", "stabilizer", "remainder"))
    ends = sum(row["sum"] for row in rows if row["kind"] == "input")
    assert held + ends == pytest.approx(1, abs=1e-9 * given.amplification)
    nodes, edges = m.tables()
    for table, column in ((nodes, "unit"), (edges, "src_unit")):
        mine = table.filter(pc.equal(table[column], REMAINDER))
        assert pc.sum(mine["relevance"]).as_py() == pytest.approx(soft["remainder"], abs=1e-9)


def test_a_store_with_remainders_is_verified(tmp_path):
    rows = [{"input": X * s, "key": f"k{s}"} for s in (1, 2)]
    path = tmp_path / "s.nrm"
    with ng.extract(network(), rows, path, progress=False, **OPTIONS) as db:
        report = db.verify(sample=2)
        assert report.sound, report.findings
        m = db.measure("k1")
        found = dict(
            db.sql(
                "SELECT name, sum(relevance) FROM nodes JOIN layers USING (layer_id) "
                "WHERE unit = -4 GROUP BY name",
                inputs=["k1"],
            ).fetchall()
        )
        expected = {r["layer"]: r["remainder"] for r in m.report().to_pylist() if r["remainder"]}
        assert found == pytest.approx(expected, abs=1e-5)
        db.materialize(ng.Layer("v")[0], name="given_v", progress=False)
        assert db.verify(sample=1).sound


def test_pictures_name_the_remainder():
    m = ng.measure(network(), X, **OPTIONS)
    texts = [t.get_text() for t in plot_report(m).get_legend().get_texts()]
    assert "remainder of the rule" in texts
    assert "bias, stabilizer and remainder" in m.heatmap().get_xlabel()
    legend = plot_subgraph(m.subgraph(top=2000)).get_legend().get_texts()
    assert legend[-1].get_text() == "absorbed by bias, stabiliser or remainder"
    assert np.isfinite(m.joint("v", "x").values).all()
