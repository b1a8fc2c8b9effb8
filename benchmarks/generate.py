"""Makes stores of any size without running a network, through the writer of an extraction.

The tables are those of a real measure: from the target down, unit j hands its relevance to the
units i below it by shares q(i|j) = a_i w_ij / d_j, with heavy-tailed weights w of both signs (fixed
by the seed, noisy in every input) and activations a that are heavy-tailed, zero for a varying share
of the units, and eight times larger in the units that a class has of its own in each layer.  What
d_j leaves over is the bias.  So rows are conserved and ``nrm-graph verify --sample 0`` holds, each
input misses 30 to 50 % of the dense edges, and classes have circuits.  There is no program: exact
measures are refused.

Two shapes: ``vgg``, the convolutions of VGG16 by channel with a dense head by neuron, about a
million edges an input; and ``small``, dense layers by neuron, about 40,000 edges an input.

    python benchmarks/generate.py PATH --edges 10e6 --shape vgg --seed 0
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.network.topology import BIAS
from nrm_graph.store.format import settings
from nrm_graph.store.format.schema import EDGES, NODES, Record
from nrm_graph.store.write.writer import Writer

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROGRAM = "{}"
OWN_SHARE, OWN_FACTOR = 0.05, 8.0
"""Share of a layer's units that a class has of its own, and how much more active they are."""


