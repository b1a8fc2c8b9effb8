"""How fast are conditioned answers?  Ratios in one run, on the real VGG16 of the tests.

Prints one line per figure: complete conditional tables against the unconditional ones of the
same state; one conditional query, its forward run included, against one of zennit-crp's; and 64
rows of a joint table against 64 of its conditions.  Each round runs every candidate once, in
turn, so that drift of a shared machine hits all alike; ratios are medians over the rounds.

    python benchmarks/conditioning.py [--rounds 5] [--table-rounds 1] [--batch 16]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from crp.attribution import CondAttribution
from helpers.real_vgg16 import photographs, vgg16
from zennit.composites import EpsilonGammaBox

import nrm_graph as ng
from nrm_graph.measures.create import from_network
from nrm_graph.propagation import prepared_network
from nrm_graph.rules import composites

if TYPE_CHECKING:
    from collections.abc import Callable

UPPER, LOWER = "28", "21"
"""conv5_3 and conv4_3."""


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of every candidate in every round, in turn; ``warm`` runs one more round first."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(-int(warm), rounds):
        for name, call in calls.items():
            took = seconds(call)
            if i >= 0:
                found[name].append(took)
    return found


def ratio(found: dict[str, list[float]], mine: str, other: str) -> None:
    ratios = [a / b for a, b in zip(found[mine], found[other], strict=True)]
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"{mine} / {other}: {middle:.2g} (from {low:.2g} to {high:.2g})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table-rounds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16, help="of zennit-crp's 64 conditions")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    network, x = vgg16(), photographs()["cat"][None]
    program = ng.trace(network, x)
    net = prepared_network.network(program, composites.get("epsilon_gamma_box"), torch.float32)
    measure = from_network(net, x, "predicted")
    target = measure.target
    upper, lower = (int(abs(measure.marginal(name)).argmax()) for name in (UPPER, LOWER))
    A, B = ng.Layer(UPPER)[upper], ng.Layer(LOWER)[lower]

    def fresh() -> ng.Measure:
        """Return a measure that remembers no answer; the state has its kernels."""
        return replace(measure, _cache={})

    found = interleaved(
        {
            "conditional tables, one channel": lambda: fresh().given(B).tables(),
            "conditional tables, two channels": lambda: fresh().given(A & B).tables(),
            "conditional tables, a channel avoided": lambda: fresh().given(~B).tables(),
            "unconditional tables": lambda: fresh().tables(),
        },
        options.rounds,
    )
    for name in list(found)[:3]:
        ratio(found, name, "unconditional tables")

    def crp(conditions: list[dict[str, list[int]]]) -> None:
        box = EpsilonGammaBox(low=torch.zeros_like(x), high=torch.ones_like(x))
        attribution, data = CondAttribution(network), x.clone().requires_grad_(True)
        if len(conditions) == 1:
            attribution(data, conditions, box, record_layer=[LOWER], init_rel=1)
            return
        for _ in attribution.generate(
            data,
            conditions,
            box,
            record_layer=[LOWER],
            init_rel=1,
            batch_size=options.batch,
            verbose=False,
        ):
            pass

    def query() -> ng.Measure:
        """Return a measure of a new input: its forward run and its kernels are to be made."""
        return from_network(net, x, target)

    found = interleaved(
        {
            "one conditional query": lambda: query()(B, given=A),
            "one conditional query, upwards": lambda: query()(A, given=B),
            "a conditioned layer": lambda: query().given(A).marginal(LOWER),
            "zennit-crp": lambda: crp([{"y": [target], UPPER: [upper]}]),
        },
        options.rounds,
    )
    for name in list(found)[:3]:
        ratio(found, name, "zennit-crp")

    rows = ng.Layer(UPPER).units(range(64))
    conditions = [{"y": [target], UPPER: [k]} for k in range(64)]
    found = interleaved(
        {
            "64 rows of a joint table": lambda: query().joint(rows, LOWER),
            "64 conditions of zennit-crp": lambda: crp(conditions),
        },
        options.table_rounds,
        warm=False,  # minutes; and what is long is warm
    )
    ratio(found, "64 rows of a joint table", "64 conditions of zennit-crp")


if __name__ == "__main__":
    main()
