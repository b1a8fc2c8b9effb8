"""What a reader must know before trusting signs and sizes: flags, wherever relevance is shown."""

from __future__ import annotations

import copy
import functools
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_stores
from helpers.make_format1 import PATH as FORMAT1
from torch import nn

import nrm_graph as ng
from nrm_graph.cli import overview
from nrm_graph.cli.main import main
from nrm_graph.measures.create import from_network
from nrm_graph.network.tracing.trace import trace
from nrm_graph.plots import plot_circuit, plot_flow, plot_heatmap, plot_report, plot_subgraph
from nrm_graph.propagation import flags, prepared_network
from nrm_graph.rules import composites
from nrm_graph.store.write.writer import Writer

X = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)


def network(*rows, bias=None, hidden=True):
    """Network whose output k is ``rows[k]`` times the input, plus a bias."""
    layers = [nn.Linear(3, 3, bias=False), nn.ReLU()] if hidden else []
    net = nn.Sequential(*layers, nn.Linear(3, len(rows), bias=bias is not None)).double().eval()
    with torch.no_grad():
        if hidden:
            net[0].weight.copy_(torch.eye(3))
        net[-1].weight.copy_(torch.tensor(rows, dtype=torch.double))
        if bias is not None:
            net[-1].bias.copy_(torch.tensor(bias, dtype=torch.double))
    return net.requires_grad_(False)


@functools.cache
def traced(outputs):
    """Program of such a network, traced once; its weights are put in later."""
    return trace(network(*[[0.0] * 3] * outputs, bias=[0.0] * outputs), X)


def program_of(*rows, bias=None):
    net, program = network(*rows, bias=bias or [0.0] * len(rows)), traced(len(rows))
    return replace(program, weights={name: net.state_dict()[name] for name in program.weights})


def measure(*rows, target=0, bias=None, scale="unit"):
    net = prepared_network.network(program_of(*rows, bias=bias), composites.get("epsilon"))
    return from_network(net, X, target, scale=scale)


def names(m):
    return [flag.name for flag in m.flags]


# --- logits -------------------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("logit", "found"),
    [
        (6.0, []),
        (1.0, []),
        (0.2, ["small_logit"]),
        (1e-2, ["small_logit"]),
        (1e-6, ["small_logit", "total_variation"]),
        (-1.0, ["negative_logit"]),
        (-1e-2, ["negative_logit", "small_logit"]),
    ],
)
def test_one_output(logit, found):
    """The hidden layer is (1, 2, 3): contributions of 3 + (logit - 3) at least."""
    m = measure([-3.0 + logit, 0.0, 1.0])
    assert m.logit == pytest.approx(logit)
    assert names(m) == found
    added = abs(logit - 3) + 3
    assert (abs(logit) < 0.05 * added) == ("small_logit" in found)
    if "small_logit" in found:
        (text,) = (flag for flag in m.flags if flag.name == "small_logit")
        assert f"small beside the {added:.4g} that its layer adds up without sign" in text
    if "total_variation" in found:
        (text,) = (flag for flag in m.flags if flag.name == "total_variation")
        assert "the sum of |R| over layer 0 is 2,999,999 times the whole" in text


@pytest.mark.smoke
def test_biases_are_contributions():
    assert names(measure([1.0, 0.0, 0.0], bias=[-0.999])) == ["small_logit", "absorbed"]
    assert names(measure([1.0, 0.0, 0.0], bias=[0.5])) == []