@dataclass(frozen=True)
class Layer:
    """Name, kind and shape of a layer; units are its channels where it is a convolution."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def units(self) -> int:
        """Number of units."""
        return self.shape[0]


def _vgg() -> tuple[Layer, ...]:
    layers = [Layer("x", "input", (3, 240, 240))]
    size, position = 240, 0
    for block, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(block):
            layers.append(Layer(f"features.{position}", "convolution", (channels, size, size)))
            position += 2
        size, position = size // 2, position + 1
    head = [Layer(f"classifier.{3 * i}", "dense", (n,)) for i, n in enumerate((64, 128, 256, 5))]
    return (*layers, *head)


SHAPES = {
    "vgg": _vgg(),
    "small": (
        Layer("x", "input", (100,)),
        *(Layer(f"{2 * i}", "dense", (n,)) for i, n in enumerate((160, 160, 128, 64, 10))),
    ),
}


class Source:
    """Records of a shape, each of which depends on the seed and its number alone.

    Parameters
    ----------
    shape : str
        ``vgg`` or ``small``.
    seed : int
        Fixes weights, activations and circuits of the classes.
    """

    def __init__(self, shape: str, seed: int) -> None:
        self.layers = SHAPES[shape]
        self.seed = seed
        self.classes = self.layers[-1].units
        rng = np.random.default_rng([seed, 0])
        sizes = [layer.units for layer in self.layers]
        self.usual = [np.exp(rng.standard_normal(n)) for n in sizes]
        self.own = [
            [rng.choice(n, max(1, round(OWN_SHARE * n)), replace=False) for n in sizes]
            for _ in range(self.classes)
        ]
        self.weights = [
            (np.exp(1.5 * rng.standard_normal(pair)) * rng.choice([1, 1, 1, 1, -1], pair)).astype(
                np.float32
            )
            for pair in zip(sizes[1:], sizes[:-1], strict=True)
        ]

    def settings(self) -> dict[str, Any]:
        """Return what ``store.json`` says."""
        single = [len(layer.shape) == 1 for layer in self.layers]
        return {
            "program_hash": hashlib.sha256(PROGRAM.encode()).hexdigest(),
            "composite": {"name": "generated"},
            "layers": [
                {
                    "layer_id": i,
                    "name": layer.name,
                    "kind": layer.kind,
                    "shape": list(layer.shape),
                    "resolution": "neuron" if single[i] else "channel",
                    "n_units": layer.units,
                    "depth": i,
                    "aliases": [],
                }
                for i, layer in enumerate(self.layers)
            ],
            "groups": [[i + 1, i, w.size] for i, w in enumerate(self.weights)],
            "pruned": [],
            "coverage": 1.0,
            "top": None,
            "mantissa_bits": None,
            "classes": [f"c{c}" for c in range(self.classes)],
            "preprocessing": None,
            "versions": {"benchmark": "generate.py"},
        }

    def record(self, number: int) -> Record:
        """Return one input; its class is its number modulo the number of classes."""
        rng = np.random.default_rng([self.seed, 1, number])
        target = number % self.classes
        nodes, edges = self._tables(rng, target)
        key = f"input{number:06d}"
        return Record(
            key=key,
            target=target,
            label=f"c{target}",
            predicted=target,
            logit=float(5 + rng.standard_normal()),
            metadata={},
            content=hashlib.sha256(f"{self.seed}:{key}".encode()).hexdigest(),
            tensor=None,
            nodes=nodes,
            edges=edges,
        )

    def _activations(self, rng: np.random.Generator, target: int) -> list[NDArray[np.float64]]:
        """Activation of every unit by layer, zero where it is inactive."""
        found = []
        active = rng.uniform(0.7, 0.82)  # so 30 to 50 % of the pairs are absent
        for usual, own in zip(self.usual, self.own[target], strict=True):
            values = usual * np.exp(0.5 * rng.standard_normal(len(usual)))
            values *= rng.random(len(usual)) < active
            values[own] = OWN_FACTOR * usual[own] * np.exp(0.5 * rng.standard_normal(len(own)))
            found.append(values)
        found[-1][:] = 0
        found[-1][target] = 1
        return found

    def _tables(self, rng: np.random.Generator, target: int) -> tuple[pa.Table, pa.Table]:
        activations = self._activations(rng, target)
        nodes: list[list[tuple[Any, ...]]] = []
        edges: list[list[tuple[Any, ...]]] = []
        relevance = np.ones(1)
        for dst in range(len(self.layers) - 1, 0, -1):
            upper, lower = (np.flatnonzero(activations[i]) for i in (dst, dst - 1))
            w = self.weights[dst - 1][np.ix_(upper, lower)]
            w *= 1 + np.float32(0.6) * rng.standard_normal(w.shape, np.float32)
            w *= activations[dst - 1][lower].astype(np.float32)
            signed, size = w.sum(1, dtype=np.float64), np.abs(w).sum(1, dtype=np.float64)
            spare = 0.01 * rng.exponential(size=len(upper))
            q = w / (np.maximum(signed, 0.5 * size) * (1 + spare))[:, None]
            bias = 1 - q.sum(1)
            steps = q * relevance[:, None]
            single = len(self.layers[dst - 1].shape) == 1
            absorbed = bias * relevance
            grid = np.repeat(upper, len(lower)), np.tile(lower, len(upper))
            to_bias = upper, np.full(len(upper), BIAS)
            own = len(self.layers[dst].shape) == 1
            edges.append(
                [
                    _columns(dst, grid[0], dst - 1, grid[1], steps, q if single else None),
                    _columns(dst, to_bias[0], dst, to_bias[1], absorbed, bias if own else None),
                ]
            )
            nodes.append(
                [
                    (dst, np.array([BIAS]), np.array([absorbed.sum()]), np.array([np.nan])),
                    (dst, upper, relevance, activations[dst][upper]),
                ]
            )
            relevance = steps.sum(0)
        nodes.append([(0, lower, relevance, activations[0][lower])])
        return _table(nodes, NODES), _table(edges, EDGES)


def _columns(
    dst: int, upper: Any, src: int, lower: Any, relevance: Any, conditional: Any
) -> tuple[Any, ...]:
    shares = np.full(len(upper), np.nan, np.float32) if conditional is None else conditional
    return dst, upper, src, lower, relevance.ravel(), shares.ravel()


def _table(parts: list[list[tuple[Any, ...]]], schema: pa.Schema) -> pa.Table:
    """Join parts, made from the output down, in the order of a store; NaN is null, zeros go."""
    rows = [part for layer in reversed(parts) for part in layer]
    fields = schema.remove(0)
    columns = []
    for i, field in enumerate(fields):
        kind = field.type.to_pandas_dtype()
        lengths = [len(part[1]) for part in rows]
        values = [
            np.full(n, part[i], kind) if isinstance(part[i], int) else part[i].astype(kind)
            for n, part in zip(lengths, rows, strict=True)
        ]
        columns.append(np.concatenate(values))
    kept = columns[fields.get_field_index("relevance")] != 0
    return pa.Table.from_arrays(
        [
            pa.array(column[kept], field.type, from_pandas=field.nullable)
            for column, field in zip(columns, fields, strict=True)
        ],
        schema=fields,
    )


def generate(path: Path, edges: float, shape: str = "vgg", seed: int = 0) -> tuple[int, int]:
    """Write inputs until the store holds a number of edges; returns how many of both it got."""
    source = Source(shape, seed)
    settings.create(path, source.settings(), PROGRAM, {"w": np.zeros(1, np.float32)}, {})
    number = rows = 0
    with Writer(path) as writer:
        while rows < edges:
            record = source.record(number)
            writer.add(record)
            number, rows = number + 1, rows + len(record.edges)
    return number, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="folder of the store, new or empty")
    parser.add_argument("--edges", type=float, default=10e6, help="rows of edges, at least")
    parser.add_argument("--shape", choices=SHAPES, default="vgg")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    inputs, rows = generate(args.path, args.edges, args.shape, args.seed)
    print(f"{args.path}: {inputs:,} inputs, {rows:,} edges")


if __name__ == "__main__":
    main()
