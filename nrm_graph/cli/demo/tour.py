"""The demo: a complete neuron-level store of the images that the package ships, and a tour."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.cli.output import text_table
from nrm_graph.events.sets import Layer
from nrm_graph.graphs.formats import graph_path, write_graph
from nrm_graph.store.format.files import local_path
from nrm_graph.store.format.place import check_place

if TYPE_CHECKING:
    import pyarrow as pa

    from nrm_graph.measures.measure import Measure

SHOWN = 120  # edges in the picture, at most

STRONGEST_FLOWS = """
SELECT src, src_unit, dst, dst_unit, relevance
FROM flows WHERE key = ? AND src_unit >= 0
QUALIFY row_number() OVER (PARTITION BY src, dst ORDER BY abs(relevance) DESC) <= 2
ORDER BY dst, abs(relevance) DESC
"""

# Exact zeros are not stored, so a mean divides by the number of inputs: never avg().
PER_CLASS = """
WITH counts AS (
    SELECT target, mode(label) AS class, count(*) AS images FROM inputs GROUP BY target
),
sums AS (
    SELECT i.target, n.unit, sum(CAST(n.relevance AS DOUBLE)) AS total
    FROM nodes n JOIN inputs i USING (input_id) JOIN layers l USING (layer_id)
    WHERE l.name = ? AND n.unit >= 0 GROUP BY i.target, n.unit
)
SELECT c.class, c.images, s.unit AS neuron, s.total / c.images AS mean_relevance
FROM sums s JOIN counts c USING (target)
QUALIFY row_number() OVER (PARTITION BY s.target ORDER BY s.total DESC) = 1
ORDER BY c.class
"""


def run(
    store_path: str | os.PathLike[str] = "nrm-demo.nrm",
    picture_path: str | os.PathLike[str] = "nrm-demo.png",
) -> None:
    """Extract the demo store, answer one question of each kind and write a picture.

    Parameters
    ----------
    store_path : path-like
        The store to write, or to continue.
    picture_path : path-like
        Picture of the strongest flows of one image (``.png``, ``.svg``, ...).
    """
    picture = graph_path(picture_path)
    check_place(local_path(store_path))

    from nrm_graph.cli.demo.fashion_cnn import CLASSES, load_demo
    from nrm_graph.extraction.extract import extract

    began = time.perf_counter()
    model, inputs = load_demo()
    images = len(inputs)
    print(f"A VGG-style network trained on Fashion-MNIST; {images} test images of ten classes.")
    print(f"Extracting the relevance of every neuron and edge into {store_path} ...")
    with extract(
        model,
        inputs,
        store_path,
        composite="epsilon_gamma",
        target="predicted",
        classes=CLASSES,
        preprocessing="pixels / 255",
    ) as db:
        edges = _rows(db.sql("SELECT count(*) AS n FROM edges"))["n"][0].as_py()
        print(
            f"{edges:,} edges, {edges // images:,} an image, "
            f"after {time.perf_counter() - began:.0f} s."
        )
        key = str(inputs[0]["key"])
        m = db.measure(key)
        target = CLASSES[m.target] if m.target is not None else "?"
        print_title(f"Conservation: {key}, target {target!r} (logit {m.logit:.2f})")
        print("Bias and stabiliser absorb what a layer does not hand down: each sum plus what the")
        print("layers above it absorbed is 1.")
        print(text_table(m.report().drop_columns(["pruned", "remainder"])))
        for flag in m.flags:
            print(f"note: {flag}")

        print_title("Strongest flows of this image, two for each pair of layers (SQL)")
        print(text_table(_rows(db.sql(STRONGEST_FLOWS, params=[key]))))

        print_title("Exact events: any neurons of any layers, neighbours or not")
        _events(m)

        print_title("Per answer: the hidden neuron with the largest mean relevance (SQL)")
        print(text_table(_rows(db.sql(PER_CLASS, params=["classifier.0"]))))

        convolutions = [layer.name for layer in m.topology.layers if layer.kind == "convolution"]
        graph = m.subgraph(top=SHOWN, by=dict.fromkeys(convolutions, "channel"))
        graph.graph["title"] = f"Strong relevance flows of {key}, target {target!r}"
        write_graph(graph, picture, image=inputs[0]["input"][0].numpy())

    print_title(f"Done in {time.perf_counter() - began:.0f} s")
    print(f"Store:   {Path(store_path).resolve()}")
    print(f"Picture: {picture.resolve()} ({graph.number_of_edges()} edges of {key})")
    print("Try next:")
    for command in _next_commands(os.fspath(store_path), key):
        print(f"  {command}")


def _next_commands(store: str, key: str) -> tuple[str, ...]:
    """Commands that go on with the demo's store and one of its images."""
    return (
        f"nrm-graph info {store}",
        f'nrm-graph sql {store} "SELECT label, count(*) AS n, '
        'count(*) FILTER (target = predicted) AS as_predicted FROM inputs GROUP BY label"',
        f'nrm-graph relevance {store} --input {key} "features.6[3] & features.0[:, 14:, :]"',
        f"nrm-graph subgraph {store} --input {key} --by channel --top 60 --output subgraph.graphml",
    )


def _events(m: Measure) -> None:
    """One joint and one conditional relevance, of this image's strongest channels."""
    strongest = {}
    for name in ("features.6", "features.0"):
        neurons = m.marginal(name).reshape(m.topology.layer(name).shape)
        strongest[name] = int(np.argmax(neurons.sum(axis=(1, 2))))
    upper = Layer("features.6")[strongest["features.6"]]
    lower = Layer("features.0")[strongest["features.0"]]
    answers = (
        ("one", f"R({upper})", m(upper)),
        ("one", f"R({lower})", m(lower)),
        ("joint", f"R({upper} & {lower})", m(upper & lower)),
        ("conditional", f"R({lower} given {upper})", m(lower, given=upper)),
    )
    for kind, text, value in answers:
        print(f"{kind:<12} {text:<38} = {value:.4f}")


def _rows(relation: object) -> pa.Table:
    return relation.to_arrow_table()  # type: ignore[attr-defined]


def print_title(text: str) -> None:
    """Print a heading of the tour."""
    print(f"\n{text}\n{'=' * len(text)}")
