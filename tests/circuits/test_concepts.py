"""Joint relevances averaged over inputs, and the units that carry a class."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import bounded

import nrm_graph as ng
from nrm_graph.circuits import mean_joint
from nrm_graph.plots import plot_concepts


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    images = bounded.Images()
    for place, row in enumerate(images.rows):
        row["label"] = "ab"[place % 2]
    path = tmp_path_factory.mktemp("concepts") / "s.nrm"
    with ng.extract(
        bounded.program(), images.rows, path, target=1, resolution="neuron", progress=False
    ) as store:
        yield store


def test_joint_relevance_is_the_mean_of_the_inputs(db):
    result = db.joint("second", "first", "label = 'a'", by="channel", weight="logit")
    each = []
    for key in ("k0", "k2", "k4", "k6"):
        m = db.measure(key)
        each.append(np.asarray(m.joint("second", "first", by="channel")) * m.logit)
    stack = np.stack(each)
    np.testing.assert_allclose(result.values, stack.mean(0), rtol=1e-6)
    np.testing.assert_allclose(result.stderr, stack.std(0, ddof=1) / 2, rtol=1e-6)
    assert result.rows.layer == "second"
    assert 0 < result.error < 1e-9
    assert "4 inputs (where label = 'a')" in repr(result)
    alone = db.joint(ng.Layer("first")[1], "last", "key = 'k0'")
    assert np.isnan(alone.stderr).all()
    m = db.measure("k0")
    np.testing.assert_array_equal(alone.values, m.joint(ng.Layer("first")[1], "last").values)


def test_an_interrupted_mean_goes_on(db, monkeypatch):
    whole = db.joint("pool", "second", by="channel")
    db.refresh()
    measure, asked = mean_joint.measure, []

    def counted(view, identity):
        asked.append(identity)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return measure(view, identity)

    monkeypatch.setattr(mean_joint, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        db.joint("pool", "second", by="channel")
    again = db.joint("pool", "second", by="channel")
    assert len(asked) == 9  # the fourth was asked for twice
    np.testing.assert_array_equal(again.values, whole.values)
    np.testing.assert_array_equal(again.stderr, whole.stderr)
    few = db.joint("pool", "second", "label = 'b'", by="channel")
    assert len(asked) == 13  # of other inputs nothing is taken over
    assert len(few.group) == 4


def test_concepts_are_the_units_of_the_largest_mean(db):
    found = db.concepts("label = 'a'", "second", k=2, examples=3)
    values = np.stack(
        [db.measure(k).marginal("second", by="channel") * db.measure(k).logit
         for k in ("k0", "k2", "k4", "k6")]
    )  # fmt: skip
    mean = values.mean(0)
    order = [int(i) for i in np.argsort(-mean) if mean[i] > 0][:2]
    assert [concept.unit for concept in found] == order
    for concept in found:
        assert concept.relevance == pytest.approx(mean[concept.unit], abs=1e-5)
        spread = values[:, concept.unit].std(ddof=1) / 2
        assert concept.stderr == pytest.approx(spread, abs=1e-5)
        assert concept.share == pytest.approx(mean[concept.unit] / np.abs(mean).sum(), abs=1e-5)
        assert concept.event == ng.Layer("second")[concept.unit]
        assert concept.name == f"channel {concept.unit}"
        assert set(concept.references.table["label"].to_pylist()) == {"a"}
        assert len(concept.references) == 3
        assert repr(concept.event) in repr(concept)
    assert found.table["unit"].to_pylist() == order
    assert found[:1] == (found[0],)
    figure = found.plot()
    assert len(figure.axes) == 2 * 3 * len(found)
    assert any("channel" in text.get_text() for text in figure.texts)
    everywhere = db.concepts("label = 'a'", "second", k=1, examples=8, among="true")
    assert set(everywhere[0].references.table["label"].to_pylist()) == {"a", "b"}
    vector = db.concepts("label = 'a'", "last", k=1, examples=1, weight="unit")
    assert vector[0].name.startswith("neuron")


def test_what_carries_nothing_is_refused(db):
    with pytest.raises(ng.InputError, match="k must be"):
        db.concepts(None, "second", k=0)
    with pytest.raises(ng.EventError, match="nowhere"):
        db.concepts(None, "nowhere")
    with pytest.raises(ng.InputError, match="an array"):
        db.concepts(None, "last", by={"last": np.zeros(5, int)})
    with pytest.raises(ng.InputError, match="nothing to draw"):
        plot_concepts(())
    with pytest.raises(ng.NrmError, match="neuron set"):
        db.joint(3, "second")
