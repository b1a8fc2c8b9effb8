"""Names, kinds, shapes and edge groups of well-known networks stay what they are."""

import json

import pytest
from helpers.make_snapshots import FOLDER, NETWORKS, describe, program

QUICK = {"resnet18"}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
)
def test_topology(name):
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    assert describe(program(name)) == expected, "helpers/make_snapshots.py writes them anew"


def test_what_the_snapshots_say():
    """Spot checks of the rules for names, so that a wrong snapshot cannot be written by habit."""
    text = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in NETWORKS}
    lines = {name: {line.split(":")[0]: line for line in text[name]} for name in NETWORKS}
    assert all(found[0] == "x: input [3, 224, 224] <- -" for found in text.values())
    # Edges run through pooling and flattening.
    assert "<- features.28 (25088)" in lines["vgg16"]["avgpool"]
    assert "<- avgpool (102760448)" in lines["vgg16"]["classifier.0"]
    # The last sum of a block bears its path, and the activation's second call is its alias.
    assert lines["resnet18"]["layer1.0"].endswith("= layer1.0.relu@1")
    assert lines["resnet18"]["layer1.0.conv1"].endswith("= layer1.0.bn1, layer1.0.relu")
    block = "encoder.layers.encoder_layer_3"
    vit = lines["vit_b_16"]
    assert f"{block}.add" in vit
    assert f"{block}.self_attention.product: product [12, 197, 197]" in str(vit)
    assert f"{block}.self_attention.attention_weights: softmax [12, 197, 197]" in str(vit)
    assert f"{block}.self_attention.attention: attention [12, 197, 64]" in str(vit)
    assert "sum [197, 768]" in vit[block]
    assert "dense [64, 49, 288]" in lines["swin_t"]["features.1.0.attn.qkv"]
    for name, found in lines.items():
        for layer in found:
            assert not layer.startswith(("conv2d", "linear", "relu", "view", "add_", "mul")), name
