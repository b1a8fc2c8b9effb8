"""Which axis is the batch: what the network answers for the input as given is what is explained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nrm_graph as ng


class Of(nn.Module):
    """A network of a few modules and a line of code."""

    def __init__(self, code, *parts):
        super().__init__()
        self.parts, self.code = nn.ModuleList(parts), code

    def forward(self, *inputs):
        return self.code(self.parts, *inputs)


def net(code, *parts):
    return Of(code, *parts).eval()


def image(*layers):
    return nn.Sequential(*layers).eval()


torch.manual_seed(0)
LSTM = nn.LSTM(3, 5, batch_first=True)
ONE_SAMPLE = {
    # as given it is a batch of one, though it runs with a further axis too
    "series": (
        net(lambda m, x: m[1](m[0](x).relu().mean(1)), nn.Linear(8, 6), nn.Linear(6, 4)),
        (1, 5, 8),
    ),
    "series of one step": (
        net(lambda m, x: m[1](m[0](x).mean(1)), nn.Linear(8, 6), nn.Linear(6, 4)),
        (1, 1, 8),
    ),
    "flattened image": (image(nn.Flatten(), nn.Linear(16, 3)), (1, 4, 4)),
    "lstm": (net(lambda m, x: m[1](m[0](x)[0][:, -1]), LSTM, nn.Linear(5, 2)), (1, 2, 3)),
    "row": (image(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (1, 6)),
    "tokens of a vector": (image(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (1, 3, 6)),
    # it needs the axis that the input lacks
    "image": (image(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)), (1, 4, 4)),
    "three channels": (image(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 3)), (3, 4, 4)),
    "vector": (image(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), (6,)),
    "sequence of an lstm": (
        net(lambda m, x: m[1](m[0](x)[0][..., -1, :]), LSTM, nn.Linear(5, 2)),
        (2, 3),
    ),
    "vector by hand": (net(lambda m, x: m[0](x if x.ndim > 1 else x[None]), nn.Linear(6, 4)), (6,)),
    # axes of size 1 are left out
    "squeezed output": (net(lambda m, x: m[0](x).squeeze(), nn.Linear(6, 1)), (1, 6)),
    "squeezed inside": (
        net(lambda m, x: m[1](m[0](x).squeeze()), nn.Linear(6, 4), nn.Linear(4, 2)),
        (1, 6),
    ),
    "squeezed batch": (net(lambda m, x: m[0](x).squeeze(0), nn.Linear(6, 3)), (1, 6)),
    "squeezed pixels": (
        net(lambda m, x: m[1](m[0](x).squeeze()), nn.Conv2d(1, 4, 4), nn.Linear(4, 2)),
        (1, 1, 4, 4),
    ),
    "squeezed axes": (
        net(lambda m, x: m[1](m[0](x).squeeze((0, 2, 3))), nn.Conv2d(1, 4, 4), nn.Linear(4, 2)),
        (1, 1, 4, 4),
    ),
}


SELDOM = (
    *("series of one step", "row", "tokens of a vector", "three channels"),
    *("vector by hand", "squeezed pixels", "squeezed axes"),
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SELDOM else []) for n in ONE_SAMPLE],
)
def test_the_answer_is_the_networks_own(name):
    """Logits, prediction and the relevance of the input, which is input times gradient."""
    network, shape = ONE_SAMPLE[name]
    torch.manual_seed(1)
    x = torch.randn(shape)
    with torch.no_grad():
        try:
            answer = network(x)
        except RuntimeError:  # it needs the axis
            answer = network(x[None])
    flat = answer.reshape(-1)
    m = ng.measure(network, x, target={0: 1.0}, composite="epsilon")
    assert m.logit == pytest.approx(float(flat[0]), rel=1e-5)
    assert m.predicted == int(flat.argmax())
    assert m.topology.layer("output").n_neurons == flat.numel()


@pytest.mark.parametrize(
    ("name", "shape"), [("series", (5, 8)), ("lstm", (2, 3)), ("flattened image", (4, 4))]
)
def test_a_batch_of_one_is_preferred_and_needed_axes_are_added(name, shape):
    network, _ = ONE_SAMPLE[name]
    assert ng.trace(network, torch.randn(1, *shape)).inputs[0][1] == shape


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("row", (3, 6)),
        ("row", (2, 6)),
        ("image", (3, 1, 4, 4)),
        ("series", (2, 5, 8)),
    ],
)
def test_a_batch_of_several_is_refused(name, shape, tmp_path):
    network, _ = ONE_SAMPLE[name]
    x = torch.randn(shape)
    with pytest.raises(
        ng.InputError, match=rf"found a batch of {shape[0]}, of shape \({shape[0]}, "
    ):
        ng.measure(network, x, composite="epsilon")
    with pytest.raises(ng.InputError, match=r"several to ng\.extract as separate items"):
        ng.extract(network, [x], tmp_path / "s.nrm", composite="epsilon", progress=False)
    assert not (tmp_path / "s.nrm").exists()


class Skip(nn.Module):
    """Normalises batches, but no sample alone."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.n.running_mean.normal_()

    def forward(self, x):
        h = self.a(x)
        return self.b((self.n(h) if h.size(0) > 1 else h).relu())


