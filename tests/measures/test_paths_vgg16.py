"""Strongest paths of channels of a trained VGG16, certified, and the same as events."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx")
pytest.importorskip("skimage")

import torch
from helpers.real_vgg16 import photographs, vgg16

import nrm_graph as ng
from nrm_graph.measures.paths.unit_paths import strongest_paths

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("composite", "layers", "certified"),
    [
        ("epsilon_gamma", ["28", "26", "24", "21"], True),
        ("epsilon_plus", ["28", "26", "24", "21"], True),
        ("epsilon", ["28", "26", "24"], True),
        ("epsilon_gamma", ["32", "28", "21"], False),
    ],
)
def test_channel_paths_of_a_photograph(composite, layers, certified):
    m = ng.measure(vgg16(), photographs()["cat"], composite=composite)
    found = strongest_paths(m, 10, layers, beam=256 if certified else 32)
    assert found.certified == certified, found
    events = []
    for path in found:
        sets = [ng.Layer(layer)[unit] for layer, unit in path.units]
        event = sets[0]
        for other in sets[1:]:
            event = event & other
        events.append(event)
    expected = torch.tensor(m.many(events))
    relevance = torch.tensor([path.relevance for path in found], dtype=torch.float64)
    torch.testing.assert_close(relevance, expected, rtol=1e-3, atol=1e-7)
    assert (relevance.abs().diff() <= 0).all()
