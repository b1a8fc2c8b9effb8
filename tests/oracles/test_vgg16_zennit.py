"""The stored nodes of a real VGG16 against zennit, an independent implementation."""

import warnings

import numpy as np
import pytest
import torch
from helpers.real_vgg16 import photographs, vgg16
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    ExcitationBackprop,
    LayerMapComposite,
    layer_map_base,
)
from zennit.rules import Epsilon, Gamma, NoMod
from zennit.types import Convolution

import nrm_graph as ng

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network():
    return vgg16()


@pytest.fixture(scope="module")
def images():
    return photographs()


def zennit_channels(net, x, composite, target):
    """Relevance at the output of every weighted layer, per channel, for a unit seed."""

    def keep(module, _, output):
        module.output = output
        output.retain_grad()

    weighted = {str(i): m for i, m in enumerate(net) if isinstance(m, nn.Conv2d | nn.Linear)}
    with Gradient(net, composite) as attributor:
        hooks = [m.register_forward_hook(keep) for m in weighted.values()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of zennit's in-graph hooks
            _, heatmap = attributor(x.clone().requires_grad_(True), torch.eye(4)[[target]])
    found = {
        name: m.output.grad[0].flatten(1).sum(1) if m.output.grad.ndim == 4 else m.output.grad[0]
        for name, m in weighted.items()
    }
    for hook in hooks:
        hook.remove()
    found["input"] = heatmap[0].sum((1, 2))
    return {name: value.double().numpy() for name, value in found.items()}


@pytest.mark.parametrize("name", ["epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1"])
def test_stored_nodes_equal_zennit(network, images, tmp_path, name):
    if name != "epsilon_gamma_box":  # of which all four photographs are compared
        images = {key: images[key] for key in ("cat", "rocket")}
    rows = [{"input": x, "key": key} for key, x in images.items()]
    path = tmp_path / "vgg.nrm"
    with ng.extract(
        network, rows, path, composite=name, max_edges="all", batch_size=1, progress=False
    ) as db:
        layers = {
            row["name"]: row for row in db.sql("SELECT * FROM layers").to_arrow_table().to_pylist()
        }
        for key, x in images.items():
            x = x[None]
            (target,) = db.sql("SELECT target FROM inputs WHERE key = ?", params=[key]).fetchall()[
                0
            ]
            composite = {
                "epsilon_plus": EpsilonPlus,
                "epsilon_gamma_box": lambda x=x: EpsilonGammaBox(
                    low=torch.zeros_like(x), high=torch.ones_like(x)
                ),
                "epsilon_alpha2_beta1": EpsilonAlpha2Beta1,
            }[name]()
            expected = zennit_channels(network, x, composite, target)
            nodes = db.sql("SELECT * FROM nodes", inputs=[key]).to_arrow_table().to_pandas()
            edges = db.sql("SELECT * FROM edges", inputs=[key]).to_arrow_table().to_pandas()
            sums = {}
            for layer_name, row in layers.items():
                mine = nodes[(nodes.layer_id == row["layer_id"]) & (nodes.unit >= 0)]
                found = np.zeros(row["n_units"])
                found[mine.unit] = mine.relevance
                sums[row["layer_id"]] = found
                if layer_name in expected:
                    wanted = expected[layer_name]
                    scale = np.abs(wanted).max()
                    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * scale)
            top = max(sums)
            for layer_id, found in sums.items():
                # Sums of float32 edges; relative to the layer's largest unit.
                tolerance = 1e-4 * np.abs(found).max()
                if layer_id != 0:
                    out = edges[edges.dst_layer == layer_id]
                    total = np.bincount(out.dst_unit, out.relevance, minlength=len(found))
                    np.testing.assert_allclose(total, found, rtol=0, atol=tolerance)
                if layer_id != top:
                    into = edges[(edges.src_layer == layer_id) & (edges.src_unit >= 0)]
                    total = np.bincount(into.src_unit, into.relevance, minlength=len(found))
                    np.testing.assert_allclose(total, found, rtol=0, atol=tolerance)
        m = db.measure("cat")
        variation = max(row["total_variation"] for row in m.report().to_pylist())
        for layer in m.topology.layers:
            assert m.cut(layer.name).total == pytest.approx(1.0, abs=64 * 2**-23 * variation)


def agree(m, expected):
    for layer, wanted in expected.items():
        found = np.asarray(m.marginal(layer), np.float64)
        # A denominator that the bias held up may be small: rounding is relative to what cancels.
        scale = max(1.0, np.abs(wanted).sum())
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * scale, err_msg=layer)


WITHOUT_BIASES = {
    "epsilon_plus": EpsilonPlus,
    "epsilon_alpha2_beta1": EpsilonAlpha2Beta1,
    "excitation_backprop": ExcitationBackprop,
}


@pytest.mark.parametrize("name", WITHOUT_BIASES)
def test_ignored_biases_equal_zennit_without_them(network, images, name):
    x = images["cat"][None]
    m = ng.measure(network, x, composite=ng.composites.get(name, "ignored"), resolution="auto")
    oracle = WITHOUT_BIASES[name](zero_params="bias")
    agree(m, zennit_channels(network, x, oracle, m.target))


class GammaOfWhatIsLeft(Gamma):
    """zennit's, but it decides by the sign of the output without its bias."""

    def __init__(self) -> None:
        super().__init__(zero_params="bias")
        *modifiers, _ = self.param_modifiers
        self.param_modifiers = [*modifiers, NoMod(zero_params="bias")]


def test_gamma_decides_by_what_is_left(network, images):
    """And zennit's own, which decides by the output with its bias, is another rule."""
    x = images["cat"][None]
    rules = ng.composites.epsilon_gamma(bias="ignored")
    m = ng.measure(network, x, composite=rules, resolution="auto")
    dense, theirs = (nn.Linear, Epsilon(zero_params="bias")), {}
    for gamma in (GammaOfWhatIsLeft(), Gamma(zero_params="bias")):
        oracle = LayerMapComposite([*layer_map_base(), (Convolution, gamma), dense])
        theirs[type(gamma)] = zennit_channels(network, x, oracle, m.target)
    agree(m, theirs[GammaOfWhatIsLeft])
    # Relevance below the last convolution is the first that Gamma has shared.  Where a bias held
    # neurons up sums of |R| are large (75 there), and float32 rounds by their size.
    last = m.marginal("28")
    assert np.abs(theirs[Gamma]["28"] - last).max() < 1e-5 * np.abs(last).sum()
    assert np.abs(theirs[Gamma]["input"] - m.marginal("input")).max() > 1
