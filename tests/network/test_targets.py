"""Targets as places: (position, class), outputs by name, negative positions."""

import click
import numpy as np
import pytest
import torch
from helpers import tiny_stores
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import arguments, main
from nrm_graph.network.target_texts import read_target
from nrm_graph.network.targets import Outputs
from nrm_graph.network.tracing.trace import trace

pytestmark = pytest.mark.smoke

LONE = Outputs((("", (4,)),))
GRID = Outputs((("", (5, 4)),))
SEVERAL = Outputs((("logits", (5, 4)), ("scores", (3,)), ("value", ())))
VALUES = np.random.default_rng(0).normal(size=24)


@pytest.mark.parametrize(
    ("outputs", "target", "flat", "text"),
    [
        (LONE, 3, 3, "3"),
        (LONE, (3,), 3, "3"),
        (GRID, 7, 7, "(1, 3)"),
        (GRID, (1, 3), 7, "(1, 3)"),
        (GRID, (-1, 2), 18, "(4, 2)"),
        (GRID, (np.int64(-5), -1), 3, "(0, 3)"),
        (SEVERAL, ("logits", -1, 2), 18, "logits (4, 2)"),
        (SEVERAL, ("scores", 1), 21, "scores 1"),
        (SEVERAL, ("value",), 23, "value"),
        (SEVERAL, 21, 21, "scores 1"),
        (Outputs((("logits", (5, 4)),)), ("logits", 1, 3), 7, "(1, 3)"),
        (Outputs((("logits", (5, 4)),)), (1, 3), 7, "(1, 3)"),
    ],
)
def test_places_are_flat_indices(outputs, target, flat, text):
    assert outputs.index(target) == flat
    assert outputs.text(flat) == text
    assert outputs.index(outputs.place(flat)) == flat


def test_predicted_along_an_axis():
    grid = VALUES[:20].reshape(5, 4)
    assert GRID.index((-1, "predicted"), VALUES[:20]) == 16 + grid[-1].argmax()
    assert GRID.index(("predicted", 2), VALUES[:20]) == 4 * grid[:, 2].argmax() + 2
    assert GRID.index("predicted", VALUES[:20]) == grid.argmax()
    assert SEVERAL.index(("scores", "predicted"), VALUES) == 20 + VALUES[20:23].argmax()
    assert SEVERAL.index(("logits", "predicted"), VALUES) == grid.argmax()
    assert SEVERAL.index(("logits", 2, "predicted"), VALUES) == 8 + grid[2].argmax()


@pytest.mark.parametrize(
    ("outputs", "target", "message"),
    [
        (LONE, 4, "out of range: the network has 4 outputs"),
        (LONE, -1, "target -1 is out of range"),
        (LONE, True, "index, found True"),
        (LONE, 1.0, "index, found 1.0"),
        (LONE, (0, 1), r"2 entries for an output of shape \(4,\)"),
        (LONE, (), "0 entries"),
        (GRID, (5, 0), "out of range"),
        (GRID, (-6, 0), "out of range"),
        (GRID, (0, 4), "out of range"),
        (GRID, (0, 1.5), "found 1.5"),
        (GRID, (0, "cat"), "found 'cat'"),
        (GRID, (0, True), "found True"),
        (GRID, ("predicted", "predicted"), "at most one"),
        (GRID, (0, "predicted"), "numbers, not"),
        (GRID, (0, 1, 2), "3 entries"),
        (SEVERAL, (0, 1), "logits, scores, value, expected one of these names"),
        (SEVERAL, ("logit", 0, 1), "expected one of these names"),
        (SEVERAL, ("scores",), "0 entries for an output of shape"),
    ],
)
def test_places_that_are_not_there(outputs, target, message):
    with pytest.raises(ng.InputError, match=message):
        outputs.index(target)


def test_a_tuple_is_one_place_or_several_targets():
    assert GRID.targets((-1, 2)) == [(-1, 2)]
    assert GRID.targets([(-1, 2), (0, "label"), 3]) == [(-1, 2), (0, "label"), 3]
    assert GRID.targets((1, 2, 3)) == [1, 2, 3]
    assert LONE.targets((1, 2)) == [1, 2]
    assert LONE.targets(("predicted", 2)) == ["predicted", 2]
    assert SEVERAL.targets(("scores", 2)) == [("scores", 2)]
    with pytest.raises(ng.InputError, match="found 'scores'"):
        LONE.targets(("scores", 2))


def test_classes_of_outputs():
    """Along the last axis, of one tensor, where there is an output and its name is known."""
    classes = ["cat", "", " dog"]
    assert GRID.names(classes, range(-1, 24)) == {
        i: classes[i % 4] for i in range(20) if i % 4 in (0, 2)
    }
    assert GRID.names(classes) == GRID.names(classes, range(20))
    assert SEVERAL.names(classes) == LONE.names(None) == {}
    assert GRID.text(14, classes) == "(3, 2) (' dog')"
    assert GRID.names(["cat"] * 5, [0]) == {}  # of another network
    assert SEVERAL.names(classes, [0, 1]) == {}
    assert GRID.names(None, [0]) == {}
    assert LONE.names(["cat"], range(3)) == {0: "cat"}  # no more are known