def later(m, x):
    return m[0](x) * (1 if x.ndim == 1 else 2)


REFUSED = {
    "one apart": (Skip().eval(), (1, 6), "Skip answers for a batch of one otherwise"),
    "one apart, without an axis": (
        Skip().eval(),
        (6,),
        "Skip answers for a batch of one otherwise",
    ),
    "view": (
        net(lambda m, x: m[0](x.view(1, 6)), nn.Linear(6, 3)),
        (1, 6),
        r"batch of two: shape '\[1, 6\]' is invalid",
    ),
    "all flat": (
        net(lambda m, x: m[0](x.flatten()), nn.Linear(6, 3)),
        (1, 6),
        "not for a batch of two",
    ),
    "steps in front": (
        net(lambda m, x: m[1](m[0](x)[0][-1]), nn.LSTM(3, 5), nn.Linear(5, 2)),
        (4, 3),
        r"shape \(4, 2\), expected a first axis of 2",
    ),
    "steps and batch": (
        net(lambda m, x: m[1](m[0](x)[0][-1]), nn.LSTM(3, 5), nn.Linear(5, 2)),
        (4, 1, 3),
        "first axis is not that of the batch, and it takes none in front .LSTM: Expected",
    ),
    "nothing": (net(lambda m, x: m[0](x), nn.Linear(6, 3)), (0, 6), "a size of 0"),
    "integers": (net(lambda m, x: m[0](x).argmax(1), nn.Linear(6, 3)), (1, 6), "tensor of int64"),
    "random": (
        net(lambda m, x: m[0](nn.functional.dropout(x)), nn.Linear(6, 3)),
        (1, 6),
        "answers differently each time",
    ),
    "two readings": (
        net(later, nn.Linear(6, 3)),
        (6,),
        r"two ways: as it is .*\(shape \(3,\)\), as one sample in a batch",
    ),
    "too small": (
        image(nn.Linear(6, 3)),
        (1, 5),
        "as given or with a batch axis in front: (addmm: )?mat1 and mat2",
    ),
    "empty": (
        net(lambda m, x: m[0](x)[:, 5:5], nn.Linear(6, 8)),
        (1, 6),
        r"shape \(1, 0\), which holds no numbers",
    ),
    "own error": (net(lambda m, x: m[7](x), nn.Linear(6, 3)), (1, 6), "index 7 is out of range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_answer_for_one_sample_is_refused_in_a_line(name):
    network, shape, words = REFUSED[name]
    torch.manual_seed(2)
    with pytest.raises(ng.NrmError, match=words) as caught:
        ng.measure(network, torch.randn(shape), target=0, composite="epsilon")
    assert "\n" not in str(caught.value)


def test_one_token_id_is_one_sample():
    torch.manual_seed(0)
    network = net(lambda m, x: m[1](m[0](x).mean(-2)), nn.Embedding(9, 4), nn.Linear(4, 3))
    for ids in (torch.tensor([5]), torch.tensor([5, 2]), torch.tensor([[5, 2]])):
        m = ng.measure(network, ids, target=1, composite="epsilon")
        assert m.logit == pytest.approx(float(network(ids).detach().reshape(-1)[1]), rel=1e-5)


class Pick(nn.Module):
    """Answers with numbers per sample, ``(batch,)``."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.form = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), form

    def forward(self, x):
        y = self.net(x)
        forms = {
            "alone": y[:, 2],
            "sum": y.sum(1),
            "largest": y.amax(1),
            "tuple": (y[:, 0], y[:, 2]),
            "dict": {"mean": y[:, 0], "spread": y[:, 2], "all": y},
            "view": y[:, 2:3].view(-1),
        }
        return forms[self.form]


@pytest.mark.parametrize(
    ("form", "output", "target"),
    [
        ("alone", None, 0),
        ("sum", None, "predicted"),
        pytest.param("largest", None, 0, marks=pytest.mark.slow),
        pytest.param("view", None, 0, marks=pytest.mark.slow),
        pytest.param("tuple", 1, 0, marks=pytest.mark.slow),
        ("tuple", [0, 1], ("1",)),
        pytest.param("dict", "spread", 0, marks=pytest.mark.slow),
        pytest.param("dict", ["spread", "mean"], 0, marks=pytest.mark.slow),
        ("dict", ["all", "mean"], ("all", 2)),
    ],
)
def test_outputs_of_one_number_a_sample(form, output, target, tmp_path):
    network, x = Pick(form).eval(), torch.randn(1, 6, generator=torch.Generator().manual_seed(3))
    leaf = x.clone().requires_grad_(True)
    y = network.net(leaf)[0]
    index = int(y.argmax()) if form == "largest" else 2
    explained = y.sum() if form == "sum" else y[index]
    right = float(explained.detach())
    (gradient,) = torch.autograd.grad(explained, leaf)
    options = {"composite": "epsilon", "output": output}
    m = ng.measure(network, x, target=target, dtype="float64", **options)
    assert m.logit == pytest.approx(right, rel=1e-5)
    relevance = m.marginal("x", "neuron") * m.logit
    torch.testing.assert_close(
        torch.from_numpy(relevance), (leaf * gradient)[0].detach().double(), rtol=1e-4, atol=1e-5
    )
    if form not in ("alone", "dict"):
        return
    path = tmp_path / "s.nrm"
    with ng.extract(network, [x[0]], path, target=target, progress=False, **options) as db:
        ((logit,),) = db.sql("SELECT logit FROM inputs").fetchall()
        assert logit == pytest.approx(right, rel=1e-5)
        ((total,),) = db.sql(
            "SELECT sum(relevance) FROM nodes WHERE layer_id = 0 OR unit < 0"
        ).fetchall()
        assert total == pytest.approx(1, abs=1e-5)


def test_several_inputs_have_their_batch_axes_together():
    network = net(lambda m, x, y: m[0](x + y), nn.Linear(6, 3))
    x = torch.randn(1, 6)
    right = float(network(x, x)[0, 1].detach())
    for pair in ((x, x), (x[0], x[0])):
        assert ng.measure(network, pair, target=1, composite="epsilon").logit == pytest.approx(
            right
        )
    with pytest.raises(ng.InputError, match="all of them with a batch axis of 1, or none"):
        ng.measure(network, (x, x[0]), composite="epsilon")
    with pytest.raises(ng.InputError, match="found a batch of 3"):
        ng.measure(network, (x.expand(3, 6), torch.randn(3, 6)), composite="epsilon")


def test_numbers_are_the_same_under_autocast_and_in_inference_mode():
    torch.manual_seed(0)  # neurons that are all silent would leave the conditional undefined
    network, x = image(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(1, 6)
    some = ng.Layer("0")[2:5]

    def numbers():
        m = ng.measure(network, x, target=1, composite="epsilon")
        edges = m.edges("2", "0", by="neuron")["relevance"].to_numpy()
        return [m.logit, m(some), m(ng.Layer("2")[1], given=some), *m.marginal("0"), *edges]

    right = numbers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert numbers() == right
    with torch.inference_mode():
        assert numbers() == right


@pytest.mark.parametrize(
    "option",
    [
        {"target": None},
        {"target": {}},
        {"target": {1: float("nan")}},
        {"target": [1]},
        {"composite": "nix"},
        {"resolution": 3},
        {"device": "nix"},
        {"dtype": "int8"},
        {"tokens": "abc"},
    ],
    ids=str,
)
def test_cheap_mistakes_are_found_before_anything_is_traced(option, monkeypatch):
    monkeypatch.setattr(
        "nrm_graph.network.tracing.trace_as_given.trace", lambda *_: pytest.fail("it was traced")
    )
    with pytest.raises(ng.NrmError):
        ng.measure(ONE_SAMPLE["row"][0], torch.ones(1, 6), **option)
