"""What only a simulated device tells; ``test_simulated_device.py`` runs it in a process."""

from pathlib import Path

import pytest
import torch
from helpers import simulated_device

import nrm_graph as ng
from nrm_graph.errors import NrmError
from nrm_graph.network.ir.interpreter import exact
from nrm_graph.propagation import relevance_pass
from nrm_graph.propagation.forward import forward
from nrm_graph.tables import builder
from nrm_graph.tables.plan import plan
from reference import test_devices

both = test_devices.both


@pytest.mark.parametrize("budget", [None, 80])
def test_the_pass_never_waits(both, budget, monkeypatch):
    """But at the first input of a network, where what rules derive from weights is checked."""
    m, run = both(), relevance_pass.relevance_pass
    tables = plan(m.network, m.partitions, max_edges=budget)
    waits = []

    def watched(*args, **options):
        simulated_device.waits.clear()
        try:
            return run(*args, **options)
        finally:
            waits.append(list(simulated_device.waits))

    monkeypatch.setattr(relevance_pass, "relevance_pass", watched)
    given = [m.state.values[name] for name, _ in m.network.program.inputs]
    for _ in range(2):
        state = forward(m.network, tuple(given))
        builder.sample_tables(state, m.start, tables)
    assert waits[0]
    assert not any(waits[-1:])


def test_whole_tables_are_held_one_layer_at_a_time(both, monkeypatch):
    """Each call that waits for the end of the pass lets go of what it held."""
    left = []
    add = builder.SampleEdges.add

    def counted(sample, layer_id, pieces):
        add(sample, layer_id, pieces)
        left.append(len(tables[0].later))

    tables = []
    init = builder.Tables.__init__
    monkeypatch.setattr(builder.SampleEdges, "add", counted)
    monkeypatch.setattr(
        builder.Tables, "__init__", lambda self, *args: (tables.append(self), init(self, *args))[1]
    )
    both().tables()
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0]


def test_a_device_without_float64(monkeypatch, tmp_path):
    """Tables, complete and bounded, need none; exact events take the CPU where torch says so."""
    monkeypatch.setattr(simulated_device, "refused", {torch.float64})
    for budget in ({}, {"max_edges": 90}):
        path = tmp_path / f"{len(budget)}"
        with test_devices.extract(path, "auto", **budget) as db:
            assert db.sql("SELECT count(*) FROM inputs").fetchall() == [(3,)]


def settings():
    own = torch.backends
    return [place.fp32_precision for place in (own, own.cudnn.conv, own.cuda.matmul)]


@pytest.mark.parametrize("by", ["default", "older names", "newer names"])
def test_products_are_whole_and_settings_are_given_back(by):
    own, before = torch.backends, settings()
    newer = [(own.cudnn.conv, own.cudnn.conv.fp32_precision), (own.cuda.matmul, "none")]
    try:
        if by == "older names":
            torch.set_float32_matmul_precision("high")
        elif by == "newer names":
            for place, _ in newer:
                place.fp32_precision = "tf32"
        chosen = settings()
        assert "tf32" in chosen
        inside = exact(lambda: (settings(), exact(settings)(), settings()))()
        assert not any("tf32" in found for found in inside)
        assert settings() == chosen
        with pytest.raises(NrmError, match="not enough memory"):
            exact(lambda: torch.empty(1 << 50, dtype=torch.uint8, device="cpu"))()
        assert settings() == chosen
    finally:
        if by == "older names":
            torch.set_float32_matmul_precision("highest")
        for place, value in newer if by == "newer names" else ():
            place.fp32_precision = value
    whole = [[value.replace("ieee", "none") for value in found] for found in (settings(), before)]
    assert whole[0] == whole[1]


def test_a_program_is_traced_where_products_are_whole():
    exact(lambda: ng.trace(test_devices.convolutional(), test_devices.images()))()


def test_the_benchmark_says_where_time_goes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(test_devices.__file__).parents[2] / "benchmarks")
    import gpu

    with gpu.timed() as spent:
        took = gpu.seconds(
            lambda: test_devices.extract(tmp_path / "s", "auto", max_edges=90).close()
        )
    assert set(spent) == set(gpu.PARTS)
    assert min(spent.values()) > 0
    assert sum(value for part, value in spent.items() if part != "writing") < took
