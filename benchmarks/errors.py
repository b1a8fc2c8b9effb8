"""Are the errors that conditionals state never too small, and what do they cost?

Random sets of neurons whose relevance cancels, amplified from once to a million times, on a deep
residual network and on one with overlapping pools and saturated regions; the reference is the same
network with its channels in another order, in float64 and with the same decisions (see
``tests/reference/reordered.py``).  One line per figure; costs are CPU time of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference.reordered import case, tally

import nrm_graph as ng
from nrm_graph.propagation.relevance_pass import relevance_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from nrm_graph.measures.measure import Measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=500, help="of each network (500)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("residual", "pooled"):
        some = case(name)
        result = tally(some, arguments.sets)
        ratios, rough = np.array(result.ratios), np.array(result.rough)
        print(
            f"{name}: amplification {min(result.amplifications):.3g} to "
            f"{max(result.amplifications):.3g}, median {np.median(result.amplifications):.3g}"
        )
        print(
            f"{name}: {len(ratios)} of {arguments.sets} sets answered; {result.too_small} errors "
            f"above the stated one, the law off by more than stated in {result.law}"
        )
        print(
            f"{name}: stated error over max(true, 1e-6 of the value): median "
            f"{np.median(ratios):.3g}, largest {ratios.max():.3g}"
        )
        print(
            f"{name}: float32 alone off by more than 1 % in {np.mean(rough > 0.01):.0%}, by more "
            f"than 100 % in {np.mean(rough > 1):.1%} of the sets"
        )
        costs(name, some.measure)


def costs(name: str, m: Measure) -> None:
    """Print what events cost, over one whole relevance pass in float32."""
    layers = [layer.name for layer in m.topology.layers]
    upper, lower = ng.Layer(layers[-3])[0], ng.Layer(layers[2])[0]

    def spent(call: Callable[[], object]) -> float:
        times = []
        for _ in range(7):
            began = time.thread_time()
            call()
            times.append(time.thread_time() - began)
        return statistics.median(times)

    whole = spent(lambda: relevance_pass(m.state, m.start))
    _ = m._precisions.double.nodes(), m._precisions.single.nodes()
    known = {"precisions": m._precisions}
    first = spent(lambda: replace(m, _cache={})(lower))
    conditional = spent(lambda: replace(m, _cache=dict(known))(upper, given=lower))
    given = m.given(lower)
    further = spent(lambda: given(upper))
    print(
        f"{name}: over one float32 pass: first event {first / whole:.2f}, a conditional "
        f"{conditional / whole:.2f}, a further one {further / whole:.2f}"
    )


if __name__ == "__main__":
    main()
