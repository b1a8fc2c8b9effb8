"""Events ablated in the running network, of a measure and of a store, against torch modules."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from evaluate.test_ablation import hooked, setting
from helpers.architectures import TwoInputs
from torch import nn

import nrm_graph as ng
from nrm_graph.errors import EventError, InputError, StoreError
from nrm_graph.evaluate import Ablated, ablate

CLOSE = {"rtol": 0, "atol": 1e-10}
COUNT = 12


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3),
    ).double()  # fmt: skip


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(COUNT, 1, 6, 6, generator=generator, dtype=torch.float64)


@functools.cache
def program():
    return ng.trace(network(), images()[:1])


def measure(n=0, **options):
    return ng.measure(program(), images()[n], target=1, composite="epsilon", **options)


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    path = tmp_path_factory.mktemp("ablated") / "s.nrm"
    rows = [{"input": x, "key": f"k{n:02d}", "label": "ab"[n % 2]} for n, x in enumerate(images())]
    with ng.extract(
        program(), rows, path, composite="epsilon", target=[0, 1], progress=False
    ) as view:
        yield view


def scaled(index, factor, base=0.0):
    def change(out):
        out[:, index] = base + factor * (out[:, index] - base)
        return out

    return change


def of(found):
    """Numbers of the inputs of a result, in its order."""
    return [int(key[1:]) for key in found.table["key"].to_pylist()]


EVENT = ng.Layer("0")[1]


@pytest.mark.smoke
@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, -1.0, 1.0])
def test_a_channel_of_one_input(factor):
    x = images()[:1]
    m = measure()
    found = ablate(m, EVENT, factor=factor)
    expected = hooked(network(), x, **{"1": scaled(1, factor)}).detach().numpy()
    np.testing.assert_allclose(found.ablated_outputs, expected, **CLOSE)
    np.testing.assert_allclose(found.outputs, network()(x).detach().numpy(), **CLOSE)
    (row,) = found.table.to_pylist()
    assert row["logit"] == pytest.approx(m.logit)
    assert row["ablated"] == pytest.approx(expected[0, 1])
    assert row["drop"] == pytest.approx(m.logit - expected[0, 1], abs=1e-12)
    assert row["relevance"] == m(EVENT)
    assert row["relevance_x_logit"] == pytest.approx(m(EVENT) * m.logit)
    assert row["target"] == 1
    assert row["predicted"] == found.outputs[0].argmax()
    assert row["ablated_predicted"] == expected[0].argmax()
    assert row["input_id"] is row["key"] is row["label"] is None
    assert found.neurons == {"0": 16}
    assert found.averaged == 0


def test_sets_of_several_layers_at_once():
    event = ng.Layer("0")[:, 2:, 0] & ng.Layer("4")[[0, 3]] & ng.Layer("0")[1:]
    found = ablate(measure(), event)

    def cut(out):
        out[:, 1:, 2:, 0] = 0.0
        return out

    expected = hooked(network(), images()[:1], **{"1": cut, "5": setting([0, 3], 0.0)})
    np.testing.assert_allclose(found.ablated_outputs, expected.numpy(), **CLOSE)
    assert found.neurons == {"0": 4, "4": 2}


def test_sets_of_one_layer_are_one_set():
    joined = ablate(measure(), (EVENT | ng.Layer("0")[2]) - ng.Layer("0")[:, 0])
    at = ablate(measure(), ng.Layer("0")[1:, 1:])
    np.testing.assert_array_equal(joined.ablated_outputs, at.ablated_outputs)
    assert joined.neurons == {"0": 24}


def test_inputs_outputs_and_units():
    m = measure(resolution={"0": "channel"})
    by_unit = ablate(m, ng.Layer("0").units([1]) & ng.Layer("4")[0])
    by_index = ablate(m, EVENT & ng.Layer("4")[0])
    np.testing.assert_array_equal(by_unit.ablated_outputs, by_index.ablated_outputs)
    assert by_unit.neurons == {"0": 16, "4": 1}
    x = images()[:1].clone()
    x[:, :, :3] = 0.0
    found = ablate(m, ng.Layer("input")[:, :3])
    np.testing.assert_allclose(found.ablated_outputs, network()(x).detach().numpy(), **CLOSE)
    assert ablate(m, ng.Layer("6")[1]).table["ablated"].to_pylist() == [0.0]


@pytest.mark.parametrize("factor", [0.0, 0.25])
def test_a_mean_is_over_the_batch_that_is_given(factor):
    others = images()[3:9]
    found = ablate(measure(), EVENT, baseline="mean", reference=others, batch_size=4, factor=factor)
    mean = torch.relu(network()[0](others)).mean(0)[1].detach()
    expected = hooked(network(), images()[:1], **{"1": scaled(1, factor, mean)})
    np.testing.assert_allclose(found.ablated_outputs, expected.numpy(), **CLOSE)
    assert found.averaged == 6


def test_of_a_store(db):
    found = ablate(db, EVENT, where="label = 'b'", target=1, batch_size=4, progress=False)
    assert isinstance(found, Ablated)
    numbers = of(found)
    assert sorted(numbers) == list(range(1, COUNT, 2))
    expected = hooked(network(), images()[numbers], **{"1": setting(1, 0.0)}).numpy()
    np.testing.assert_allclose(found.ablated_outputs, expected, **CLOSE)
    rows = found.table.to_pylist()
    assert {(row["label"], row["target"]) for row in rows} == {("b", 1)}
    for n, row in zip(numbers, rows, strict=True):
        assert row["relevance"] == pytest.approx(measure(n)(EVENT), abs=1e-10)
        assert row["relevance_x_logit"] == pytest.approx(row["relevance"] * row["logit"])
        assert row["drop"] == pytest.approx(row["logit"] - row["ablated"], abs=1e-12)
    assert found.to_pandas()["drop"].tolist() == [row["drop"] for row in rows]
    # Every input has its own targets unless one is named, and keys choose inputs as well.
    assert len(ablate(db, EVENT, progress=False)) == 2 * COUNT
    assert len(ablate(db, EVENT, inputs=["k03", "k05"], progress=False)) == 4


@pytest.mark.parametrize("reference", [None, "label = 'a'"])
def test_means_of_a_store_are_over_its_keys(db, reference):
    """Each key counts once, however many targets it has."""
    found = ablate(
        db, EVENT, target=0, baseline="mean", reference=reference, batch_size=5, progress=False
    )
    x = images() if reference is None else images()[::2]
    mean = torch.relu(network()[0](x)).mean(0)[1].detach()
    expected = hooked(network(), images()[of(found)], **{"1": scaled(1, 0.0, mean)})
    np.testing.assert_allclose(found.ablated_outputs, expected.numpy(), **CLOSE)
    assert (len(found), found.averaged) == (COUNT, len(x))


def test_weighted_targets_and_the_scale_of_a_measure():
    x = images()[0]
    weights = {0: 1.0, 2: -0.5}
    m = ng.measure(program(), x, target=weights, composite="epsilon", scale="logit")
    (row,) = ablate(m, EVENT).table.to_pylist()
    out = hooked(network(), x[None], **{"1": setting(1, 0.0)})[0]
    assert row["target"] is None
    assert row["ablated"] == pytest.approx(float(out[0] - 0.5 * out[2]))
    unit = ng.measure(program(), x, target=weights, composite="epsilon")
    assert row["relevance"] == pytest.approx(unit(EVENT))
    assert row["relevance_x_logit"] == pytest.approx(m(EVENT))


def test_of_a_network_of_several_inputs():
    torch.manual_seed(5)
    net = TwoInputs().double().eval()
    picture, record = torch.randn(4, 1, 6, 6).double(), torch.randn(4, 3).double()
    m = ng.measure(net, (picture[:1], record[:1]), target=0, composite="cp_lrp")
    event, reference = ng.Layer("record@1")[3:5], {"record": record, "picture": picture}
    found = ablate(m, event, baseline="mean", reference=reference, batch_size=3)
    with torch.no_grad():
        mean = torch.relu(net.record(record)).mean(0)
        y = net.image(picture[:1]) * torch.sigmoid(net.gate(record[:1]))
        z = torch.relu(net.record(record[:1]))
        z[:, 3:5] = mean[3:5]
        expected = net.head(torch.cat([y, z], 1)).numpy()
    np.testing.assert_allclose(found.ablated_outputs, expected, **CLOSE)


def test_where_all_is_linear_the_drop_is_relevance_times_logit():
    torch.manual_seed(4)
    linear = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)).double()
    m = ng.measure(linear, torch.rand(1, 4, dtype=torch.float64), target=2, composite="epsilon")
    (row,) = ablate(m, ng.Layer("0")[[1, 4]]).table.to_pylist()
    assert row["drop"] == pytest.approx(row["relevance_x_logit"], rel=1e-4)
    rectified = ablate(measure(), ng.Layer("input")[:, :3])  # elsewhere it is not
    (row,) = rectified.table.to_pylist()
    assert row["drop"] != pytest.approx(row["relevance_x_logit"], rel=0.1)


def test_reprs_say_what_was_done(db):
    m = measure()
    assert repr(ablate(m, EVENT)).startswith("<Ablated 0[1] set to zero: logit ")
    assert repr(ablate(m, EVENT)).endswith("which is no prediction of the drop>")
    others = {"baseline": "mean", "reference": images()}
    text = repr(ablate(m, EVENT, **others, factor=0.5))
    assert "0[1] at 0.5 times their difference from their mean over 12 inputs: logit" in text
    assert "at 2 times their value: " in repr(ablate(m, EVENT, factor=2))
    text = repr(ablate(db, EVENT, target=0, progress=False))
    assert "0[1] set to zero in 12 inputs, means: logit" in text


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (ng.Edge(ng.Layer("4")[0], EVENT), r"an edge is what one of them reads; name one of its"),
        (~EVENT, r"~0\[1\] cannot be ablated: what walks avoid is no set"),
        (EVENT & ~ng.Layer("4")[0], r"~4\[0\] cannot be ablated: what walks avoid"),
        (EVENT | ng.Layer("4")[0], r"sets of several layers are ablated together with &"),
        (EVENT & ng.Layer("0")[2], r"holds no neuron: there is nothing to ablate"),
        (ng.Layer("nowhere")[0], r"nowhere"),
        ("0[1]", r"expected an event such as"),
    ],
)
def test_what_is_no_set_of_neurons_is_refused(event, message):
    with pytest.raises(EventError, match=message):
        ablate(measure(), event)


def test_wrong_arguments(db):
    m = measure()
    for options, message in (
        ({"baseline": "median"}, "baseline must be one of zero, mean, found 'median'"),
        ({"factor": float("nan")}, "factor must be a finite number, found nan"),
        ({"factor": "0.5"}, "factor must be a finite number"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"reference": "label = 'a'"}, "reference is what means are over: pass baseline='mean'"),
        ({"where": "label = 'a'"}, "where, inputs, target and device choose what of a store"),
        ({"baseline": "mean"}, r"pass reference= a batch \(N, ...\) of them, or the database"),
        (
            {"baseline": "mean", "reference": torch.zeros(2, 1, 5, 5)},
            r"expected an input of shape \(1, 6, 6\), found \(1, 5, 5\)",
        ),
    ):
        with pytest.raises(InputError, match=message):
            ablate(m, EVENT, **options)
    with pytest.raises(InputError, match="a conditioned measure is of walks"):
        ablate(m.given(EVENT), ng.Layer("4")[0])
    with pytest.raises(InputError, match=r"expected a database \(ng.open\) or a measure"):
        ablate(network(), EVENT)
    with pytest.raises(InputError, match="of a store reference is a SQL condition"):
        ablate(db, EVENT, baseline="mean", reference=images())
    with pytest.raises(InputError, match="no input is chosen"):
        ablate(db, EVENT, where="label = 'c'")


def test_another_network_is_found(db, monkeypatch):
    from nrm_graph.evaluate import held_out

    monkeypatch.setattr(held_out, "LOGIT_TOLERANCE", -1.0)
    with pytest.raises(StoreError, match="the store says"):
        ablate(db, EVENT, progress=False)
