"""Random stores without a network, and their rows as dense arrays, read without the package."""

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from helpers import tiny_stores

from nrm_graph.store.format.schema import Record, content_hash
from nrm_graph.store.write.writer import Writer

SIZES = (6, 5, 3)  # neurons of the layers x, 0 and 1


def layers(sizes=SIZES):
    rows = [dict(row) for row in tiny_stores.LAYERS]
    for row, size in zip(rows, sizes, strict=True):
        row |= {"shape": [size], "n_units": size}
    return rows


def edge_list(sizes=SIZES):
    """Every edge of the network, pseudo-edges too: (dst_layer, dst_unit, src_layer, src_unit)."""
    found = []
    for layer in (1, 2):
        for dst in range(sizes[layer]):
            found += [(layer, dst, layer - 1, src) for src in range(sizes[layer - 1])]
            found += [(layer, dst, layer, pseudo) for pseudo in (-1, -2)]
    return found


def node_list(sizes=SIZES):
    units = [(layer, unit) for layer in range(3) for unit in range(sizes[layer])]
    return units + [(layer, pseudo) for layer in (1, 2) for pseudo in (-1, -2)]


def make(path, sizes=SIZES, **changes):
    groups = [[1, 0, sizes[0] * sizes[1]], [2, 1, sizes[1] * sizes[2]]]
    return tiny_stores.make(path, layers=layers(sizes), groups=groups, **changes)


def record(key, target, edges, values, *, label=None, logit=1.0, nodes=None, metadata=None):
    """Record of one pair: values 0 are absent rows; ``nodes`` maps (layer, unit) to relevance."""
    x = np.frombuffer(key.encode().ljust(12, b" ")[:12], np.uint8).astype(np.float32)
    order = sorted(range(len(edges)), key=lambda i: (edges[i][0], edges[i][2], *edges[i]))
    rows = [(*edges[i], values[i]) for i in order if values[i] != 0]
    dst_layer, dst, src_layer, src, relevance = zip(*rows, strict=True) if rows else [()] * 5
    held = sorted((nodes or {(0, 0): 1.0}).items())
    return Record(
        key=key,
        target=target,
        label=label,
        predicted=0,
        logit=float(logit),
        metadata=metadata or {},
        content=content_hash(x),
        tensor=x,
        nodes=pa.table(
            {
                "layer_id": pa.array([layer for (layer, _), _ in held], pa.int16()),
                "unit": pa.array([unit for (_, unit), _ in held], pa.int32()),
                "relevance": pa.array([float(r) for _, r in held], pa.float32()),
                "activation": pa.array(
                    [None if unit < 0 else 1.5 * unit for (_, unit), _ in held], pa.float32()
                ),
            }
        ),
        edges=pa.table(
            {
                "dst_layer": pa.array(dst_layer, pa.int16()),
                "dst_unit": pa.array(dst, pa.int32()),
                "src_layer": pa.array(src_layer, pa.int16()),
                "src_unit": pa.array(src, pa.int32()),
                "relevance": pa.array(np.array(relevance, np.float32)),
                "conditional": pa.nulls(len(rows), pa.float32()),
            }
        ),
    )


def heavy(rng, shape, present=0.6):
    """Signed heavy tails, absent at random; every column is absent from some row."""
    values = rng.standard_t(1.5, shape) * rng.lognormal(0, 1, shape[1])
    values[rng.random(shape) > present] = 0
    values[rng.integers(shape[0], size=shape[1]), np.arange(shape[1])] = 0
    return values.astype(np.float32)


def random_store(path, seed, keys=14, targets=1, duplicates=3, shard_inputs=4, present=0.6):
    """Make a store of several shards in which some pairs stand twice, with other rows.

    Every edge is missing from some input.  A key is ``k0``, ``k1``, ..., with the targets 0 to
    ``targets`` - 1; labels are ``cat`` and ``dog`` in turn.
    """
    rng = np.random.default_rng(seed)
    edges, nodes = edge_list(), node_list()
    pairs = [(f"k{k}", t) for k in range(keys) for t in range(targets)]
    values = heavy(rng, (len(pairs), len(edges)), present)
    held = heavy(rng, (len(pairs), len(nodes)), present)

    def made(i, key, target):
        own = {n: v for n, v in zip(nodes, held[i], strict=True) if v}
        return record(
            key,
            target,
            edges,
            values[i],
            label=("cat", "dog")[int(key[1:]) % 2],
            logit=rng.normal(2, 3),
            nodes=own,
            metadata={"fold": int(key[1:]) % 3},
        )

    make(path)
    # Both look at the store before either commits, so neither knows of the other's pairs.
    with Writer(path, shard_inputs=shard_inputs) as one, Writer(path) as other:
        for i, pair in enumerate(pairs):
            one.add(made(i, *pair))
        for i in rng.choice(len(pairs), duplicates, replace=False):
            other.add(made((i + 1) % len(pairs), *pairs[i]))
    return path


@dataclass
class Dense:
    """What a store holds, in the order of input ids; edges and nodes in any order."""

    ids: np.ndarray
    keys: list
    labels: list
    targets: np.ndarray
    logits: np.ndarray
    edges: list
    values: np.ndarray
    nodes: list
    held: np.ndarray
    activations: np.ndarray

    def where(self, mask):
        return Dense(
            self.ids[mask],
            [k for k, m in zip(self.keys, mask, strict=True) if m],
            [k for k, m in zip(self.labels, mask, strict=True) if m],
            self.targets[mask],
            self.logits[mask],
            self.edges,
            self.values[mask],
            self.nodes,
            self.held[mask],
            self.activations[mask],
        )

    def column(self, edge):
        return self.values[:, self.edges.index(tuple(edge))]


def read(path):
    """Read every row that counts, with pyarrow: of a pair that stands twice, the first shard's."""
    owner, inputs, edges, nodes = {}, {}, {}, {}
    for manifest in sorted((path / "shards").glob("*.json")):
        shard = manifest.stem
        tables = {
            name: pq.read_table(path / "shards" / f"{shard}.{name}.parquet").to_pylist()
            for name in ("inputs", "edges", "nodes")
        }
        for row in tables["inputs"]:
            owner.setdefault(row["input_id"], shard)
            inputs.setdefault(row["input_id"], row)
        for row in tables["edges"]:
            if owner[row["input_id"]] == shard:
                name = (row["dst_layer"], row["dst_unit"], row["src_layer"], row["src_unit"])
                edges[row["input_id"], name] = row["relevance"]
        for row in tables["nodes"]:
            if owner[row["input_id"]] == shard:
                name = row["layer_id"], row["unit"]
                nodes[row["input_id"], name] = row["relevance"], row["activation"]
        assert json.loads(manifest.read_text())["inputs"]
    ids = sorted(inputs)
    edge_names, node_names = (sorted({name for _, name in part}) for part in (edges, nodes))
    return Dense(
        np.array(ids),
        [inputs[i]["key"] for i in ids],
        [inputs[i]["label"] for i in ids],
        np.array([inputs[i]["target"] for i in ids]),
        np.array([inputs[i]["logit"] for i in ids], float),
        edge_names,
        np.array([[edges.get((i, e), 0.0) for e in edge_names] for i in ids], float),
        node_names,
        np.array([[nodes.get((i, n), (0.0, 0))[0] for n in node_names] for i in ids], float),
        np.array([[nodes.get((i, n), (0.0, 0))[1] or 0.0 for n in node_names] for i in ids]),
    )
