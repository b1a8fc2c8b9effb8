"""A stranger's program: what is new in it is refused where it is not sound."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers.traced import build, fc, rows
from torch import nn

import nrm_graph as ng
from nrm_graph.network.ir import elementwise
from nrm_graph.network.ir.program import from_json, passive
from nrm_graph.network.ir.validation import vet
from nrm_graph.network.tracing.trace import trace


@pytest.fixture(scope="module")
def squared():
    return trace(build(lambda m, x: m.fc(m.a(x) ** 2), a=nn.Linear(4, 4), fc=fc(4)), rows(4)[:1])


@pytest.fixture(scope="module")
def picked():
    index = torch.tensor([3, 0])
    return trace(
        build(lambda m, x: m.fc(m.a(x)[:, index]), a=nn.Linear(4, 4), fc=fc(2)), rows(4)[:1]
    )


@pytest.fixture(scope="module")
def embedded():
    def how(m, ids):
        return m.fc((m.table(ids) * (ids > 0)[..., None]).sum(1))

    return trace(build(how, table=nn.Embedding(5, 3), fc=fc(3)), torch.tensor([1, 2]))


def changed(program, kind, **changes):
    nodes = tuple(replace(n, **changes) if n.op == kind else n for n in program.nodes)
    assert nodes != program.nodes
    return replace(program, nodes=nodes)


def deep(levels):
    found = "x"
    for _ in range(levels):
        found = ("tanh", found)
    return found


def wide(levels):
    found = "x"
    for _ in range(levels):
        found = ("add", found, found)
    return found


EXPRESSIONS = {
    "foreign": (("system", "x"), "names the function 'system'"),
    "attribute": (("__class__", "x"), "names the function '__class__'"),
    "variable": (("tanh", "y"), "reads 'y', expected 'x'"),
    "nothing": (("tanh", 1.0), "does not read its neuron"),
    "too_many": (("tanh", "x", "x"), "tanh takes 1 arguments, found 2"),
    "too_few": (("add", "x"), "add takes 2 arguments, found 1"),
    "truth": (("add", "x", True), "holds True, expected a number"),
    "infinite": (("add", "x", float("inf")), "holds inf, expected a number"),
    "empty": ((), "names the function ''"),
    "unnamed": ((("tanh",), "x"), "names the function"),
    "beside": (("softplus", "x", "x", 20.0), "softplus takes numbers beside"),
    "deep": (deep(100), "more than"),
    "wide": (wide(20), "more than"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "wide" else []) for n in EXPRESSIONS]
)
def test_expressions(name, squared):
    expression, message = EXPRESSIONS[name]
    (node,) = (n for n in squared.nodes if n.op == "nrm.elementwise")
    program = changed(squared, "nrm.elementwise", args=(node.args[0], expression))
    with pytest.raises(ng.StoreError, match=message):
        vet(program)
    with pytest.raises(ValueError, match=message):
        elementwise.evaluate(torch.zeros(2), expression)


def test_an_expression_survives_its_text(squared):
    (node,) = (n for n in squared.nodes if n.op == "nrm.elementwise")
    assert node.args[1] == ("pow", "x", 2)
    again = from_json(squared.to_json(), squared.weights)
    assert again == squared
    assert again.hash() == squared.hash()


@pytest.mark.smoke
def test_very_deep_text_is_refused_before_it_is_run(squared):
    text = squared.to_json()
    graph = json.loads(text)
    (node,) = (n for n in graph["nodes"] if n["op"] == "nrm.elementwise")
    node["args"][1] = deep(100)
    with pytest.raises(ng.StoreError, match="more than"):
        vet(from_json(json.dumps(graph), squared.weights))
    bomb = text.replace('"args"', '"args": ' + "[" * 100_000 + "]" * 100_000 + ', "args_"', 1)
    with pytest.raises(ng.StoreError, match="not a program"):
        from_json(bomb, squared.weights)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([3, 4]), "out of range for a size of 4"),
        (torch.tensor([-5, 0]), "out of range for a size of 4"),
        (torch.tensor([0.0, 1.0]), "an index has the type torch.float32"),
        (torch.tensor([True, False, True, False]), "an index has the type torch.bool"),
    ],
)
def test_indices(picked, index, message):
    (node,) = (n for n in picked.nodes if n.op == "aten.index.Tensor")
    name = node.args[1][1].name
    vet(picked)
    with pytest.raises(ng.StoreError, match=message):
        vet(replace(picked, weights={**picked.weights, name: index}))


def test_relevance_cannot_be_sent_through_what_integers_alone_may_pass(embedded):
    assert embedded.integers == ("x",)
    assert {n.op for n in embedded.nodes if n.name in passive(embedded)} >= {"aten.gt.Scalar"}
    vet(embedded)
    (node,) = (n for n in embedded.nodes if n.op == "aten.embedding.default")
    (after,) = (n for n in embedded.nodes if node.name in n.references())
    program = changed(embedded, after.op, op="aten.abs.default", args=after.args[:1])
    with pytest.raises(ng.StoreError, match="relevance cannot pass it"):
        vet(program)


def test_what_is_said_of_inputs(embedded):
    graph = json.loads(embedded.to_json())
    graph["integers"] = ["mask"]
    with pytest.raises(ng.StoreError, match="its integers are no inputs"):
        from_json(json.dumps(graph), embedded.weights)
    with pytest.raises(ng.StoreError, match="cannot be executed"):
        vet(replace(embedded, integers=()))
    graph = json.loads(embedded.to_json())
    graph["outputs"] = [["logits"]]
    with pytest.raises(ng.StoreError, match="not a program"):
        from_json(json.dumps(graph), embedded.weights)