def test_a_logit_of_zero():
    m = measure([-3.0, 0.0, 1.0])
    assert m.logit == 0
    assert names(m) == ["small_logit", "total_variation", "absorbed"]
    assert "target's logit (0) is small beside the 6 that" in m.flags[0]
    nothing = measure([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    assert names(nothing) == ["small_logit", "absorbed"]
    assert "all that adds up to it is 0 as well" in nothing.flags[0]
    assert "load trained weights" in nothing.flags[0]


def test_a_logit_that_is_small_beside_others_alone_is_none():
    """Beside the largest output nothing cancels: relevances are no larger for it."""
    m = measure([1e-3, 0.0, 0.0], [100.0, 0.0, 0.0])
    assert names(m) == []
    assert np.abs(m.marginal("input")).sum() == pytest.approx(1, rel=1e-2)


def test_weighted_targets_that_cancel():
    rows = [1.0, 1.0, 0.0], [1.0, 1.0, -1e-3]
    assert names(measure(*rows, target={0: 1})) == []
    assert names(measure(*rows, target={0: 1, 1: 1})) == []
    m = measure(*rows, target={0: 1, 1: -1})
    assert m.logit == pytest.approx(3e-3)
    # Both outputs hold a thousand times their difference.
    assert names(m) == ["small_logit", "total_variation"]
    assert "small beside the 6.003 that" in m.flags[0]
    assert names(measure(*rows, target={0: -1})) == ["negative_logit"]


@pytest.mark.parametrize(
    "last",
    [
        nn.Sequential(nn.Sigmoid(), nn.Unflatten(1, (2, 1))),
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in (nn.Unflatten(1, (2, 1)), nn.Sigmoid(), nn.ReLU(), nn.Flatten())
        ),
    ],
)
def test_what_only_selects_is_looked_through(last):
    for logit, found in ((3.0, False), (0.01, True)):
        net = nn.Sequential(network([-3.0 + logit, 0.0, 1.0], [1.0, 0.0, 0.0]), last)
        target = (0, 0) if isinstance(last, nn.Unflatten | nn.Sequential) else 0
        m = ng.measure(net, X, target=target, composite="epsilon")
        assert ("small_logit" in names(m)) == found, m


def test_a_softmax_is_compared_with_what_its_rule_divides_by():
    net = nn.Sequential(network([0.0, 0.0, 1.0], [0.0, 1.0, 0.0]), nn.Softmax(1))
    m = ng.measure(net, X, target=0, composite="attn_lrp")
    assert "small_logit" not in names(m)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_mostly_absorbed():
    m = measure([1.0, 0.0, 0.0], bias=[3.0])
    assert names(m) == ["absorbed"]
    assert m.flags[0].startswith("biases, stabilizer and remainder hold 75 % of the measure")
    assert m.absorbed == pytest.approx(0.75)
    assert names(measure([1.0, 0.0, 0.0], bias=[0.9])) == []
    # Shares are signed: minus twice the measure is most of it as well.
    assert names(measure([3.0, 0.0, 0.0], bias=[-2.0])) == ["absorbed"]


def test_conditioned_measures_speak_of_themselves():
    m = measure([1.0, -1.0, -1.0])
    assert names(m) == ["negative_logit"]
    assert m.meaning == "positive relevance speaks against the target"
    first, second = (m.given(ng.Layer("0")[i]) for i in (0, 1))
    assert m(ng.Layer("0")[0]) < 0 < m(ng.Layer("0")[1])
    assert first.meaning == "positive relevance speaks for the target, as the condition does"
    assert second.meaning == "positive relevance speaks against the target, as the condition does"
    assert all("negative_logit" in names(c) for c in (first, second))
    against = measure([2.0, 2.0, -1.0]).given(ng.Layer("0")[2])
    assert names(against) == ["negative_condition"]
    assert "speaks against the target, as the condition does" in against.flags[0]


def test_on_the_scale_of_the_logit_signs_are_plain():
    m = measure([1.0, -1.0, -1.0], scale="logit")
    np.testing.assert_allclose(m.marginal("input"), [1, -2, -3], rtol=1e-5)
    assert m.meaning == "positive relevance, multiplied by the logit, speaks for the target"
    assert names(m) == ["negative_logit"]
    assert m.meaning in m.flags[0]


def test_flags_are_text_with_a_name():
    (flag,) = measure([-1.0, 0.0, 0.0]).flags
    assert isinstance(flag, str)
    assert str(flag) == "the target's logit is negative (-1): " + (
        "positive relevance speaks against the target"
    )
    for other in (pickle.loads(pickle.dumps(flag)), copy.deepcopy(flag)):
        assert (other, other.name) == (flag, "negative_logit")
    assert json.dumps([flag]) == json.dumps([str(flag)])


def test_the_repr_names_them():
    assert repr(measure([1.0, 0.0, 0.0])) == "<Measure of target 0, logit 1: 3 layers>"
    m = measure([-1.0, 0.0, 0.0], bias=[-3.0])
    assert repr(m).endswith("logit -4: 3 layers; negative logit, mostly absorbed>")


# --- pictures -------------------------------------------------------------------------------------


def written(figure):
    """All that a picture says, on one line."""
    texts = [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]
    return " ".join(" ".join(texts).split())


def pictures(m):
    graph = m.subgraph(top=20)
    assert graph.graph["meaning"] == m.meaning
    assert graph.graph["flags"] == tuple(m.flags)
    return [
        draw(what).get_figure(root=True)
        for draw, what in (
            (plot_heatmap, m),
            (plot_flow, m),
            (plot_report, m),
            (plot_subgraph, graph),
        )
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"rows": [-1.0, 0.0, 0.0]},
        {"rows": [-3.0, 0.0, 1.0001]},
        {"rows": [1.0, 0.0, 0.0], "bias": [3.0]},
    ],
    ids=["negative", "small", "absorbed"],
)
def test_every_picture_says_what_its_signs_mean(options):
    m = measure(options["rows"], bias=options.get("bias"))
    for figure in pictures(m):
        said = written(figure)
        side = "against" if m.logit < 0 else "for"
        assert f"ositive relevance speaks {side} the target" in said
        for flag in m.flags:
            assert flag[1:] in said
        figure.draw_without_rendering()
        for ax in figure.axes:
            note = ax.xaxis.label
            if note.get_text():
                box, inside = note.get_window_extent(), figure.bbox
                assert inside.x0 <= box.x0
                assert box.x1 <= inside.x1
                assert inside.y0 <= box.y0
                legend = ax.get_legend()
                assert legend is None or legend.get_window_extent().y1 <= box.y0 + 2


