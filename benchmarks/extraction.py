"""How fast is a complete extraction?  Ratios in one run, on the real VGG16 of the tests.

Prints one line per figure: a complete channel-level extraction of one input, written to disk,
against the model's own forward and full backward (a training step) and against one zennit
``EpsilonGammaBox`` heatmap; where its time goes; and bytes per stored edge.  Each round runs
every candidate once, in turn, so that drift of a shared machine hits all alike.

    python benchmarks/extraction.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.real_vgg16 import photographs, vgg16
from zennit.attribution import Gradient
from zennit.composites import EpsilonGammaBox

import nrm_graph as ng
from nrm_graph.network import units
from nrm_graph.propagation import prepared_network
from nrm_graph.propagation.forward import forward
from nrm_graph.rules import composites
from nrm_graph.tables import builder
from nrm_graph.tables.plan import plan

if TYPE_CHECKING:
    from collections.abc import Callable


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    network, trained = vgg16(), vgg16().requires_grad_(True)
    images = list(photographs().values())
    x = images[0][None]
    folder = Path(tempfile.mkdtemp())
    stores = [0]

    def training_step() -> None:
        trained.zero_grad()
        trained(x.clone().requires_grad_(True))[:, 0].sum().backward()

    def heatmap() -> None:
        box = EpsilonGammaBox(low=torch.zeros_like(x), high=torch.ones_like(x))
        with Gradient(network, box) as attributor:
            attributor(x.clone().requires_grad_(True), torch.eye(4)[[0]])

    def extract(count: int) -> float:
        """Extract photographs, repeated under new keys, into a new store; seconds in all."""
        stores[0] += 1
        rows = [{"input": images[i % 4], "key": str(i)} for i in range(count)]
        start = time.perf_counter()
        ng.extract(
            network,
            rows,
            folder / f"{stores[0]}.nrm",
            composite="epsilon_gamma_box",
            max_edges="all",
            progress=False,
        ).close()
        return time.perf_counter() - start

    program = ng.trace(network, x)
    net = prepared_network.network(program, composites.get("epsilon_gamma_box"), torch.float32)
    tables = plan(net, units.resolve(net.layout.topology))

    def compute() -> None:
        """Tables alone: nothing is traced or written."""
        state = forward(net, x)
        start = torch.zeros_like(state.output)
        start[0, int(state.output.argmax())] = 1.0
        builder.edge_tables(state, start, tables)

    def run_forward() -> None:
        forward(net, x)

    extract(1), training_step(), heatmap(), compute()  # warm up
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        times = {
            "training step": seconds(training_step),
            "zennit heatmap": seconds(heatmap),
            "forward alone": seconds(run_forward),
            "forward and tables": seconds(compute),
        }
        # One input's own cost: tracing and making the store happen once, whatever the number.
        one, seven = extract(1), extract(7)
        times["extraction, written"] = (seven - one) / 6
        for name, value in times.items():
            found.setdefault(name, []).append(value)
    step = found["training step"]
    for name, values in found.items():
        ratios = [v / s for v, s in zip(values, step, strict=True)]
        print(f"{name:<36} {statistics.median(ratios):5.2f} training steps")
    heat = found["zennit heatmap"]
    mine = found["extraction, written"]
    ratio = statistics.median(v / h for v, h in zip(mine, heat, strict=True))
    print(f"extraction, written / zennit heatmap: {ratio:.2f}")
    store = folder / f"{stores[0]}.nrm"
    with ng.open(store) as db:
        (count,) = db.sql("SELECT count(*) FROM edges").fetchall()[0]
    size = sum(f.stat().st_size for f in (store / "shards").glob("*.edges.parquet"))
    print(f"bytes per edge, complete channel tables, lossless: {size / count:.2f}")


if __name__ == "__main__":
    main()
