"""Rules and operations of users: a few lines, exact, and never run from a store."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.network.ir import operations
from nrm_graph.network.tracing.trace import trace
from nrm_graph.rules import Epsilon, Group, Part, Rule, register
from nrm_graph.rules.registry import RULES
from nrm_graph.store.format.schema import content_hash

pytestmark = pytest.mark.usefixtures("remembered_traces")

TINY = 1e-12


class LogSumExp(nn.Module):
    """A pooling that the package does not know, between two dense layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6)
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        return self.last(torch.logsumexp(self.first(x).reshape(-1, 3, 2), dim=2))


class Wave(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        return self.last(torch.special.bessel_j1(self.first(x)))


@pytest.fixture
def registered():
    """Register operations for one test."""
    before = dict(operations.REGISTERED)

    def add(op, kind):
        ng.register_operation(op, kind)

    yield add
    for op in set(operations.REGISTERED) - set(before):
        del operations.REGISTERED[op]
        operations.SUPPORTED.discard(op)
        operations.CARRYING.discard(op)
        operations.SAME.discard(op)
        operations.WEIGH.pop(op, None)


def test_an_unknown_operation_is_expanded_at_each_input(registered):
    model, x = LogSumExp().double(), torch.randn(1, 4, dtype=torch.float64)
    with pytest.raises(ng.TraceError, match=r"aten\.logsumexp\.default"):
        trace(model, x)
    registered("aten.logsumexp.default", "soft_maximum")
    with pytest.raises(ng.CompositeError, match="no rule for soft_maximum"):
        ng.measure(model, x)
    mine = ng.composites.composite("mine", {"dense": Epsilon(), "soft_maximum": Epsilon(1e-9)})
    m = ng.measure(model, x, composite=mine, target=0)
    (layer,) = (found for found in m.topology.layers if found.kind == "soft_maximum")
    assert layer.shape == (3,)
    for found in m.topology.layers:
        assert abs(m.cut(found.name).total - 1) < TINY
    # The kernel by hand: n_ij = x_i softmax_i, over the value itself.
    y = model.first(x).reshape(3, 2)
    z = torch.logsumexp(y, 1)
    expected = (y * torch.softmax(y, 1) / (z + 1e-9 * z.sign())[:, None]).detach().numpy()
    rows = m.edges(layer.name, "first", by="neuron").to_pandas()
    found = np.zeros((3, 6))
    found[rows["dst_unit"], rows["src_unit"]] = rows["conditional"]
    for j in range(3):
        np.testing.assert_allclose(found[j, 2 * j : 2 * j + 2], expected[j], atol=TINY)
    assert np.count_nonzero(found) == 6
    A, B = ng.Layer(layer.name)[1], ng.Layer("first")[[2, 5]]
    assert abs(m(A & B) - m(A, given=B) * m(B)) < TINY
    assert abs(m(A | B) + m(A & B) - m(A) - m(B)) < TINY


def test_batches_of_an_expanded_operation_agree_with_single_inputs(registered, tmp_path):
    registered("aten.logsumexp.default", "soft_maximum")
    mine = ng.composites.composite("mine", {"dense": Epsilon(), "soft_maximum": Epsilon()})
    model = LogSumExp()
    xs = torch.randn(3, 4)
    with ng.extract(model, list(xs), tmp_path / "a.nrm", composite=mine, batch_size=3) as db:
        assert not db.verify().errors
        for x in xs:
            alone = ng.measure(model, x, composite=mine)
            key = content_hash(x.numpy())
            (layer,) = (found for found in alone.topology.layers if found.kind == "soft_maximum")
            stored = db.sql(
                "SELECT n.unit, n.relevance FROM nodes n JOIN inputs i USING (input_id) "
                "WHERE i.key = $key AND n.layer_id = $layer AND n.unit >= 0 ORDER BY n.unit",
                params={"key": key, "layer": layer.layer_id},
            ).fetchall()
            # float32: rounding of a handful of sums
            np.testing.assert_allclose(
                [value for _, value in stored], alone.marginal(layer.name), atol=1e-5
            )


@pytest.mark.smoke
def test_an_activation_of_ones_own_passes_relevance(registered):
    model, x = Wave().double(), torch.randn(1, 4, dtype=torch.float64)
    registered("aten.special_bessel_j1.default", "activation")
    m = ng.measure(model, x, composite="epsilon")
    assert [layer.name for layer in m.topology.layers] == ["x", "first", "last"]
    assert abs(m.cut("first").total - 1) < TINY


@torch.library.custom_op("nrmtest::spectrum", mutates_args=())
def spectrum(x: torch.Tensor) -> torch.Tensor:
    return torch.fft.rfft(x).abs()


@spectrum.register_fake
def _(x):
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2 + 1))