# --- stores ---------------------------------------------------------------------------------------

ROWS = ([1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [-3.0, 0.0, 1.01], [0.0, 1.0, -1.0])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One of each kind; the label is the number of the target that is explained."""
    path = tmp_path_factory.mktemp("flags") / "s.nrm"
    net = program_of(*ROWS, bias=[3.0, 0.0, 0.0, 0.0])
    inputs = [
        {"input": scale * X[0], "key": f"k{scale}", "label": str(scale)} for scale in (1.0, 2.0)
    ]
    targets = [0, 1, 2, 3, {0: 1, 1: 1}]
    ng.extract(
        net, inputs, path, composite="epsilon", target=targets, progress=False, batch_size=2
    ).close()
    return path


def test_the_store_holds_what_the_measures_say(store):
    with ng.open(store) as db:
        inputs = db.sql("SELECT * FROM inputs")
        kinds = dict(zip(inputs.columns, map(str, inputs.types), strict=True))
        assert kinds["flags"] == "VARCHAR[]"
        rows = db.sql("SELECT input_id, target, flags FROM inputs").fetchall()
        told = {}
        for identity, target, stored in rows:
            assert stored == names(db.measure(identity)), target
            told.setdefault(target, []).append(stored)
        assert sorted(told[0]) == [["absorbed"], ["absorbed"]]
        assert told[1] == [["negative_logit"]] * 2
        assert told[2] == [["small_logit"]] * 2
        query = "SELECT count(*) FROM inputs WHERE list_contains(flags, 'small_logit')"
        assert db.sql(query).fetchall() == [(2,)]
        assert overview.facts(db)["flags"] == flags.listed(flags.counted(row[2] for row in rows))
        assert db.verify(sample=1).sound


def test_old_stores_say_that_they_do_not_know():
    with ng.open(FORMAT1) as db:
        assert overview.flagged(db) == "not known of 4"


def test_flags_that_are_no_names_are_refused(tmp_path):
    path = tiny_stores.make(tmp_path / "s.nrm")
    with Writer(path) as writer:
        for wrong in (("Not a name",), ("a",) * 101, "absorbed", (1,)):
            with pytest.raises(ng.InputError, match="its flags to be names"):
                writer.add(tiny_stores.record(0, flags=wrong))
        writer.add(tiny_stores.record(0, flags=("absorbed", "of_a_later_release")))
    (file,) = (path / "shards").glob("*.json")
    text = file.read_text()
    for wrong in ('"absorbed"', "[1]", '["A"]', '{"a": 1}'):
        file.write_text(text.replace('["absorbed", "of_a_later_release"]', wrong))
        with pytest.raises(ng.StoreError, match=r"expected inputs\[0\]\.flags(\[0\])? to be"):
            ng.open(path)
    file.write_text(text.replace('["absorbed", "of_a', '["total_variation", "of_a'))
    with ng.open(path) as db:
        assert overview.flagged(db) == "1 extreme total variation, 1 of_a_later_release"
        errors = [f.problem for f in db.verify(sample=0).errors]
    assert [e for e in errors if e.startswith("flags is ('absorbed',")]


def test_groups_say_how_many_are_flagged(store):
    with ng.open(store) as db:
        negative = db.circuit(target=1, top=10)
        assert negative.graph["meaning"] == "positive relevance speaks against the target"
        assert negative.graph["flags"] == (
            "2 of 2 inputs: negative logit, there positive relevance speaks against the target",
        )
        scaled = db.circuit(target=1, top=10, weight="logit").graph
        assert scaled["flags"] == ()
        assert scaled["meaning"].endswith("multiplied by the logit, speaks for the target")
        mixed = db.circuit(mixed_targets=True, top=10).graph
        assert mixed["meaning"].endswith("of some inputs, and against that of others")
        assert "2 of 10 inputs: small logit" in mixed["flags"]
        said = written(plot_circuit(negative))
        assert said.count("2 of 2 inputs: negative logit") == 1
        pytest.importorskip("scipy")
        found = db.contrast("key = 'k1.0'", "key = 'k2.0'", target=2)
        assert "1 of 1 inputs of the first group: small logit" in found.notes
        assert (
            found.meaning == "a positive difference speaks more for the target in the first group"
        )
        said = written(plot_circuit(found.graph(10)))
        assert "A positive difference speaks more for the target in the first group." in said
        assert "1 of 1 inputs of the second group: small logit." in said
        unit = db.contrast("key = 'k1.0'", "key = 'k2.0'", target=1, weight="unit")
        assert "against the target in the first group" in unit.meaning


def test_the_command_line_says_them(store, capsys):
    def notes(*argv):
        assert main(list(argv)) == 0
        out, err = capsys.readouterr()
        return out, [line for line in err.splitlines() if line.startswith("note: ")]

    path = str(store)
    out, _ = notes("info", path)
    assert "2 small logit" in out
    _, told = notes("circuit", path, "--target", "1")
    assert any("2 of 2 inputs: negative logit" in line for line in told)
    _, told = notes("relevance", path, "0[0]", "--input", "k1.0", "--target", "1")
    assert any("the target's logit is negative (-1)" in line for line in told)
    if pytest.importorskip("scipy"):
        out, _ = notes("contrast", path, "key = 'k1.0'", "key = 'k2.0'", "--target", "2")
        assert "1 of 1 inputs of the first group: small logit" in out


# --- before an extraction -------------------------------------------------------------------------


def extract(net, path, **options):
    options = {"composite": "epsilon", "progress": False, **options}
    return ng.extract(net, [X[0], 2 * X[0]], path, **options)


def test_a_head_that_was_never_trained_is_said_first(tmp_path):
    net = program_of([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    with pytest.warns(
        UserWarning, match=r"target 1: the target's logit is 0.*trained weights"
    ) as w:
        extract(net, tmp_path / "s.nrm", target=1)
    assert [str(each.filename) for each in w] == [__file__]
    with pytest.warns(UserWarning, match=r"target 0: .*small beside the 6 that"):
        extract(program_of([-3.0, 0.0, 1.0]), tmp_path / "c.nrm", target="predicted").close()
    # Small ones are flagged, input by input; no warning of the first alone.
    with extract(program_of([-3.0, 0.0, 1.01]), tmp_path / "m.nrm") as db:
        assert db.sql("SELECT DISTINCT flags FROM inputs").fetchall() == [(["small_logit"],)]


@pytest.mark.slow
def test_the_head_of_torchvision_vits(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    vit = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=5).eval()
    x = torch.rand(3, 32, 32)
    with pytest.warns(UserWarning, match=r"target 3: .*is the network's head initialised"):
        ng.extract(
            vit, [x], tmp_path / "v.nrm", target=3, composite="attn_lrp", progress=False
        ).close()


def test_stored_graphs_say_them(store):
    with ng.open(store) as db:
        negative = db.subgraph("k1.0", target=1).graph
        assert negative["meaning"] == "positive relevance speaks against the target"
        assert negative["flags"] == db.measure("k1.0", target=1).subgraph().graph["flags"]
        assert db.subgraph("k1.0", target=2).graph["flags"] == ("small logit",)
        held = db.subgraph("k1.0", target=0)
        assert held.graph["flags"] == db.measure("k1.0", target=0).subgraph().graph["flags"]
        said = written(plot_subgraph(held).get_figure(root=True))
        assert "Biases, stabilizer and remainder hold 75 % of the measure" in said
