"""The command line: sources, exports, pictures, help, and each command on the demo network."""

from __future__ import annotations

import csv
import io
import itertools
import json
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import nrm_graph as ng
from nrm_graph import cli, export, plots, sources
from nrm_graph.demo_network import FashionCNN, load_demo
from nrm_graph.errors import InputError
from nrm_graph.graph import subgraph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COMMANDS = ("demo", "extract", "info", "sql", "relevance", "subgraph")


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
    export.write_graph(graph, tmp_path / "g.graphml")
    again = nx.read_graphml(tmp_path / "g.graphml")
    assert set(again) == {f"{layer}:{unit}" for layer, unit in graph}
    assert again.edges["features.0:0", "features.1:1"]["relevance"] == -0.25
    assert again.nodes["features.1:-1"] == {
        "layer": "features.1 bias",
        "unit": -1,
        "relevance": pytest.approx(0.5 + 1 / 3),
        "depth": 1,
    }
    export.write_graph(graph, tmp_path / "g.json")
    data = json.loads((tmp_path / "g.json").read_text())
    again = nx.node_link_graph(data, edges="edges")
    assert dict(again.nodes) == dict(graph.nodes)
    assert dict(again.edges) == dict(graph.edges)
    assert again.graph == {"share": 0.5}


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_pictures(tmp_path: Path, suffix: str, magic: bytes) -> None:
    export.write_graph(made_up(), tmp_path / f"g{suffix}")
    assert (tmp_path / f"g{suffix}").read_bytes().startswith(magic)


