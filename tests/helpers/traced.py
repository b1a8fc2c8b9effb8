"""What holds of every traced network: it answers as the network does, sample by sample."""

from __future__ import annotations

import torch
from torch import nn

from nrm_graph.network.ir.interpreter import run
from nrm_graph.network.ir.program import from_json
from nrm_graph.network.ir.validation import vet
from nrm_graph.network.layout import layout
from nrm_graph.network.tracing.output_choice import chosen
from nrm_graph.network.tracing.trace import trace


def same(model, inputs, output=None, tolerance=1e-12):
    """Trace a network at the first sample and compare it with its program; return the program.

    ``inputs`` is a tensor of three samples, or a tuple or mapping of such.
    """
    named = isinstance(inputs, dict)
    batch = tuple(inputs.values()) if named else inputs if isinstance(inputs, tuple) else (inputs,)
    one = tuple(x[:1] for x in batch)
    program = trace(model, dict(zip(inputs, one, strict=True)) if named else one, output)

    def expected(*xs):
        with torch.no_grad():
            returned = model(**dict(zip(inputs, xs, strict=True))) if named else model(*xs)
        found = [t for _, t in chosen(returned, output)]
        return found[0] if len(found) == 1 else torch.cat([t.flatten(1) for t in found], 1)

    answers = expected(*batch)
    size = max(1.0, float(answers.abs().max()))
    assert torch.isfinite(answers).all()
    for order in ([0, 1, 2], [2, 0, 1], [1]):
        found = run(program, *(x[order] for x in batch))
        torch.testing.assert_close(found, answers[order], rtol=0, atol=tolerance * size)
    again = from_json(program.to_json(), program.weights)
    assert again == program
    vet(again)
    return program


def kinds(program):
    """Kind of every layer, by name."""
    return {layer.name: layer.kind for layer in layout(program).topology.layers}


def sources(program, name):
    """Names of the layers that a layer reads."""
    found = layout(program).topology
    return [found.layers[i].name for i in found.sources(found.layer(name).layer_id)]


class Net(nn.Module):
    """Modules by name, and a forward given as a function."""

    def __init__(self, how, **modules):
        super().__init__()
        self.how = how
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.how(self, x)


def build(how, **modules):
    torch.manual_seed(0)
    return Net(how, **modules).double().eval()


def rows(*shape, seed=0):
    return torch.randn(
        3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def fc(width):
    return nn.Linear(width, 2)


class SideBySide(nn.Module):
    """Networks that read the same input, their outputs in a row: they are traced in one go."""

    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, x):
        return torch.cat([part(x) for part in self.parts.values()], 1)


def side_by_side(parts, inputs):
    """Trace networks by name in one go; return the program, and kinds of layers by network."""
    program = same(SideBySide(parts).eval(), inputs)
    found = {name: {} for name in parts}
    for layer, kind in kinds(program).items():
        outer, _, rest = layer.partition(".")
        if outer == "parts":
            name, _, inner = rest.partition(".")
            found[name][inner] = kind
    return program, found
