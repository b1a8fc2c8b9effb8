"""What does a reduced graph of 200 nodes cost?  Ratios in one run, kernels at hand.

Against as many relevance passes from the output to the input, of the real VGG16 of the tests and of
a GPT-2 of random weights with 64 tokens; and, on the VGG16, against as many conditions of
zennit-crp, of which a few are timed.  CPU time of the process, one thread of torch; every round
runs all candidates once, in turn.

    python benchmarks/reduced.py [--rounds 3] [--conditions 4]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from crp.attribution import CondAttribution
from networks import language_model, real_vgg16
from zennit.composites import EpsilonGammaBox

import nrm_graph as ng
from nrm_graph.propagation.relevance_pass import relevance_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

NODES = 200


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def compared(name: str, measure: ng.Measure, other: Callable[[], int] | None, rounds: int) -> None:
    """Print what a reduced graph costs over as many passes, and over as many of another's."""

    def one_pass() -> None:
        relevance_pass(measure.state, measure.start, visit=lambda i, relevance: None)

    one_pass()  # makes the kernels
    passes: list[float] = []
    others: list[float] = []
    for _ in range(rounds):
        took = seconds(lambda: measure.reduced(nodes=NODES))
        passes.append(took / (NODES * min(seconds(one_pass) for _ in range(5))))
        if other is not None:
            start = time.process_time()
            number = other()
            others.append(took / (NODES * (time.process_time() - start) / number))
    reduced = measure.reduced(nodes=NODES)
    shares = ", ".join(f"{share:.2f}" for share in reduced.carried[1:])
    print(f"{name}: {reduced}, shares of sum |R| {shares}")
    print(f"{name}, over {NODES} passes: {statistics.median(passes):.2f}", flush=True)
    if others:
        print(f"{name}, over {NODES} conditions of zennit-crp: {statistics.median(others):.2f}")


def crp(network: nn.Module, x: Tensor, layers: list[str], number: int) -> int:
    """Run some conditions of zennit-crp, one channel of a layer each; how many they are."""
    attribution = CondAttribution(network)
    for k in range(number):
        box = EpsilonGammaBox(low=torch.zeros_like(x), high=torch.ones_like(x))
        layer = layers[k % len(layers)]
        attribution(
            x.clone().requires_grad_(True),
            [{"y": [0], layer: [k]}],
            box,
            record_layer=layers,
            init_rel=1,
        )
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--conditions", type=int, default=4)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    network, x, composite, _ = real_vgg16()
    convolutions = [
        name for name, part in network.named_modules() if isinstance(part, torch.nn.Conv2d)
    ]
    compared(
        "VGG16",
        ng.measure(network, x, composite=composite),
        lambda: crp(network, x, convolutions, options.conditions),
        options.rounds,
    )
    network, x, composite, _ = language_model()
    compared("GPT-2", ng.measure(network, x, composite=composite), None, options.rounds)


if __name__ == "__main__":
    main()
