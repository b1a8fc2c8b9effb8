"""Attention, norms, gates, interpolation and sums against their dense matrices, in float64.

The networks and their references are in ``attention_networks``.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import nrm_graph as ng
from reference import dense_attention
from reference.attention_networks import CASES, TARGET, both, traced
from reference.dense_attention import Reference, table

torch.set_num_threads(1)

# Float64 through a dozen layers; what cancels is counted in the scale.
TOLERANCE = 1e-10


RARE = {n for n in CASES if n.endswith("_plain") or "_True_" in n} | {"no_bias", "weights_axis"}
RARE |= {"interleaved", "one_key_head", "fused_bias", "group_flat_norm", "instance1d_norm"}
RARE |= {"excite_gate_first", "mixed", "class_token_rms", "layer_eps_norm", "group_one_norm"}
RARE |= {"linear_False_5", "bilinear_False_2x3", "bicubic_False_3x2"}


def marked(name: str, *values: object, rare: bool = False):
    """Parameters of a test, slow where the case is one of many alike."""
    return pytest.param(name, *values, marks=[pytest.mark.slow] if rare or name in RARE else [])


# A large stabiliser shows all of its shares; CP-LRP differs where two values are multiplied.
# Biases left out are quick where constants are routed in, or added.
QUICK = {"class_token", "joined", "mixed_sums"}
RULES = [
    marked(
        name,
        epsilon,
        cp,
        bias,
        rare=(epsilon, cp) == (1e-6, False) or (bias == "ignored" and name not in QUICK),
    )
    for bias in ("absorbed", "ignored")
    for name, (make, _) in CASES.items()
    for epsilon, cp in ((0.05, False), (1e-6, False), (0.05, True))
    if not cp or not isinstance(make, functools.partial)
]
every_rule = pytest.mark.parametrize(("name", "epsilon", "cp", "bias"), RULES)


def names(ref: Reference, m: ng.Measure) -> dict[str, str]:
    """Names that the package gives the layers, which come in the same order."""
    found = [(layer.kind, layer.shape) for layer in m.topology.layers]
    assert found == list(zip(ref.kinds, ref.shapes, strict=True))
    return {mine: layer.name for mine, layer in zip(ref.names, m.topology.layers, strict=True)}


def close(found, expected, scale: float, what: str = "") -> None:
    expected = np.asarray(expected, np.float64)
    found = np.asarray(found, np.float64).reshape(expected.shape)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=TOLERANCE * max(1.0, scale), err_msg=what
    )


def variation(ref: Reference, relevance: np.ndarray) -> float:
    """What rounding is relative to: the largest sum of |R(j -> i)| of a layer."""
    flow = np.abs(relevance) * (np.abs(ref.matrix()).sum(1) + np.abs(ref.absorbed()).sum(0))
    return max(float(flow[ref.slice(name)].sum()) for name in ref.names)


@every_rule
def test_every_layer_and_every_pseudo_neuron(name, epsilon, cp, bias):
    ref, m = both(name, epsilon, cp, bias)
    relevance, lost = ref.relevance(TARGET), ref.absorbed()
    scale = variation(ref, relevance)
    report = {row["layer"]: row for row in m.report().to_pylist()}
    for mine, theirs in names(ref, m).items():
        here = relevance[ref.slice(mine)]
        close(m.marginal(theirs, by="neuron"), here.reshape(m.topology.layer(theirs).shape), scale)
        row = report[theirs]
        for kind, share in zip(
            ("bias", "stabilizer", "remainder"), lost[:, ref.slice(mine)], strict=True
        ):
            close(row[kind] or 0.0, here @ share, scale, f"{kind} of {theirs}")
        close(m.cut(theirs).total, 1.0, scale, theirs)


def reached(ref: Reference) -> np.ndarray:
    """Neurons that a walk of non-zero weight passes through."""
    q, found = ref.matrix() != 0, np.zeros(ref.offsets[-1], bool)
    found[ref.offsets[-2] + TARGET] = True
    for j in reversed(range(len(found))):
        if found[j]:
            found |= q[j]
    return found


@every_rule
def test_every_edge_is_q(name, epsilon, cp, bias):
    ref, m = both(name, epsilon, cp, bias)
    matrix, lost, relevance = ref.matrix(), ref.absorbed(), ref.relevance(TARGET)
    scale, live = variation(ref, relevance), reached(ref)
    size = dict(zip(ref.names, np.diff(ref.offsets), strict=True))
    for upper, above in names(ref, m).items():
        own = ref.slice(upper)
        there = relevance[own][:, None]
        for lower, below in names(ref, m).items():
            q = matrix[own, ref.slice(lower)]
            info = m.topology.layer(above)
            if m.topology.layer(below).layer_id not in m.topology.sources(info.layer_id):
                assert not q.any(), (upper, lower)
                continue
            # A complete list at the neuron level, and what the tables of a store hold.
            flow, found = table(m.edges(above, below, by="neuron"), *q.shape)
            # Behind a ReLU, what is not positive need not have a kernel: no walk arrives there.
            close(found[live[own]], q[live[own]], np.abs(q).max(), f"q {above} {below}")
            assert ((np.abs(found - q) < TOLERANCE * np.abs(q).max()) | (found == 0)).all()
            close(flow, there * q, scale, f"edges {above} {below}")
            flow, found = table(m.edges(above, below), *q.shape)
            close(found, q * live[own, None], np.abs(q).max(), f"table q {above} {below}")
            close(flow, there * q, scale, f"table {above} {below}")
        if not size[upper] or ref.kinds[ref.names.index(upper)] == "input":
            continue
        for rows in (m.edges(above, above, by="neuron"), m.edges(above, above)):
            shares = {-1: lost[0, own], -2: lost[1, own], dense_attention.REMAINDER: lost[2, own]}
            units = rows["src_unit"].to_numpy()
            assert set(units) <= set(shares)
            for unit, share in shares.items():
                mine = units == unit
                at = rows["dst_unit"].to_numpy()[mine]
                found, flow = np.zeros(size[upper]), np.zeros(size[upper])
                found[at] = rows["conditional"].to_numpy()[mine]
                flow[at] = rows["relevance"].to_numpy()[mine]
                here = live[own]
                close(found[here], share[here], np.abs(share).max(), f"{unit} of {above}")
                close(flow, relevance[own] * share, scale, f"{unit} of {above}")


@every_rule
def test_columns_of_the_package_sum_to_one(name, epsilon, cp, bias):
    """By its own numbers alone, pseudo-edges included."""
    _, m = both(name, epsilon, cp, bias)
    _, rows = m.tables()
    for layer in m.topology.layers:
        if layer.kind == "input":
            continue
        mine = rows["dst_layer"].to_numpy() == layer.layer_id
        at, q = rows["dst_unit"].to_numpy()[mine], rows["conditional"].to_numpy()[mine]
        total = np.bincount(at, q, layer.n_neurons)[np.unique(at)]
        size = np.bincount(at, np.abs(q), layer.n_neurons).max()
        close(total, np.ones(total.shape), size, layer.name)


# Tables of groups


@functools.cache
def partitions(name: str, how: str) -> dict[str, object]:
    """A resolution for every layer; ``mixed`` draws one for each, partitions of no order too."""
    layers = both(name, 1e-6, False)[1].topology.layers
    if how != "mixed":
        return {layer.name: how for layer in layers}
    rng, found = np.random.default_rng(len(name)), {}
    for layer in layers:
        choice = str(rng.choice(["neuron", "channel", "feature", "token", "head", "random"]))
        if choice == "random":
            count = int(rng.integers(1, min(3, layer.n_neurons) + 1))
            labels = np.concatenate(
                [np.arange(count), rng.integers(0, count, layer.n_neurons - count)]
            )
            choice = rng.permutation(labels).reshape(layer.shape)
        found[layer.name] = choice
    return found


@pytest.mark.parametrize(
    "how",
    ["mixed", *(pytest.param(h, marks=pytest.mark.slow) for h in ("token", "head"))],
)
@pytest.mark.parametrize("name", [marked(name) for name in CASES])
def test_tables_of_groups_are_sums_of_edges(name, how):
    """And of a condition as well."""
    _, x, program = traced(name)
    ref, single = both(name, 1e-6, False)
    m = ng.measure(
        program,
        x,
        target=TARGET,
        composite=ng.composites.attn_lrp(),
        dtype="float64",
        resolution=partitions(name, how),
    )
    relevance, matrix, lost = ref.relevance(TARGET), ref.matrix(), ref.absorbed()
    scale = variation(ref, relevance)
    layers = [layer.name for layer in m.topology.layers]
    rng = np.random.default_rng(0)
    groups = {theirs: m.partitions[i].labels.ravel() for i, theirs in enumerate(layers)}
    given = None
    for layer in rng.permutation(layers[1:-1]):  # one that carries relevance
        info = m.topology.layer(str(layer))
        event = ng.Layer(info.name)[rng.random(info.shape) < 0.7]
        if abs(single(event)) > 1e-2 * scale:
            given = m.given(event), single.given(event), scale / abs(single(event))
            break

    def grouped(flow: np.ndarray, above: str, below: str) -> np.ndarray:
        found = np.zeros((groups[above].max() + 1, groups[below].max() + 1))
        np.add.at(found, (groups[above][:, None], groups[below][None]), flow)
        return found

    for upper, above in names(ref, m).items():
        own = ref.slice(upper)
        for lower, below in names(ref, m).items():
            ids = m.topology.layer(above).layer_id, m.topology.layer(below).layer_id
            if ids[1] not in m.topology.sources(ids[0]):
                continue
            flow = relevance[own][:, None] * matrix[own, ref.slice(lower)]
            expected = grouped(flow, above, below)
            rows = m.edges(above, below)
            close(sums(rows, expected.shape), expected, scale, f"{above} {below}")
            if given is not None:
                rows = given[1].edges(above, below)
                expected = grouped(sums(rows, flow.shape), above, below)
                rows = given[0].edges(above, below)
                close(sums(rows, expected.shape), expected, given[2], f"given {above} {below}")
        if upper == ref.names[0]:
            continue
        rows = m.edges(above, above)
        for unit, share in zip((-1, -2, dense_attention.REMAINDER), lost[:, own], strict=True):
            expected = np.bincount(groups[above], relevance[own] * share)
            mine = rows["src_unit"].to_numpy() == unit
            found = np.zeros(len(expected))
            np.add.at(found, rows["dst_unit"].to_numpy()[mine], rows["relevance"].to_numpy()[mine])
            close(found, expected, scale, f"{unit} of {above}")


def sums(rows, shape) -> np.ndarray:
    """Edges as a matrix of relevance; pairs are unique."""
    found = np.zeros(shape)
    at = rows["dst_unit"].to_numpy(), rows["src_unit"].to_numpy()
    assert len(set(zip(*at, strict=True))) == len(at[0])
    found[at] = rows["relevance"].to_numpy()
    return found
