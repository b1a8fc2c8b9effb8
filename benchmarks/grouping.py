"""What multiplying grouped edges costs: products of channel edges against the exact joint.

Grouping neurons keeps single edges exact and destroys the Markov property, so the product of
conditionals along channels is no estimate of R(C1 & C2).  On the real VGG16 of the tests, from
the 12 strongest channels of conv5_2 to every channel of a layer below, prints the product's
error in L1, relative to the exact table; the correlation of the two; and how many of the 50
strongest pairs they share.

    python benchmarks/grouping.py [--photograph cat]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import nrm_graph as ng

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from nrm_graph.rules.composites import Composite

UPPER = "26"
LOWER = {"21": "conv4_3", "19": "conv4_2", "14": "conv3_3"}
"""Layers of the flat network; the upper one is conv5_2."""


def rules() -> dict[str, Composite]:
    """Composites of the comparison; dense layers have Epsilon."""
    return {
        "epsilon": ng.composites.epsilon(),
        "gamma 0.25 on convolutions": ng.composites.epsilon_gamma(gamma=0.25),
        "z+ on convolutions": ng.composites.composite(
            "plus",
            {
                "convolution": ng.rules.ZPlus(zero_params="bias"),
                "dense": ng.rules.Epsilon(),
            },
        ),
    }


class Row(NamedTuple):
    """One figure of the table."""

    composite: str
    layer: str
    error: float
    correlation: float
    overlap: float


def chained(m: ng.Measure, upper: str, lower: str) -> npt.NDArray[np.float64]:
    """Products of channel edges, summed over the channels between: a lumped Markov chain.

    The layers must follow one another without branches.
    """
    first, last = (m.topology.layer(name).layer_id for name in (upper, lower))
    table = np.diag(m.marginal(upper).astype(np.float64))
    for dst in range(first, last, -1):
        above, below = (m.topology.layers[i].name for i in (dst, dst - 1))
        relevance = m.marginal(above).astype(np.float64)
        rows = m.edges(above, below)
        edges = np.zeros((len(relevance), len(m.marginal(below))))
        edges[rows["dst_unit"], rows["src_unit"]] = rows["relevance"]
        known = np.abs(relevance) > 1e-12
        table[:, known] /= relevance[known]
        table[:, ~known] = 0.0
        table = table @ edges
    return table


def comparison(
    m: ng.Measure, upper: str, lowers: Sequence[str], strongest: int = 12, pairs: int = 50
) -> list[tuple[float, float, float]]:
    """Error, correlation and overlap of products, for each lower layer."""
    size = np.abs(m.marginal(upper))
    channels = np.sort(np.argsort(-size, kind="stable")[:strongest])
    found = []
    for lower in lowers:
        exact = m.joint(ng.Layer(upper).units(channels.tolist()), lower).values.astype(np.float64)
        product = chained(m, upper, lower)[channels]
        error = float(np.abs(product - exact).sum() / np.abs(exact).sum())
        correlation = float(np.corrcoef(product.ravel(), exact.ravel())[0, 1])
        best = [set(np.argsort(-np.abs(t).ravel())[:pairs].tolist()) for t in (exact, product)]
        found.append((error, correlation, len(best[0] & best[1]) / pairs))
    return found


def compare(photograph: str = "cat") -> list[Row]:
    """Every figure, for one photograph and its predicted class."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from helpers.real_vgg16 import photographs, vgg16

    x = photographs()[photograph][None]
    program = ng.trace(vgg16(), x)
    rows = []
    for name, composite in rules().items():
        m = ng.measure(program, x, composite=composite)
        figures = comparison(m, UPPER, list(LOWER))
        rows += [Row(name, LOWER[k], *f) for k, f in zip(LOWER, figures, strict=True)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photograph", default="cat")
    for row in compare(parser.parse_args().photograph):
        print(
            f"{row.composite}, conv5_2 to {row.layer}: relative L1 error {row.error:.3g}, "
            f"correlation {row.correlation:.2f}, overlap of the top 50 pairs {row.overlap:.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
