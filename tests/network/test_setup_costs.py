"""Tracing runs as little as its checks need, and labels take no memory that they need not."""

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from nrm_graph.network import units
from nrm_graph.network.ir import interpreter
from nrm_graph.network.ir.finite import finite
from nrm_graph.network.ir.interpreter import run, settle_batches
from nrm_graph.network.topology import LayerInfo
from nrm_graph.network.tracing import trace as tracing
from nrm_graph.network.tracing.module_outputs import passed_through
from nrm_graph.network.tracing.trace import trace

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Counted(nn.Module):
    """A network that notes how many samples it is asked for, outside of the exporter."""

    def __init__(self):
        super().__init__()
        self.layer, self.asked = nn.Linear(3, 2), []

    def forward(self, x):
        if not torch.compiler.is_compiling():
            self.asked.append(x.shape[0] if x.ndim == 2 else 0)
        return self.layer(x).relu()


@pytest.mark.smoke
def test_each_answer_is_computed_once(monkeypatch):
    asked = []

    def steps(program, *inputs):
        asked.append(inputs[0].shape[0])
        return interpreter_steps(program, *inputs)

    interpreter_steps = interpreter.steps
    monkeypatch.setattr(interpreter, "steps", steps)
    net = Counted().eval()
    noted = net.asked
    trace(net, torch.randn(1, 3))
    assert noted == [1, 2]  # the sample as given, and twice in a batch
    assert sorted(asked) == [1, 1, 2]  # the sample, another, and both in a batch


@pytest.mark.smoke
def test_answers_on_the_way_are_those_of_the_program():
    x = torch.randn(1, 3)
    program = trace(Counted().eval(), x)
    settled = settle_batches(program, [x])
    torch.testing.assert_close(settled.alone[0], run(program, x))
    torch.testing.assert_close(settled.together[:1], settled.alone[0])
    torch.testing.assert_close(settled.together[1:], settled.alone[1])
    assert settled.program.nodes == program.nodes
    assert not torch.equal(*settled.alone)


@pytest.mark.parametrize(("place", "words"), [(0, "one sample"), (1, "two"), (2, "two")])
def test_a_program_that_answers_otherwise_is_refused(place, words, monkeypatch):
    real = tracing.settle_batches

    def wrong(program, examples):
        settled = real(program, examples)
        answers = [settled.alone[0], *settled.together.split(1)]
        answers[place].add_(1.0)  # splits share the memory of the batch
        return settled

    monkeypatch.setattr(tracing, "settle_batches", wrong)
    with pytest.raises(tracing.TraceError, match=f"does not answer as Sequential.*{words}"):
        trace(nn.Sequential(nn.Linear(3, 2)).eval(), torch.randn(1, 3))


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", TYPES)
def test_finite(dtype):
    largest = torch.full((7,), torch.finfo(dtype).max, dtype=dtype)  # whose sum is infinite
    assert finite(largest)
    assert finite(torch.zeros(0, dtype=dtype))
    for wrong in (torch.nan, torch.inf, -torch.inf):
        some = torch.ones(3, dtype=dtype)
        some[1] = wrong
        assert not finite(some)
    assert not finite(torch.tensor([torch.inf, -torch.inf], dtype=dtype))


def labels_of(shape, resolution):
    """Unit of every neuron, one by one."""
    chosen = {
        "neuron": range(len(shape)),
        "channel": [0],
        "feature": [len(shape) - 1],
        "token": range(len(shape) - 1),
        "head": [max(0, len(shape) - 3)],
    }[resolution]
    axes = list(chosen) if shape else []
    flat = [np.ravel_multi_index(i, shape) if shape else 0 for i in np.ndindex(shape)]
    keys = [tuple(i[a] for a in axes) for i in np.ndindex(shape)]
    units_by_key = {key: k for k, key in enumerate(sorted(set(keys)))}
    return np.array([units_by_key[keys[k]] for k in np.argsort(flat)]).reshape(shape)


@pytest.mark.smoke
@pytest.mark.parametrize("resolution", units.RESOLUTIONS)
@pytest.mark.parametrize(
    "shape", [(), (1,), (4,), (1, 4), (3, 1, 1), (2, 3, 4), (2, 3, 4, 5), (3, 0)]
)
def test_labels_of_a_resolution(shape, resolution):
    part = units.partition(LayerInfo(0, "x", "dense", shape, 0), resolution)
    assert part.labels.dtype == np.int32
    assert part.labels.shape == shape
    np.testing.assert_array_equal(part.labels, labels_of(shape, resolution))
    assert part.n_units == len(np.unique(part.labels))
    small = units.compact(part.labels)
    np.testing.assert_array_equal(np.broadcast_to(small, shape), part.labels)
    assert small.size == part.n_units or not part.labels.size


@pytest.mark.smoke
def test_what_modules_return_is_let_go():
    kept = []

    class Watched(nn.Module):
        def forward(self, x):
            kept.append(weakref.ref(x))
            return x * 2

    def alive(*_):
        counts.append(sum(reference() is not None for reference in kept))

    counts = []
    net = nn.Sequential(*(Watched() for _ in range(4)), nn.Dropout(), nn.Identity()).eval()
    for module in net:
        module.register_forward_hook(alive)
    with passed_through(net) as same:
        net(torch.ones(1, 2))
        assert same == [("4", "3"), ("5", "4")]
    assert max(counts) <= 2
