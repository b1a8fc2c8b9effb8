"""Kinds of modules: compiled, exported, scripted, quantised ones, and forward that keeps books."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import nrm_graph as ng
from nrm_graph.foreign_errors import translated

X = torch.linspace(-1, 1, 6)[None]


class Books(nn.Module):
    """Two layers, and a line of bookkeeping in forward."""

    def __init__(self, keep):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.keep = nn.Linear(6, 8), nn.Linear(8, 3), keep
        self.register_buffer("calls", torch.zeros(()))
        self.last, self.number, self.history = None, 0, []

    def forward(self, x):
        hidden = self.a(x).relu()
        factor = self.keep(self, x, hidden)
        return self.b(hidden) if factor is None else self.b(hidden) * factor


def count(net, x, hidden):
    net.calls.add_(1)


def statistics(net, x, hidden):
    net.calls = 0.9 * net.calls + 0.1 * hidden.mean()


def remember(net, x, hidden):
    net.number += 1
    net.history.append(hidden)


def cache(net, x, hidden):
    net.calls = torch.full((3,), 2.0)
    return net.calls


BOOKS = {"count": count, "statistics": statistics, "remember": remember, "cache": cache}


@pytest.mark.parametrize("name", BOOKS)
def test_bookkeeping_is_left_aside_and_undone(name):
    net = Books(BOOKS[name]).train()
    right = copy.deepcopy(net).eval()(X)
    m = ng.measure(net, X, target=1, composite="epsilon")
    assert m.logit == pytest.approx(float(right[0, 1].detach()), rel=1e-5)
    assert m.report().to_pylist()[-1]["layer"] == "x"
    assert net.training
    assert net.calls.shape == ()
    assert net.calls == 0
    assert net.number == 0


def test_a_state_that_the_output_depends_on_is_refused():
    def use(net, x, hidden):
        net.calls.add_(1)
        return 1 + 0 * net.calls

    with pytest.raises(ng.TraceError, match="'calls' of the network itself and its output depends"):
        ng.trace(Books(use), X)

    def change(net, x, hidden):
        net.calls.add_(1)
        return net.calls

    net = Books(change)
    with pytest.raises(ng.TraceError, match=r"differently each time .* keeps a state"):
        ng.trace(nn.Sequential(net), X)
    assert net.calls == 0


def test_inputs_changed_in_place():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, x):
            x.mul_(2)
            x += 1
            return self.a(x)

    net, x = InPlace().eval(), X.clone()
    m = ng.measure(net, x, target=1, composite="epsilon")
    assert torch.equal(x, X)
    assert m.logit == pytest.approx(float(net(X.clone())[0, 1].detach()), rel=1e-5)


def test_an_embedding_with_a_largest_norm(tmp_path):
    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.words, self.head = nn.Embedding(9, 4, max_norm=0.5), nn.Linear(4, 3)

        def forward(self, ids):
            return self.head(self.words(ids).mean(1))

    net, ids = Clipped().eval(), torch.tensor([[4, 1, 4]])
    table = net.words.weight
    before = table.detach().clone()
    m = ng.measure(net, ids, target=2, composite="epsilon")
    with ng.extract(net, [ids[0]], tmp_path / "s", composite="epsilon", progress=False) as db:
        ((key,),) = db.sql("SELECT key FROM inputs").fetchall()
        stored = db.measure(key, target={2: 1.0})
    assert net.words.weight is table
    assert torch.equal(table, before)
    assert net.words.max_norm == 0.5
    right = float(net(ids)[0, 2].detach())
    assert m.logit == pytest.approx(right, rel=1e-5)
    assert stored.logit == pytest.approx(right, rel=1e-5)
    functional = Books(lambda net, x, h: nn.functional.embedding(
        torch.zeros(1, dtype=torch.int64), net.a.weight, max_norm=0.1)[:, :3])  # fmt: skip
    with pytest.raises(ng.TraceError, match="changes the tensor 'weight' of a"):
        ng.trace(functional, X)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@functools.cache
def answers():
    return ng.measure(mlp(), X, target=1, composite="epsilon")


def same_answers(net):
    m, own = ng.measure(net, X, target=1, composite="epsilon"), answers()
    assert m.logit == pytest.approx(own.logit, rel=1e-6)
    assert [layer.name for layer in m.topology.layers][1:] == ["0", "2"]
    assert m(ng.Layer("0")[2:5]) == pytest.approx(own(ng.Layer("0")[2:5]), rel=1e-5)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch 2.9's own
@pytest.mark.parametrize("form", ["program", "module", "any batch", "two and more", "archive"])
def test_exported_programs(form, tmp_path):
    net = mlp()
    sizes = {"any batch": torch.export.Dim("n", min=1), "two and more": torch.export.Dim("n")}
    shapes = ({0: sizes[form]},) if form in sizes else None
    example = torch.randn(2, 6) if form in sizes else X
    exported = torch.export.export(net, (example,), dynamic_shapes=shapes)
    if form == "archive":
        torch.export.save(exported, tmp_path / "net.pt2")
        exported = torch.export.load(tmp_path / "net.pt2")
    same_answers(exported.module() if form == "module" else exported)


def test_an_exported_program_keeps_to_what_it_was_exported_for():
    module = torch.export.export(mlp(), (X,)).module()
    with pytest.raises(ng.InputError, match=r"Guard failed: input.size\(\)\[0\] == 1"):
        ng.trace(module, X.expand(2, 6))
    ng.trace(module, X)
    with pytest.raises(AssertionError, match="Guard failed"):
        module(X.expand(2, 6))

    class Fixed(nn.Module):
        def forward(self, x):
            return x.view(1, 3, 2).sum(2)

    with pytest.raises(ng.TraceError, match="a network that was exported so"):
        ng.trace(torch.export.export(Fixed(), (X,)), X)


@pytest.mark.parametrize("form", ["whole", "part", "in place"])
def test_compiled_modules_are_explained_as_what_they_were_made_from(form):
    net = mlp()
    if form == "whole":
        same_answers(torch.compile(net))
        return
    if form == "in place":
        compiled = mlp()
        compiled.compile()
        same_answers(compiled)
        assert compiled._compiled_call_impl is not None
        return
    inner = torch.compile(net)
    m = ng.measure(nn.Sequential(inner, nn.Linear(3, 2)).eval(), X, composite="epsilon")
    assert [layer.name for layer in m.topology.layers][1:] == ["0.0", "0.2", "1"]
    assert m.topology.layer("0.1").name == "0.0"


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x):
        return self.a(x) if x.sum() > 5 else self.a(-x)


@pytest.mark.filterwarnings("ignore")  # torch's, of what is deprecated
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.jit.trace(mlp(), X), "is TorchScript"),
        (lambda: nn.Sequential(torch.jit.script(mlp())), "submodule 0 .* is TorchScript"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "0.weight of Sequential is not initialised"),
        (
            lambda: torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}, torch.qint8),
            r"submodule 0 \(Linear\) is quantised \(int8\), which is not supported",
        ),
        (lambda: mlp().to("meta"), "on the meta device"),
        (Branch, r"Branch branches or sizes .* by the values of its input \(return self.a"),
        (lambda: nn.Linear, "found the class Linear: give an instance"),
        (lambda: torch.relu, "model must be a torch module"),
    ],
    ids=["traced", "scripted part", "lazy", "quantised", "meta", "branch", "class", "function"],
)
def test_modules_that_cannot_be_explained(make, words, tmp_path, capfd):
    net = make()
    for call in (
        lambda: ng.measure(net, X, composite="epsilon"),
        lambda: ng.trace(net, X),
        lambda: ng.extract(net, [X[0]], tmp_path / "s", composite="epsilon", progress=False),
    ):
        with pytest.raises(ng.NrmError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_networks_made_in_inference_mode_and_detached_values():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
            self.register_buffer("scale", torch.full((3,), 2.0))

        def forward(self, x):
            return self.b(self.a(x.detach()).relu().detach()) * self.scale

    right = float(Detached()(X)[0, 1].detach())
    with torch.inference_mode():
        inferred = Detached()
    for net in (Detached(), inferred):
        m = ng.measure(net, X, target=1, composite="epsilon")
        assert m.logit == pytest.approx(right, rel=1e-6)
        assert [layer.name for layer in m.topology.layers][:3] == ["x", "a", "b"]
    assert inferred.a.weight.is_inference()


def test_what_other_libraries_raise_becomes_an_error_of_this_package():
    import duckdb
    import pyarrow as pa

    def raising(error):
        @translated("testing", ng.TraceError)
        def call():
            """Own words."""
            raise error

        return call

    assert raising(None).__doc__ == "Own words."
    for error, kind, words in (
        (RuntimeError("odd size\nmore"), ng.TraceError, "failed, with RuntimeError: odd size"),
        (ValueError("odd"), ng.TraceError, "ValueError: odd, in test_kinds_of_modules.py line"),
        (duckdb.Error("no table"), ng.QueryError, "testing failed: no table"),
        (pa.ArrowInvalid("bad"), ng.StoreError, "testing failed: bad"),
        (MemoryError(), ng.NrmError, "not enough memory"),
        (RuntimeError("can't allocate memory: you tried"), ng.NrmError, "not enough memory"),
        (RuntimeError("X out of memory. Tried"), ng.NrmError, "not enough memory .X out"),
        (RuntimeError("BLAS_STATUS_ALLOC_FAILED"), ng.NrmError, "another device"),
    ):
        with pytest.raises(kind, match=words) as caught:
            raising(error)()
        assert caught.value.__cause__ is error
    for error in (ng.EventError("as it is"), UserWarning("a warning"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            raising(error)()
        assert caught.value is error


def test_a_defect_of_this_package_says_so(monkeypatch):
    from nrm_graph.network.tracing import trace

    monkeypatch.setattr(trace, "prune", lambda program: program.nodes["no such key"])
    with pytest.raises(ng.NrmError, match=r"tracing failed, with TypeError|defect of nrm_graph"):
        ng.trace(mlp(), X)
