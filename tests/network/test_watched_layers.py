"""Which layers are watched: those that are named, and those that make sense of a network."""

from __future__ import annotations

import functools
import json
import re

import pytest
from helpers.architectures import ARCHITECTURES, inputs, network
from helpers.make_snapshots import FOLDER, program

import nrm_graph as ng
from nrm_graph.network.layout import layout
from nrm_graph.network.topology import EdgeGroup, LayerInfo, Topology
from nrm_graph.network.tracing.trace import trace
from nrm_graph.network.watched_layers import automatic, matching


def read(lines):
    """Topology of lines ``name: kind [shape] <- name (edges), name = alias, alias``."""
    layers, groups, ids = [], [], {}
    for i, line in enumerate(lines):
        name, kind, shape, reads, also = re.fullmatch(
            r"(\S+): (\w+) (?:(\[.*?\]) )?<- (.*?)(?: = (.*))?", line
        ).groups()
        aliases = tuple(also.split(", ")) if also else ()
        layers.append(LayerInfo(i, name, kind, tuple(json.loads(shape or "[3]")), 0, aliases))
        sources = () if reads == "-" else re.sub(r" \(\d+\)", "", reads).split(", ")
        groups += [EdgeGroup(i, ids[source], 1) for source in sources]
        ids[name] = i
    return Topology(tuple(layers), tuple(groups))


@functools.cache
def snapshot(name):
    return read(json.loads((FOLDER / f"{name}.json").read_text()))


def names(topology):
    """What is watched, from input to output: easier to read."""
    ids = automatic(topology)
    assert list(ids) == sorted(set(ids), reverse=True)
    return [topology.layers[i].name for i in reversed(ids)]


# Names and patterns


def chosen(patterns, topology=None):
    topology = topology or snapshot("resnet18")
    return [topology.layers[i].name for i in matching(topology, patterns)]


def test_a_name_or_an_alias():
    assert chosen("layer1.0") == ["layer1.0"]
    assert chosen("layer1.0.relu") == ["layer1.0.conv1"]
    assert chosen("layer1.0.relu@1") == ["layer1.0"]
    assert chosen("output") == ["fc"]
    assert chosen(()) == []


def test_patterns_cross_dots_and_reach_aliases():
    assert chosen("layer?.?") == [f"layer{i}.{j}" for i in "4321" for j in "10"]
    assert chosen("layer1.0*") == ["layer1.0", "layer1.0.conv2", "layer1.0.conv1"]
    assert chosen("layer[12].1.bn?") == [f"layer{i}.1.conv{j}" for i in "21" for j in "21"]
    assert len(chosen("*")) == len(snapshot("resnet18").layers)


def test_from_output_to_input_each_once():
    assert chosen(["x", "layer1.0", "layer1.?", "fc"]) == ["fc", "layer1.1", "layer1.0", "x"]


def test_a_name_is_not_read_as_a_pattern():
    topology = read(["x: input <- -", "a[0]: dense <- x", "a0: dense <- a[0]"])
    assert chosen("a[0]", topology) == ["a[0]"]
    assert chosen("a[[]0]", topology) == ["a[0]"]
    assert chosen("a[01]", topology) == ["a0"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("layer9.0", r"no layer 'layer9.0': did you mean .*layer4.0"),
        (["layer1.*", "layer9.*"], r"no layer 'layer9.\*': did you mean layer"),
        ("Layer1.*", r"no layer 'Layer1.\*'"),
        ([3], "names or patterns, strings; found 3"),
    ],
)
def test_what_matches_nothing_is_refused(patterns, message):
    with pytest.raises(ng.EventError, match=message):
        matching(snapshot("resnet18"), patterns)


# The automatic choice: whole networks

