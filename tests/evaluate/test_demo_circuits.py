"""Class circuits of the demo network, from two thirds of its images, ablated on the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nrm_graph as ng
from nrm_graph.cli.demo.fashion_cnn import CLASSES, load_demo
from nrm_graph.evaluate import faithfulness, randomization

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    model, inputs = load_demo()
    rows = [{**row, "fold": i % 3} for i, row in enumerate(inputs)]
    path = tmp_path_factory.mktemp("demo") / "s.nrm"
    channels = {f"features.{k}": "channel" for k in (0, 3, 6)}
    options = {"target": "predicted", "resolution": channels, "progress": False}
    with ng.extract(model, rows, path, classes=CLASSES, **options) as db:
        yield model, {row["key"]: row["input"] for row in rows}, db


def test_circuits_beat_random_channels_and_edges(demo):
    model, images, db = demo
    below = {"units": 0, "edges": 0}
    for target, name in enumerate(CLASSES):
        circuit = db.circuit(f"label = '{name}' AND fold < 2", target=target, top=60)
        test = f"label = '{name}' AND fold = 2"
        for by, layers in (("units", ["features.6"]), ("edges", None)):
            found = faithfulness(db, circuit, test, by=by, layers=layers, draws=5, progress=False)
            areas = {r["method"]: r for r in found.areas().to_pylist() if r["score"] == "logit"}
            below[by] += areas["circuit"]["area"] < areas["random"]["area"]
            if by == "units":
                check(model, images, circuit, found, target)
    assert below == {"units": 10, "edges": 10}


def check(model, images, circuit, found, target):
    """The last step is what the network gives with those channels zeroed by a hook."""
    units = [unit for name, unit in circuit if name == "features.6" and unit >= 0]
    assert found.counts["features.6"][-1] == len(units)

    def zero(module, inputs, out):
        out = out.clone()
        out[:, units] = 0.0
        return out

    handle = model.get_submodule("features.7").register_forward_hook(zero)
    with torch.no_grad():
        logits = model(torch.stack([images[key] for key in found.keys])).numpy()
    handle.remove()
    np.testing.assert_allclose(found.values["circuit"][0, -1, :, 0], logits[:, target], atol=1e-4)


def test_randomized_parameters_change_a_circuit(demo):
    _, _, db = demo
    found = randomization(db, db.circuit("label = 'bag'", target=8, top=60), draws=3)
    k = found.layers.index("classifier.0")
    stage = found.stages.index("classifier.0")
    assert abs(found.correlation[:, stage, k].mean()) < 0.3
    assert abs(found.overlap[:, stage, k].mean() - found.strongest[k] / found.units[k]) < 0.15
