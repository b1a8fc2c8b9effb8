"""The same inputs in two stores: paired by key and target, compared where networks share layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import nrm_graph as ng
from nrm_graph.cli.main import main

pytestmark = pytest.mark.usefixtures("remembered_traces")

KEYS = ["dst_layer", "dst_unit", "src_layer", "src_unit"]


def network(seed: float = 0.0, hidden: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, hidden),
                        nn.ReLU(), nn.Linear(hidden, 2))  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += seed * torch.randn_like(parameter)
    return net.eval()


def extract(path, net, keys=range(8), noise=0.0, **options):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(10, 1, 3, 3, generator=generator)
    images += noise * torch.randn(10, 1, 3, 3, generator=generator)
    rows = [{"input": images[i], "key": f"k{i}", "label": "ab"[i % 2]} for i in keys]
    options = {"target": 1, "composite": "epsilon", "progress": False} | options
    return ng.extract(net, rows, path, **options)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    tuned = extract(folder / "tuned.nrm", network(0.05), range(2, 10))
    with extract(folder / "base.nrm", network()) as base, tuned:
        yield base, tuned


def values(db, table, keys, names):
    """R x logit of every edge or node and key, as a frame."""
    rows = db.sql(f"SELECT t.*, key, logit FROM {table} t JOIN inputs USING (input_id)").df()
    rows["v"] = rows.relevance.astype(np.float64) * rows.logit.astype(np.float64)
    return rows.groupby([*names, "key"]).v.sum().unstack(fill_value=0.0).reindex(columns=keys)


def test_comparisons_equal_scipy_on_dense_pairs(stores):
    base, tuned = stores
    result = base.contrast(None, other=tuned, edges=10_000)
    assert result.paired
    assert result.stores == ("base.nrm", "tuned.nrm")
    keys = [f"k{i}" for i in range(2, 8)]
    assert sorted(result.a.keys) == sorted(result.b.keys) == keys
    assert sum("2 of the 8 inputs" in note for note in result.notes) == 2
    for table, names, column, found in (
        ("edges", KEYS, "difference", result.table),
        ("nodes", ["layer_id", "unit"], "relevance", result.nodes),
    ):
        a, b = (values(db, table, keys, names) for db in stores)
        assert len(found) > 15
        every = set(a.index) | set(b.index)
        zero = np.zeros(len(keys))
        for row in found.to_pylist():
            name = tuple(row[n] for n in names)
            assert name in every
            x = a.loc[name].to_numpy() if name in a.index else zero
            y = b.loc[name].to_numpy() if name in b.index else zero
            assert row[column] == pytest.approx((x - y).mean(), abs=1e-9)
            if row["welch_p"] is not None:
                assert row["welch_p"] == pytest.approx(stats.ttest_rel(x, y).pvalue, rel=1e-6)
    graph = result.graph(10)
    assert graph.graph["where"] == "(all of base.nrm) minus (all of tuned.nrm)"
    assert any("welch_q" in data for _, data in graph.nodes(data=True))
    assert "all of tuned.nrm" in repr(result)


def test_clean_against_noisy_inputs_of_one_network(stores, tmp_path):
    base, _ = stores
    with extract(tmp_path / "noisy.nrm", base.program, noise=0.1) as noisy:
        result = base.contrast("label = 'a'", other=noisy, by={"0": "channel"})
        assert len(set(result.a.keys)) == 4
        assert result.by == {"0": "channel"}
        assert not [note for note in result.notes if "left out" in note]
        with extract(tmp_path / "same.nrm", base.program) as same:
            alike = base.contrast(None, other=same)
            assert np.abs(alike.table["difference"].to_numpy()).max() == 0


def test_layers_that_are_not_shared_are_named(stores, tmp_path):
    base, _ = stores
    with extract(tmp_path / "wide.nrm", network(hidden=5)) as wide:
        result = base.contrast(None, other=wide)
        (note,) = (n for n in result.notes if "not compared" in n)
        assert "3" in note.rpartition(":")[2]
        named = {row["dst"] for row in result.table.to_pylist()}
        named |= {row["src"] for row in result.table.to_pylist()}
        assert named <= {"input", "0", "5"}
    other = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)).eval()
    flat = extract(tmp_path / "flat.nrm", other)
    with flat, pytest.raises(ng.InputError, match="share no two layers"):
        base.contrast(None, other=flat)


def test_what_has_no_partner_is_refused(stores, tmp_path):
    base, tuned = stores
    for call, text in (
        (lambda: base.contrast("label = 'a'"), "found neither"),
        (lambda: base.contrast(None, "label = 'b'", other=tuned), "found both"),
        (lambda: base.contrast(None, other="tuned.nrm"), "an opened store"),
        (lambda: base.contrast(None, other=tuned, tables="steps"), "leave tables="),
    ):
        with pytest.raises(ng.InputError, match=text):
            call()
    zero = extract(tmp_path / "zero.nrm", network(), target=0)
    with zero, pytest.raises(ng.InputError, match="8 keys in common, and no key whose target"):
        base.contrast(None, other=zero)
    with extract(tmp_path / "both.nrm", network(), target=[0, 1], bias="ignored") as both:
        result = base.contrast(None, other=both, target=1)
        assert "different rules" in " ".join(result.notes)


def test_a_bounded_store_beside_a_complete_one(stores, tmp_path):
    base, _ = stores
    with extract(tmp_path / "few.nrm", base.program, max_edges=40) as few:
        plain = base.contrast(None, other=few, edges=10_000)
        assert plain.unknown > 0
        assert np.abs(plain.table["difference"].to_numpy()).max() < 1e-6
        exact = base.contrast(None, other=few, edges=10_000, exact=True)
        assert exact.unknown == 0
        assert len(exact.table) > len(plain.table)
        assert np.abs(exact.table["difference"].to_numpy()).max() < 1e-6


def test_the_command_line(stores, capsys):
    base, tuned = stores
    assert main(["contrast", str(base.path), "label = 'a'", "--other", str(tuned.path)]) == 0
    printed = capsys.readouterr().out
    assert "label = 'a' of tuned.nrm" in printed
    assert main(["contrast", str(base.path), "label = 'a'"]) == 3


def test_circuits_of_another_network_are_refused(stores):
    base, tuned = stores
    circuit = base.circuit("label = 'a'", top=20)
    held = "label = 'b'"
    for call in (
        lambda: tuned.prototypes(circuit),
        lambda: ng.evaluate.faithfulness(tuned, circuit, held, by="units", draws=1),
        lambda: ng.evaluate.randomization(tuned, circuit, draws=1),
    ):
        with pytest.raises(ng.InputError, match="of another network"):
            call()
    del circuit.graph["program"]
    assert len(tuned.prototypes(circuit, k=1)) == 2


def test_the_picture_of_a_contrast_says_so(stores):
    base, tuned = stores
    figure = ng.plots.plot_circuit(base.contrast(None, other=tuned).graph(10))
    assert figure.get_suptitle().startswith("Contrast of 6 inputs")
    assert not any("in own" in text.get_text() for ax in figure.axes for text in ax.texts)
