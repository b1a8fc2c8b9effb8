"""Graphs, pictures and tables as files."""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import nrm_graph as ng
from nrm_graph import plots
from nrm_graph.cli import output
from nrm_graph.errors import InputError
from nrm_graph.graphs.formats import write_graph
from nrm_graph.graphs.subgraph import subgraph

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.smoke


def made_up(layers: int = 4, name: str = "features.{}") -> nx.DiGraph:
    """Graph like a measure's, with NumPy scalars and a pseudo node."""
    graph = nx.DiGraph(share=0.5)
    names = [name.format(i) for i in range(layers)]
    for depth, layer in enumerate(names):
        for unit in (-1, 0, 1, 2) if depth else (0, 1, 2):
            graph.add_node(
                (layer, unit),
                layer=layer if unit >= 0 else f"{layer} bias",
                unit=unit,
                relevance=np.float32(0.5 - unit / 3),
                depth=np.int64(depth),
            )
    for below, above in itertools.pairwise(names):
        graph.add_edge((below, 0), (above, 1), relevance=np.float32(-0.25))
        graph.add_edge((below, 2), (above, 2), relevance=0.125)
        graph.add_edge((above, -1), (above, 1), relevance=0.5)
    return graph


# Graphs and pictures


def test_graphml_and_json_can_be_read_again(tmp_path: Path) -> None:
    graph = made_up()
    write_graph(graph, tmp_path / "g.graphml")
    again = nx.read_graphml(tmp_path / "g.graphml")
    assert set(again) == {f"{layer}:{unit}" for layer, unit in graph}
    assert again.edges["features.0:0", "features.1:1"]["relevance"] == -0.25
    assert again.nodes["features.1:-1"] == {
        "layer": "features.1 bias",
        "unit": -1,
        "relevance": pytest.approx(0.5 + 1 / 3),
        "depth": 1,
    }
    write_graph(graph, tmp_path / "g.json")
    data = json.loads((tmp_path / "g.json").read_text())
    again = nx.node_link_graph(data, edges="edges")
    assert dict(again.nodes) == dict(graph.nodes)
    assert dict(again.edges) == dict(graph.edges)
    assert again.graph == {"share": 0.5}


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_pictures(tmp_path: Path, suffix: str, magic: bytes) -> None:
    write_graph(made_up(), tmp_path / f"g{suffix}")
    assert (tmp_path / f"g{suffix}").read_bytes().startswith(magic)


def test_graph_errors(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "g.dot", "ends in"),
        (tmp_path / "no" / "g.json", "no folder"),
    ):
        with pytest.raises(InputError, match=message):
            write_graph(made_up(), path)
    with pytest.raises(InputError, match="no nodes"):
        plots.plot_subgraph(nx.DiGraph())
    graph = made_up()
    del graph.nodes["features.0", 0]["relevance"]
    with pytest.raises(InputError, match="no attribute 'relevance'"):
        plots.plot_subgraph(graph)


@pytest.mark.parametrize(
    ("layers", "name"), [(2, "x{}"), (5, "features.{}"), (20, "layer1.{}.downsample.conv1")]
)
def test_layer_names_do_not_overlap(layers: int, name: str) -> None:
    ax = plots.plot_subgraph(made_up(layers, name))
    figure: Any = ax.figure
    figure.canvas.draw()
    labels = ax.get_xticklabels()
    short = name.removeprefix("layer1.")  # what all names begin with is said below, once
    assert [label.get_text() for label in labels] == [short.format(i) for i in range(layers)]
    assert ("without layer1." in ax.get_xlabel()) == (short != name)
    if labels[0].get_rotation() == 0:
        boxes = [label.get_window_extent() for label in labels]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    else:  # slanted lines: the distance between them against the height of a line
        positions = ax.transData.transform([(i, 0.0) for i in range(layers)])[:, 0]
        apart = np.diff(positions) * np.sin(np.deg2rad(labels[0].get_rotation()))
        assert (apart >= labels[0].get_fontsize() / 72 * figure.dpi).all()


def test_plot_uses_given_axes_and_leaves_pyplot_alone() -> None:
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert plots.plot_subgraph(made_up(), ax) is ax
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_neurons_of_maps_are_drawn_at_their_places() -> None:
    graph = made_up(2)
    graph.graph["shapes"] = {"features.0": (3, 4, 5)}
    graph.graph["title"] = "a title"
    for unit in range(3):
        graph.nodes["features.0", unit]["position"] = f"{unit}, {unit + 1}, {unit + 2}"
    ax = plots.plot_subgraph(graph, image=np.zeros((4, 5)))
    (frame,) = ax.child_axes
    assert len(frame.images) == 1
    (dots,) = frame.collections
    found = {tuple(int(v) for v in place) for place in np.asarray(dots.get_offsets())}
    assert found == {(2, 1), (3, 2), (4, 3)}  # (column, row)
    assert ax.get_title() == "a title"
    assert {"0: 1,2", "1: 2,3", "2: 3,4"} <= {text.get_text() for text in ax.texts}


def test_positions_only_for_neurons() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(12, 2)
    )
    x = torch.rand(1, 2, 4, 4)
    for resolution, expected in (("neuron", True), ({"input": "channel", "0": "channel"}, False)):
        m = ng.measure(network, x, target=0, composite="epsilon", resolution=resolution)
        graph = subgraph(m.topology, *m.tables(), top=10_000, kinds=[p.kind for p in m.partitions])
        placed = {node for node, data in graph.nodes(data=True) if "position" in data}
        assert placed == {n for n in graph if expected and n[1] >= 0 and n[0] != "3"}
        for name, unit in placed:
            place = tuple(int(i) for i in graph.nodes[name, unit]["position"].split(", "))
            shape = m.topology.layer(name).shape
            assert graph.graph["shapes"][name] == shape
            assert np.ravel_multi_index(place, shape) == unit


# Tables


TABLE = pa.table({"key": ["a", None], "shape": [[1, 2], None], "r": [0.5, float("nan")]})


def test_table_formats(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(output.encode_table(TABLE, "csv").decode())))
    assert rows[0] == {"key": "a", "shape": "[1, 2]", "r": "0.5"}
    assert json.loads(output.encode_table(TABLE, "json")) == [
        {"key": "a", "shape": [1, 2], "r": 0.5},
        {"key": None, "shape": None, "r": None},
    ]
    assert json.loads(output.encode_table(TABLE.slice(0, 0), "json")) == []
    output.write_table(TABLE, output=tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").column_names == ["key", "shape", "r"]
    text = output.text_table(TABLE, limit=1)
    assert text.splitlines()[0].split() == ["key", "shape", "r"]
    assert "1 more rows" in text
