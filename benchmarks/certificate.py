"""Do the laws of the measure hold on every architecture at its real input size, in float32?

For every network of ``support.py``, seeded random weights: edges sum to nodes from both sides; the
cuts through six layers sum to 1; for random events in three random layers
R(A | B) + R(A & B) = R(A) + R(B), R(~A) = 1 - R(A) and R(A & B) = R(A given B) R(B); a conditioned
measure sums to its event in its own layer, and its edges to its nodes.  Errors are printed
relative to the total variation: a layer's for edges (of a conditioned measure times its
amplification), the largest of any layer for events.  float32 has 6e-8 to a number.

    python benchmarks/certificate.py [names ...]
"""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING

import numpy as np
import support as real
import torch
from support import small

import nrm_graph as ng

if TYPE_CHECKING:
    from collections.abc import Mapping


def edges(m: ng.Measure, variation: Mapping[str, float]) -> float:
    """Largest difference of a unit's relevance and its edges, over its layer's variation."""
    return max(
        np.abs(found - relevance).max() / max(variation[layer.name], 1)
        for layer, relevance, found in small.edge_sums(m)
    )


def errors(m: ng.Measure, rng: np.random.Generator) -> dict[str, float]:
    """Errors of edges, cuts, laws and of a conditioned measure."""
    variation = {r["layer"]: r["total_variation"] for r in m.report().to_pylist()}
    layers, largest = m.topology.layers, max(1.0, *variation.values())
    found = {"edges": edges(m, variation), "cuts": 0.0, "laws": 0.0, "given": 0.0}
    for i in rng.choice(len(layers), min(6, len(layers)), replace=False):
        found["cuts"] = max(found["cuts"], abs(m.cut(layers[i].name).total - 1) / largest)
    chosen = rng.choice(len(layers), min(3, len(layers)), replace=False)
    masks = [rng.random(layers[i].shape) < 0.6 for i in chosen]
    sets = [ng.Layer(layers[i].name)[mask] for i, mask in zip(chosen, masks, strict=True)]
    for k, A in enumerate(sets):
        B = sets[(k + 1) % len(sets)]
        a, b, union, both, rest = m.many([A, B, A | B, A & B, ~A])
        found["laws"] = max(
            found["laws"], abs(union + both - a - b) / largest, abs(rest - 1 + a) / largest
        )
    for i, mask, B in zip(chosen, masks, sets, strict=True):
        try:
            given = m.given(B)
        except ng.UndefinedConditional:
            continue
        b = given.condition_relevance
        law = abs(given(sets[0]) * b - m(sets[0] & B))
        inside = given.marginal(layers[i].name, by="neuron")[mask].sum(dtype=np.float64)
        found["given"] = max(law, abs((inside - 1) * b)) / largest
        own = {r["layer"]: r["total_variation"] for r in given.report().to_pylist()}
        found["edges given"] = edges(given, own) / max(1.0, given.amplification)
        break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="titles; all by default")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for row in real.ROWS:
        if args.names and not any(name in row.title for name in args.names):
            continue
        torch.manual_seed(0)
        net = row.make()
        net = net.eval() if row.tokens else small.randomise(net, *row.shapes)
        xs = real.example(row, 0)
        m = ng.measure(net, xs if len(xs) > 1 else xs[0], composite=row.composite)
        found = errors(m, np.random.default_rng(0))
        print(
            row.title, *(f"{key} {value:.0e}" for key, value in found.items()), sep="  ", flush=True
        )


if __name__ == "__main__":
    main()
