"""Which choice of units does the real VGG16 need?  Ablation at equal budgets, on held-out crops.

Crops of four photographs; the circuits of half of them are made in three ways: of the strongest
edges, of connected edges, and of a reduced graph.  As many units of every layer are taken from
each, and ablated on the other half, beside random units and those of the largest gradient times
activation.  One line a choice: the area under the curve of the logit, as a share of the whole.

    python benchmarks/chosen_units.py [--crops 16] [--units 6]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.real_vgg16 import photographs, vgg16

import nrm_graph as ng
from nrm_graph.evaluate import faithfulness

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import networkx as nx

LAYERS = ["28", "24", "17"]


def crops(number: int) -> Iterator[dict[str, Any]]:
    """Yield crops of 180 x 180 pixels, enlarged again, every second of them held out."""
    generator = np.random.default_rng(0)
    images = list(photographs().items())
    for i in range(number):
        name, image = images[i // 2 % len(images)]
        y, x = generator.integers(0, 60, 2)
        part = image[None, :, y : y + 180, x : x + 180]
        large = torch.nn.functional.interpolate(part, (240, 240), mode="bilinear")
        yield {"input": large[0], "key": f"{name} {i}", "part": ("circuit", "test")[i % 2]}


def strongest(circuit: nx.DiGraph, layers: Sequence[str], count: int) -> nx.DiGraph:
    """Keep so many units of every layer, those of the largest |relevance|."""
    chosen = []
    for name in layers:
        units = [node for node in circuit if node[0] == name and node[1] >= 0]
        units.sort(key=lambda node: -abs(circuit.nodes[node]["relevance"]))
        chosen += units[:count]
    return circuit.subgraph(chosen).copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--units", type=int, default=6, help="of every layer")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        db = ng.extract(vgg16(), crops(options.crops), Path(folder) / "s.nrm", batch_size=1)
        inside = "part = 'circuit'"
        nodes = dict.fromkeys(LAYERS, options.units)
        db.materialize(name="reduced", watch=LAYERS, nodes=nodes, where=inside)
        mixed: dict[str, Any] = {"top": 2000, "weight": "logit", "mixed_targets": True}
        circuits = {
            "strongest edges": db.circuit(inside, connected=False, **mixed),
            "connected edges": db.circuit(inside, **mixed),
            "reduced graph": db.circuit(inside, tables="reduced", **mixed),
        }
        for name, circuit in circuits.items():
            few = strongest(circuit, LAYERS, options.units)
            counts = [sum(node[0] == layer for node in few) for layer in LAYERS]
            curves = faithfulness(
                db,
                few,
                "part = 'test'",
                rivals=["random", "gradient_x_activation"],
                fractions=[0.0, 0.5, 1.0],
                draws=5,
            )
            areas = [row for row in curves.areas().to_pylist() if row["score"] == "logit"]
            shares = ", ".join(f"{row['method']} {row['share']:.3f}" for row in areas)
            print(f"{name} ({counts} units of {LAYERS}): {shares}", flush=True)
        db.close()


if __name__ == "__main__":
    main()
