"""Targets bear the names of their classes wherever they are shown."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph import plots


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    data = [{"input": torch.rand(1, 4, 4), "key": f"k{i}", "label": "boot"} for i in range(4)]
    path = tmp_path_factory.mktemp("named") / "s.nrm"
    options = {"composite": "epsilon", "classes": ["coat", "ankle boot", "bag"], "progress": False}
    return ng.extract(net, data, path, target=[1, 2], **options)


def texts(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))).replace(
        "\n", " "
    )


def test_measures(db):
    m = db.measure("k0", target=1)
    assert m.target_text() == "target 1 (ankle boot)"
    assert "Measure of target 1 (ankle boot)" in repr(m)
    assert "target 1 (ankle boot)" in repr(m.given(ng.Layer("0")[:]))
    assert "(ankle boot)" in m._repr_html_()
    assert "target 1 (ankle boot)" in texts(m.heatmap().figure)
    assert "(coat): 1" in str(db.outputs.text('{"0":1.0,"2":-1.0}', db.classes))


def test_messages(db):
    with pytest.raises(ng.InputError, match=r"targets 1 \(ankle boot\), 2 \(bag\): name one"):
        db.measure("k0")
    with pytest.raises(ng.InputError, match=r"different targets: 1 \(ankle boot\) \(4\)"):
        db.circuit(None)


def test_circuits_and_contrasts(db):
    circuit = db.circuit(None, target=1, top=8)
    assert circuit.graph["target"] == 1
    assert circuit.graph["target_text"] == "1 (ankle boot)"
    assert "target 1 (ankle boot)" in texts(plots.plot_circuit(circuit))
    assert "target 'boot'" in texts(plots.plot_circuit(circuit, classes=["coat", "boot", "bag"]))
    found = db.contrast("key < 'k2'", "key >= 'k2'", target=2, draws=20)
    assert found.graph(5).graph["target_text"] == "2 (bag)"


def test_references(db):
    found = db.references(ng.Layer("0")[1], k=2, where="target = 1")
    assert found.classes == ("coat", "ankle boot", "bag")
    assert "ankle boot" in texts(plots.plot_references(found))


def test_unnamed_outputs_stay_numbers():
    m = ng.measure(nn.Linear(3, 2), torch.ones(1, 3), target=1, composite="epsilon")
    assert (m.classes, m.target_text()) == (None, "target 1")