class Spectrum(nn.Module):
    """A whole module as one operation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.ops.nrmtest.spectrum(self.first(x)))


def test_a_module_as_one_operation(registered):
    model, x = Spectrum().double(), torch.randn(1, 4, dtype=torch.float64)
    registered("nrmtest.spectrum.default", "spectrum")
    mine = ng.composites.composite("mine", {"dense": Epsilon(), "spectrum": Epsilon()})
    with pytest.raises(ng.CompositeError, match="cannot be differentiated"):
        ng.measure(model, x, composite=mine).report()

    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_(True)
        with torch.enable_grad():
            return torch.autograd.grad(torch.fft.rfft(x).abs(), x, grad)[0]

    spectrum.register_autograd(
        backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
    )
    m = ng.measure(model, x, composite=mine)
    layer = next(found.name for found in m.topology.layers if found.kind == "spectrum")
    for found in m.topology.layers:
        assert abs(m.cut(found.name).total - 1) < TINY
    # |rfft| is homogeneous: the expansion leaves nothing over.
    bias = m.report().to_pandas().set_index("layer")["bias"][layer]
    assert abs(bias) < TINY


@pytest.mark.parametrize(
    ("op", "kind", "message"),
    [
        ("aten.no_such_thing.default", "x", "torch has no operation"),
        ("logsumexp", "x", "torch has no operation"),
        ("aten.logsumexp.default", "two words", "kind must be a word"),
        ("aten.relu.default", "mine", "known already"),
        ("aten.conv2d.default", "mine", "known already, as a convolution"),
    ],
)
def test_registrations_that_cannot_be_are_refused(op, kind, message):
    with pytest.raises(ng.CompositeError, match=message):
        ng.register_operation(op, kind)


@register
@dataclass(frozen=True)
class Halves(Rule):
    """Epsilon on half of the weights' magnitude: an odd rule of one's own."""

    share: float = 0.5

    def groups(self, op, signs):
        parts = tuple(Part(k, lambda x: x, self.share * w) for k, w in enumerate(op.tensors))
        bias = None if op.shift is None else self.share * op.shift
        return (Group(parts, bias, 1e-9),)


@pytest.mark.slow
def test_a_rule_of_ones_own_goes_into_a_store_by_name(tmp_path):
    mine = ng.composites.composite("mine", {"dense": Epsilon()}, layers={"1": Halves(0.25)})
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = torch.randn(3)
    with ng.extract(model, [x], tmp_path / "a.nrm", composite=mine) as db:
        m = db.measure(db.sql("SELECT key FROM inputs").fetchall()[0][0])
        assert abs(m.cut("0").total - 1) < 1e-6
        assert m.network.rules[2] == Halves(0.25)
    # Another process that has not registered it reads the tables, and refuses to guess the rule.
    code = (
        "import nrm_graph as ng, sys\n"
        f"db = ng.open({str(tmp_path / 'a.nrm')!r})\n"
        "key = db.sql('SELECT key FROM inputs').fetchall()[0][0]\n"
        "try:\n"
        "    db.measure(key)\n"
        "except ng.StoreError as error:\n"
        "    assert 'registered' in str(error), error\n"
        "    sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7


def test_a_store_of_ones_own_rule_is_not_called_damaged(tmp_path):
    mine = ng.composites.composite("mine", {"dense": Halves(0.25)})
    model, path = nn.Sequential(nn.Linear(3, 2)), tmp_path / "a.nrm"
    ng.extract(model, [torch.randn(3)], path, composite=mine).close()
    kept = RULES.pop("Halves")
    try:
        with ng.open(path) as db:
            report = db.verify()
        assert not report.errors
        assert "registered" in str(report.notes[0])
        with pytest.raises(ng.CompositeError, match="not registered"):
            ng.extract(model, [torch.randn(3)], tmp_path / "b.nrm", composite=mine)
        assert not (tmp_path / "b.nrm").exists()
    finally:
        RULES["Halves"] = kept


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"kinds": {"densee": Epsilon()}}, "no kind of layer 'densee'"),
        ({"kinds": {"dense": "epsilon"}}, "must be a rule such as"),
        ({"kinds": {"dense": Epsilon}}, "must be a rule such as"),
        ({"kinds": {"dense": Epsilon()}, "layers": {"nope.*": Epsilon()}}, "no layer .* 'nope"),
    ],
)
def test_composites_with_slips_are_refused(named, message):
    with pytest.raises(ng.CompositeError, match=message):
        ng.measure(nn.Linear(3, 2), torch.ones(3), composite=ng.composites.composite("c", **named))


def test_what_is_no_rule_or_takes_a_name_is_refused():
    with pytest.raises(ng.CompositeError, match="derives from Rule"):
        register(int)
    other = dataclass(frozen=True)(type("Epsilon", (Rule,), {}))
    with pytest.raises(ng.CompositeError, match="taken"):
        register(other)
    assert RULES["Epsilon"] is Epsilon