def test_graph_errors(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "g.gexf", "ends in"),
        (tmp_path / "no" / "g.json", "no folder"),
    ):
        with pytest.raises(InputError, match=message):
            export.write_graph(made_up(), path)
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
    assert [label.get_text() for label in labels] == [name.format(i) for i in range(layers)]
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
        graph = subgraph(m.topology, *m.tables(), top=10_000, partitions=m.partitions)
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
    rows = list(csv.DictReader(io.StringIO(export.encode_table(TABLE, "csv").decode())))
    assert rows[0] == {"key": "a", "shape": "[1, 2]", "r": "0.5"}
    assert json.loads(export.encode_table(TABLE, "json")) == [
        {"key": "a", "shape": [1, 2], "r": 0.5},
        {"key": None, "shape": None, "r": None},
    ]
    assert json.loads(export.encode_table(TABLE.slice(0, 0), "json")) == []
    export.write_table(TABLE, output=tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").column_names == ["key", "shape", "r"]
    text = export.text_table(TABLE, limit=1)
    assert text.splitlines()[0].split() == ["key", "shape", "r"]
    assert "1 more rows" in text


# Models and inputs


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Importable module with model functions."""
    made = types.ModuleType("nrm_test_models")
    made.demo = lambda: load_demo()[0]  # type: ignore[attr-defined]
    made.both = lambda: (load_demo()[0], None, ["a", "b"])  # type: ignore[attr-defined]
    made.wrong = lambda: 3  # type: ignore[attr-defined]
    made.broken = lambda: 1 / 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def test_random_weights_are_seeded_and_leave_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, preprocessing, classes = sources.load_model("torchvision:squeezenet1_1@random:3")
    two, _, _ = sources.load_model("torchvision:squeezenet1_1@random:3")
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[name], rtol=0, atol=0)
    assert classes is None
    assert preprocessing is not None
    assert preprocessing(Image.new("RGB", (300, 260))).shape == (3, 224, 224)


def test_weights_file(tmp_path: Path) -> None:
    from torchvision import models

    for outputs in (1000, 7):
        model = models.mobilenet_v3_small(num_classes=outputs)
        torch.save(model.state_dict(), tmp_path / "w.pt")
        again, _, classes = sources.load_model(
            f"torchvision:mobilenet_v3_small@{tmp_path / 'w.pt'}"
        )
        key = "classifier.3.weight"
        torch.testing.assert_close(again.state_dict()[key], model.state_dict()[key])
        assert classes is None if outputs == 7 else classes is not None
    with pytest.raises(InputError, match="not those of alexnet"):
        sources.load_model(f"torchvision:alexnet@{tmp_path / 'w.pt'}")


def test_exported_program_and_function(tmp_path: Path, module: types.ModuleType) -> None:
    model, inputs = load_demo()
    x = torch.stack([item["input"] for item in inputs[:2]])
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(model, (x,), dynamic_shapes=dynamic)
    torch.export.save(exported, tmp_path / "m.pt2")
    for spec in (str(tmp_path / "m.pt2"), "nrm_test_models:demo"):
        loaded, preprocessing, classes = sources.load_model(spec)
        torch.testing.assert_close(loaded.eval()(x), model(x))
        assert (preprocessing, classes) == (None, None)
    assert sources.load_model("nrm_test_models:both")[2] == ("a", "b")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vgg16", "expected torchvision:NAME"),
        ("https://a.b/m.pt2", "address"),
        ("torchvision:vgg61", "did you mean"),
        ("torchvision:vgg16@random:x", "seed"),
        ("torchvision:vgg16@nothing.pt", "no file"),
        ("nothing.pt2", "no file"),
        ("{bad}.pt2", "torch.export.save"),
        ("torchvision:vgg16@{bad}.pt2", "state dict"),
        ("no_such_module:f", "ModuleNotFoundError"),
        ("nrm_test_models:nothing", "AttributeError"),
        ("nrm_test_models:wrong", "must give a torch.nn.Module"),
        ("nrm_test_models:broken", "ZeroDivisionError"),
    ],
)
def test_model_errors(tmp_path: Path, module: types.ModuleType, spec: str, message: str) -> None:
    (tmp_path / "bad.pt2").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=message):
        sources.load_model(spec.replace("{bad}", str(tmp_path / "bad")))


def test_folder_of_images(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/a.png", "cat/deep/c.jpg", "top.png", ".hidden/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    found = list(sources.load_inputs(tmp_path))
    assert [(item["key"], item.get("label")) for item in found] == [
        ("cat/a.png", "cat"),
        ("cat/deep/c.jpg", "cat"),
        ("dog/b.png", "dog"),
        ("top.png", None),
    ]
    assert found[0]["input"].shape == (3, 4, 5)
    assert found[0]["input"][0].eq(1).all()
    (one,) = sources.load_inputs(tmp_path / "top.png", lambda image: torch.ones(image.size))
    assert one["key"] == "top.png"
    assert one["input"].shape == (5, 4)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((2, 4, 5), np.uint8, (1, 4, 5)),
        ((2, 4, 5, 3), np.uint8, (3, 4, 5)),
        ((2, 3, 4, 5), np.uint8, (3, 4, 5)),
        ((2, 1, 4, 5), np.uint8, (1, 4, 5)),
        ((2, 7), np.float32, (7,)),
        ((2, 3, 4, 5), np.float64, (3, 4, 5)),
    ],
)
def test_arrays(tmp_path: Path, shape: tuple[int, ...], dtype: Any, expected: Any) -> None:
    values = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", inputs=values, labels=np.array(["cat", "dog"]))
    for name, labels in (("a.npy", [None, None]), ("a.npz", ["cat", "dog"])):
        items = list(sources.load_inputs(tmp_path / name))
        assert [item["key"] for item in items] == ["a-00000", "a-00001"]
        assert [item.get("label") for item in items] == labels
        assert tuple(items[1]["input"].shape) == expected
        scale = 255 if dtype == np.uint8 else 1
        total = float(items[1]["input"].double().sum()) * scale
        assert total == pytest.approx(float(values[1].astype(float).sum()), rel=1e-5)


def _write(path: Path, make: Callable[[Path], Any]) -> Path:
    make(path)
    return path


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("none", lambda p: None, "no file or folder"),
        ("empty", lambda p: p.mkdir(), "no images"),
        ("a.txt", lambda p: p.write_text(""), "expected a folder"),
        ("a.png", lambda p: p.write_bytes(b"\x89PNG"), "cannot read the image"),
        ("a.npy", lambda p: p.write_bytes(b"x"), "cannot read the array"),
        ("b.npy", lambda p: np.save(p, np.array([{}, {}])), "cannot read the array"),
        ("c.npy", lambda p: np.save(p, np.zeros((2, 3), int)), "expected floats"),
        ("d.npy", lambda p: np.save(p, np.zeros((0, 3))), "at least one input"),
        ("e.npy", lambda p: np.save(p, np.zeros(3)), "first axis"),
        ("f.npy", lambda p: np.save(p, np.zeros((2, 5, 6, 4), np.uint8)), "one or three"),
        ("a.npz", lambda p: p.write_bytes(b"PK"), "cannot read the array"),
        ("b.npz", lambda p: np.savez(p, data=np.zeros((2, 3))), "named images or inputs"),
        (
            "c.npz",
            lambda p: np.savez(p, inputs=np.zeros((2, 3)), labels=np.zeros(3, int)),
            "do not match",
        ),
    ],
)
def test_input_errors(tmp_path: Path, name: str, make: Callable[[Path], Any], message: str) -> None:
    path = _write(tmp_path / name, make)
    with pytest.raises(InputError, match=message) as info:
        list(sources.load_inputs(path))
    assert "\n" not in str(info.value)
    with pytest.raises(InputError, match="address"):
        sources.load_inputs("https://example.org/cat.png")


# Arguments


def test_help_shows_an_example_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(name in overview for name in COMMANDS)
    for name in COMMANDS:
        assert cli.main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"example:\n  nrm-graph {name} " in text
        assert "exit codes:" in text
    assert cli.main(["extract", "--help"]) == 0
    assert "trust" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "COMMAND"),
        (["nothing"], 2, "invalid choice"),
        (["sql", "s.nrm", "q", "--format", "xml"], 2, "invalid choice"),
        (["extract", "m", "i", "--store", "s", "--target", "cat"], 2, "expected predicted"),
        (["extract", "m", "i", "--store", "s", "--batch-size", "0"], 2, "at least 1"),
        (["extract", "m", "i", "--store", "s"], 3, "cannot tell what model"),
        (["relevance", "s.nrm", "--input", "k", "a[1"], 5, "expected ']'"),
        (["subgraph", "s.nrm", "--input", "k", "--output", "a.xls"], 3, "ends in"),
        (["demo", "--picture", "a.xls"], 3, "ends in"),
    ],
)
def test_usage_errors(
    argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not printed.out


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(spec: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "load_model", stop)
    assert cli.main(["extract", "m", "i", "--store", "never.nrm"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_is_light() -> None:
    code = (
        "import sys; from nrm_graph import cli; cli.main(['--help'])\n"
        "heavy = {'torch', 'duckdb', 'pyarrow', 'matplotlib', 'networkx'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Commands, on three images of the demo


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of three images, written by the command itself."""
    folder = tmp_path_factory.mktemp("cli")
    _, inputs = load_demo()
    np.savez(
        folder / "three.npz",
        images=np.stack([(item["input"][0].numpy() * 255).round() for item in inputs[:3]]).astype(
            np.uint8
        ),
        labels=np.array([item["label"] for item in inputs[:3]]),
    )
    path = folder / "relevance.nrm"
    made = types.ModuleType("nrm_cli_models")
    made.demo = lambda: load_demo()[0]  # type: ignore[attr-defined]
    sys.modules[made.__name__] = made
    try:
        argv = ["extract", "nrm_cli_models:demo", str(folder / "three.npz"), "--store", str(path)]
        assert cli.main([*argv, "--quiet"]) == 0
    finally:
        del sys.modules[made.__name__]
    return path


def test_info(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(store)]) == 0
    out = capsys.readouterr().out
    assert "features.0" in out
    assert "epsilon_gamma" in out
    assert cli.main(["info", str(store), "--format", "json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert names == ["x", *(f"features.{i}" for i in (0, 3, 6)), "classifier.0", "classifier.3"]


def test_sql(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = "SELECT key, label FROM inputs ORDER BY key"
    output = tmp_path / "t.csv"
    assert cli.main(["sql", str(store), query, "--output", str(output)]) == 0
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["key"] for row in rows] == ["three-00000", "three-00001", "three-00002"]
    assert rows[0]["label"] == "ankle boot"
    capsys.readouterr()
    assert cli.main(["sql", str(store), "DROP TABLE inputs"]) == 7
    assert cli.main(["sql", str(store), "SELECT nothing FROM inputs"]) == 7
    assert cli.main(["sql", str(store), "SELECT CAST(key AS INTEGER) FROM inputs"]) == 7
    assert "Traceback" not in capsys.readouterr().err


def test_relevance(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(*argv: str) -> dict[str, Any]:
        base = ["relevance", str(store), "--input", "three-00000", "--format", "json"]
        assert cli.main([*base, *argv]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert isinstance(row, dict)
        return row

    event, given = "features.3[2]", "features.6[5] | features.6[7]"
    joint = ask(f"{event} & ({given})")["relevance"]
    row = ask(event, "--given", given)
    assert row["relevance"] * ask(given)["relevance"] == pytest.approx(joint, rel=1e-4)
    assert row["amplification"] >= 1
    total = ask(event)["relevance"] + ask(f"~{event}")["relevance"]
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("suffix", [".graphml", ".json", ".png"])
def test_subgraph(store: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"g{suffix}"
    argv = ["subgraph", str(store), "--input", "three-00000", "--top", "30"]
    assert cli.main([*argv, "--output", str(output)]) == 0
    if suffix == ".graphml":
        assert nx.read_graphml(output).number_of_edges() == 30
    assert output.stat().st_size > 1000


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["info", "{none}"], 6),
        (["relevance", "{store}", "--input", "nothing", "features.0[1]"], 3),
        (["relevance", "{store}", "--input", "three-00000", "nothing[1]"], 5),
        (["relevance", "{store}", "--input", "three-00000", "features.0[99]"], 5),
        (["info", "{store}", "--output", "{none}/t.csv"], 3),
    ],
)
def test_command_errors(
    store: Path, argv: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"{store}": str(store), "{none}": str(store / "none")}
    for name, value in names.items():
        argv = [part.replace(name, value) for part in argv]
    assert cli.main(argv) == code
    printed = capsys.readouterr().err
    assert printed.startswith("nrm-graph: ")
    assert "Traceback" not in printed


def test_demo_of_three_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import nrm_graph.demo_network

    model, inputs = load_demo()
    assert isinstance(model, FashionCNN)
    monkeypatch.setattr(nrm_graph.demo_network, "load_demo", lambda: (model, inputs[:3]))
    picture = tmp_path / "demo.svg"
    argv = ["demo", "--store", str(tmp_path / "demo.nrm"), "--picture", str(picture)]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for text in ("Conservation", "joint", "conditional", "mean_relevance", "Try next", "svg"):
        assert text in out
    assert picture.stat().st_size > 1000