class Tokens(nn.Module):
    """Four positions, three classes each."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def network():
    torch.manual_seed(1)
    return Tokens().eval().requires_grad_(False)


X = torch.linspace(-1, 1, 8).reshape(1, 4, 2)


def test_a_measure_explains_a_place():
    model = network()
    net = trace(model, X)
    m = ng.measure(net, X, target=(-1, 2), composite="epsilon")
    assert m.target == 11
    assert repr(m).startswith("<Measure of target (3, 2),")
    assert m.logit == pytest.approx(float(model(X)[0, -1, 2]), rel=1e-5)
    np.testing.assert_array_equal(
        m.marginal("x"), ng.measure(net, X, target=11, composite="epsilon").marginal("x")
    )
    best = ng.measure(net, X, target=(1, "predicted"), composite="epsilon")
    assert best.target == 3 + int(model(X)[0, 1].argmax())
    weights = {(-1, 2): 1.0, (3, 0): -1.0}
    m = ng.measure(net, X, target=weights, composite="epsilon")
    same = ng.measure(net, X, target={11: 1.0, 9: -1.0}, composite="epsilon")
    assert m.target is None
    np.testing.assert_array_equal(m.marginal("x"), same.marginal("x"))
    with pytest.raises(ng.InputError, match="out of range"):
        ng.measure(net, X, target=(4, 0), composite="epsilon")
    assert "target (3, 2)" in ng.measure(net, X, target=(3, 2)).heatmap().get_title()


def test_a_store_speaks_of_places(tmp_path, capsys):
    path = tmp_path / "s.nrm"
    rows = [{"input": X * (i + 1), "key": f"k{i}", "label": i} for i in (0, 1)]
    targets = [(-1, 0), (0, "predicted"), (1, "label"), "predicted"]
    options = {"composite": "epsilon", "progress": False, "batch_size": 2}
    net = network()
    with ng.extract(net, rows, path, target=targets, **options) as db:
        for i in (0, 1):
            output = net(rows[i]["input"])[0]
            stored = {
                t for (t,) in db.sql("SELECT target FROM inputs", inputs=[f"k{i}"]).fetchall()
            }
            expected = {9, int(output[0].argmax()), 3 + i, int(output.argmax())}
            assert stored == expected
        assert db.measure("k0", target=(-1, 0)).target == 9
        assert db.measure("k0", target=9).target == 9
        assert db.measure("k0", target={(-1, 0): 1.0, (0, 0): 2.0}).target is None
        with pytest.raises(ng.InputError, match=r"has the targets .*\(3, 0\).*name one of them"):
            db.measure("k0")
        with pytest.raises(ng.InputError, match="numbers, not 'predicted'"):
            db.measure("k0", target=(0, "predicted"))
    count = len(db)
    with ng.extract(net, rows, path, target=(-1, 0), **options) as db:
        assert len(db) == count
    ask = ["relevance", str(path), "x[0]", "--input", "k0", "--target"]
    for target in ("-1:0", "3:0", "9"):
        assert main.main([*ask, target]) == 0
        assert "(3, 0)" in capsys.readouterr().out
    assert main.main([*ask, "-1:0=1,0:0=-1"]) == 0
    assert main.main([*ask, "4:0"]) == 3
    assert "out of range" in capsys.readouterr().err
    assert main.main([*ask, "last"]) == 3
    assert "a place such as -1:464" in capsys.readouterr().err


def test_the_command_line_reads_places():
    assert arguments.target("-1:464") == [(-1, 464)]
    assert arguments.target("predicted,-1:predicted,2") == ["predicted", (-1, "predicted"), 2]
    assert arguments.target("logits:-1:label") == [("logits", -1, "label")]
    for text in ("x", "1:x", "1:", ":", "", "predicted:x"):
        with pytest.raises(click.BadParameter):
            arguments.target(text)
    classes = ["cat", "a:b", "2"]
    assert read_target("-1:cat", classes, GRID) == (-1, 0)
    assert read_target("a:b", classes, GRID) == 1
    assert read_target("scores:1", classes, SEVERAL) == ("scores", 1)
    assert read_target("-1:1=1,0:cat=-0.5", classes, GRID) == {(-1, 1): 1.0, (0, 0): -0.5}
    for text in ("1:x", "1:", "x", "1:x=3"):
        with pytest.raises(ng.InputError):
            read_target(text, classes, GRID)


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        "logits",
        [{"name": "a", "shape": [2], "dtype": "float"}],
        [{"name": "", "shape": [2]}],
        [{"name": "a", "shape": [3]}],
        [{"name": "a", "shape": [-1, -2]}],
        [{"name": "a", "shape": [1]}, {"name": "a", "shape": [1]}],
        [{"name": "a", "shape": [2**40]}],
    ],
)
def test_malformed_lists_of_outputs_are_refused(tmp_path, outputs):
    with pytest.raises(ng.InputError, match="outputs"):
        tiny_stores.make(tmp_path / "s.nrm", outputs=outputs)


def test_a_list_of_outputs_tells_their_names(tmp_path):
    listed = [{"name": "a", "shape": []}, {"name": "b", "shape": [1]}]
    path = tiny_stores.make(tmp_path / "s.nrm", outputs=listed)
    tiny_stores.write(path, [tiny_stores.record(0, 0), tiny_stores.record(0, 1)])
    named = pytest.raises(ng.InputError, match="has the targets a, b 0: name")
    with ng.open(path) as db, named:
        db.measure("input0")