CONVOLUTIONS = {
    "vgg16": [
        *(f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
        *("classifier.0", "classifier.3"),
    ],
    "resnet18": ["conv1", *(f"layer{i}.{j}" for i in "1234" for j in "01")],
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_residual_blocks(name):
    assert names(snapshot(name)) == CONVOLUTIONS[name]


def test_every_layer_of_a_dense_block():
    expected = ["features.conv0"]
    for block, size in enumerate((6, 12, 24, 16), 1):
        stem = f"features.denseblock{block}"
        expected += [f"{stem}.denselayer{i}.conv2" for i in range(1, size + 1)]
        expected += [f"features.transition{block}.conv"] if block < 4 else []
    assert names(snapshot("densenet121")) == expected


def test_heads_and_neurons_of_transformers():
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    parts = [f"{b}.{part}" for b in blocks for part in ("self_attention.attention", "mlp.0")]
    assert names(snapshot("vit_b_16")) == parts
    depths = ((1, 2), (3, 2), (5, 6), (7, 2))
    blocks = [f"features.{i}.{j}" for i, depth in depths for j in range(depth)]
    parts = [f"{b}.{part}" for b in blocks for part in ("attn.attention", "mlp.0")]
    assert names(snapshot("swin_t")) == parts


@pytest.mark.slow
def test_blocks_and_what_is_between_their_stages():
    expected = ["features.0.0"]
    for stage, size in ((1, 3), (3, 3), (5, 9), (7, 3)):
        expected += [f"features.{stage - 1}.1"] if stage > 1 else []
        expected += [f"features.{stage}.{i}" for i in range(size)]
    assert names(layout(program("convnext_tiny", 64)).topology) == expected


def both(stem, *parts):
    """Parts of two layers of a transformer."""
    return [f"{stem}{i}.{part}" for i in (0, 1) for part in parts]


ALL = {
    "vit": both("encoder.layers.encoder_layer_", "self_attention.attention", "mlp.0"),
    "gpt2": both("model.transformer.h.", "attn.attention", "mlp.c_fc"),
    "bert": [
        *both("model.bert.encoder.layer.", "attention.self.attention", "intermediate.dense"),
        "model.bert.pooler.dense",
    ],
    "llama": both("model.model.layers.", "self_attn.attention", "mlp.gate"),
    "mobilenet_v3": [
        *("features.0.0", "features.1.block.2.0", "features.2.block.2.0", "features.3"),
        *("features.4.block.3.0", "features.5", "features.6", "features.7.block.3.0"),
        *("features.8", "features.9.block.3.0", "features.10", "features.11"),
        *("features.12.0", "classifier.0"),
    ],
    "efficientnet": [
        *("features.0.0", "features.1.0", "features.2.0.block.3.0", "features.2.1"),
        *("features.3.0.block.3.0", "features.4.0"),
    ],
    "regnet_y": [
        *("stem.0", "trunk_output.block1.block1-0"),
        *("trunk_output.block2.block2-0", "trunk_output.block2.block2-1"),
    ],
    "googlenet": [
        *("conv1.conv", "conv2.conv", "conv3.conv"),
        *(
            f"inception{block}.branch{branch}.conv"
            for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
            for branch in ("1", "2.1", "3.1", "4.1")
        ),
    ],
    "shufflenet": [
        "conv1.0",
        *(
            f"stage{i}.{branch}"
            for i in (2, 3, 4)
            for branch in ("0.branch1.2", "0.branch2.5", "1.branch2.5")
        ),
        "conv5.0",
    ],
    "squeezenet": [
        "features.0",
        *(f"features.{i}.expand{k}x{k}" for i in (3, 4, 6, 7, 9, 10, 11, 12) for k in (1, 3)),
    ],
    "unet": ["a.0", "b.0", "c.0", "up", "d.0", "e.0"],
    "signal": ["0", "4"],
    "two_inputs": ["image.0", "gate@1", "record@1", "head.0"],
    "graph": ["first", "dense", "dense_1", "second"],
    "lstm": [f"rnn.gate_{i}" for i in (1, 4, 7, 10, 12, 15, 18, 21)],
    "gru": [*(f"rnn.add_{i}" for i in (4, 9, 14, 19, 24, 29, 34)), "rnn"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name):
    xs = inputs(name)
    topology = layout(trace(network(name), xs if len(xs) > 1 else xs[0])).topology
    watched = names(topology)
    assert watched
    assert len(watched) <= 3 + len(topology.layers) * 3 // 4
    kinds = {topology.layer(layer).kind for layer in watched}
    assert kinds <= {"convolution", "dense", "sum", "attention", "gate"}
    assert topology.output.name not in watched
    assert watched == ALL.get(name, watched)


# The automatic choice: one rule at a time, on layers written down


def test_hidden_layers_of_an_mlp():
    lines = ["x: input <- -", "0: dense <- x = 1", "2: layer_norm <- 0 = 3", "4: dense <- 2 = 5"]
    assert names(read([*lines, "6: dense <- 4 = output"])) == ["0", "4"]
    residual = ["a: dense <- x", "b.1: dense <- a", "b.2: dense <- b.1", "b: sum <- a, b.2"]
    assert names(read([lines[0], *residual, "head: dense <- b"])) == ["b.1", "b"]


def test_a_network_without_hidden_layers_has_none():
    lines = ["x: input <- -", "fc: dense <- x", "output: output <- fc"]
    assert names(read(lines)) == []
    assert names(read(lines[:2])) == []


def test_otherwise_all_that_computes():
    """A product of two values that a softmax reads, and an operation that a user registered."""
    lines = [
        "x: input <- -",
        "norm: layer_norm <- x",
        "scan: scan <- norm",
        "mean: average <- scan",
    ]
    assert names(read([*lines, "softmax: softmax <- mean"])) == ["scan"]


def test_scores_that_are_pooled_or_selected_are_the_output():
    lines = ["x: input <- -", "a: convolution <- x", "b: convolution <- a", "mean: average <- b"]
    assert names(read([*lines, "output: output <- mean"])) == ["a"]


STEM = ["x: input <- -", "stem: convolution <- x"]


def block(name, below, *, skip):
    """An inverted residual block with squeeze and excitation."""
    return [
        f"{name}.up: convolution <- {below}",
        f"{name}.se.pool: average <- {name}.up",
        f"{name}.se.fc1: convolution <- {name}.se.pool",
        f"{name}.se.fc2: convolution <- {name}.se.fc1",
        f"{name}.se.gate: gate <- {name}.up, {name}.se.fc2",
        f"{name}.down: convolution <- {name}.se.gate",
        *([f"{name}: sum <- {below}, {name}.down"] if skip else []),
    ]


def test_a_block_without_a_skip_is_watched_like_its_siblings():
    lines = [*STEM, *block("s1.0", "stem", skip=False), *block("s2.0", "s1.0.down", skip=False)]
    lines += block("s2.1", "s2.0.down", skip=True)
    end = ["pool: average <- s2.1", "fc: dense <- pool"]
    assert names(read([*lines, *end])) == ["stem", "s1.0.down", "s2.0.down", "s2.1"]


@pytest.mark.parametrize("wrapper", ["", "net.", "model.net."])
def test_a_wrapper_changes_nothing(wrapper):
    """Nor does a skip around the whole network make it a block."""
    lines = [f"{wrapper}{line}" for line in block("b", "x", skip=True)]
    lines = ["x: input <- -", *(re.sub(r"(?<=[-,] )b", f"{wrapper}b", line) for line in lines)]
    lines += [f"{wrapper}head: convolution <- {wrapper}b", f"{wrapper}add: sum <- {wrapper}head, x"]
    assert names(read(lines)) == [f"{wrapper}b", f"{wrapper}head"]


def test_a_block_that_ends_with_a_normalisation():
    lines = [*STEM, "b.conv: convolution <- stem", "b.add: sum <- stem, b.conv"]
    lines += ["b.norm: batch_norm <- b.add", "b.pool: average <- b.norm", "fc: dense <- b.pool"]
    assert names(read(lines)) == ["stem", "b.add"]


def test_a_block_called_again():
    lines = [*STEM, "b.conv: convolution <- stem", "b: sum <- stem, b.conv"]
    lines += ["b.conv@1: convolution <- b", "b@1: sum <- b, b.conv@1", "fc: dense <- b@1"]
    assert names(read(lines)) == ["stem", "b", "b@1"]


def test_branches_that_are_concatenated():
    lines = [*STEM, "i.a.0: convolution <- stem", "i.a.1: convolution <- i.a.0"]
    lines += ["i.b: convolution <- stem", "next: convolution <- i.a.1, i.b", "fc: dense <- next"]
    assert names(read(lines)) == ["stem", "i.a.1", "i.b", "next"]


def test_a_skip_of_a_network_without_modules():
    """Its convolutions are in no block."""
    lines = [*STEM, "conv: convolution <- stem", "add: sum <- stem, conv", "fc: dense <- add"]
    assert names(read(lines)) == ["stem", "conv"]


def test_convolutional_blocks_beside_attention():
    lines = [*STEM, "b.conv: convolution <- stem", "b: sum <- stem, b.conv"]
    lines += ["t.qkv: dense <- b", "t.product: product <- t.qkv", "t.weights: softmax <- t.product"]
    lines += ["t.mix: attention <- t.weights, t.qkv", "t.out: dense <- t.mix", "t: sum <- b, t.out"]
    lines += ["merge: convolution <- t", "norm: layer_norm <- merge", "fc: dense <- norm"]
    assert names(read(lines)) == ["b", "t.mix"]


def test_gated_products_and_fused_gates():
    lines = ["x: input <- -", "gate: dense <- x", "up: dense <- x", "product: gate <- gate, up"]
    assert names(read([*lines, "down: dense <- product"])) == ["product"]
    lines = ["x: input <- -", "both: dense <- x", "product: multiplication <- both"]
    assert names(read([*lines, "down: dense <- product"])) == ["product"]


def test_a_convolution_inside_the_mlp_of_a_transformer():
    lines = ["x: input <- -", "embed: convolution <- x", "qkv: dense <- embed"]
    lines += ["weights: softmax <- qkv", "mix: attention <- weights, qkv", "out: dense <- mix"]
    lines += ["add: sum <- embed, out", "norm: layer_norm <- add", "fc1: dense <- norm"]
    lines += ["dw: convolution <- fc1", "fc2: dense <- dw", "add_1: sum <- add, fc2"]
    assert names(read([*lines, "end: layer_norm <- add_1", "fc: dense <- end"])) == ["mix", "dw"]


@pytest.mark.parametrize("pooled", [False, True])
def test_states_of_a_plain_recurrent_cell(pooled):
    lines = ["x: input <- -", "c.ih: dense <- x", "c.add: sum <- c.ih", "c.hh: dense <- c.add"]
    lines += ["c.add_1: sum <- c.ih, c.hh", "c.hh@1: dense <- c.add_1"]
    lines += ["c.add_2: sum <- c.ih, c.hh@1"]
    lines += ["mean: average <- c.add, c.add_1, c.add_2"] if pooled else []
    lines += [f"head: dense <- {'mean' if pooled else 'c.add_2'}"]
    assert names(read(lines)) == ["c.add", "c.add_1", "c.add_2"]


def test_layers_that_a_transformer_shares_are_no_recurrent_cell():
    lines = ["x: embedding <- -", "embed: dense <- x"]
    for call, below in (("", "embed"), ("@1", "norm")):
        lines += [f"qkv{call}: dense <- {below}", f"weights{call}: softmax <- qkv{call}"]
        lines += [f"mix{call}: attention <- weights{call}, qkv{call}"]
        lines += [f"out{call}: dense <- mix{call}", f"add{call}: sum <- {below}, out{call}"]
        lines += [f"norm{call}: layer_norm <- add{call}"]
    assert names(read([*lines, "head: dense <- norm@1"])) == ["mix", "mix@1"]
