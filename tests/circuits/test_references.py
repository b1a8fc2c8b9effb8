"""Reference inputs: rankings against measures and activations, regions against all boxes."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

import nrm_graph as ng
from nrm_graph.circuits.references import References, box, references

pytestmark = pytest.mark.usefixtures("remembered_traces")

if TYPE_CHECKING:
    from pathlib import Path

KEYS = [f"image {i}" for i in range(7)]


def net() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
    )
    with torch.no_grad():
        model[3].bias[2] = -100.0  # a channel that is never active
    return model.eval()


def images() -> torch.Tensor:
    return torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("references")


def store(folder: Path, name: str, **options: Any) -> ng.Database:
    rows = [
        {"input": x, "key": key, "label": "ab"[i % 2]}
        for i, (x, key) in enumerate(zip(images(), KEYS, strict=True))
    ]
    options = {"target": [0, 1], "composite": "epsilon_gamma"} | options
    return ng.extract(net(), rows, folder / f"{name}.nrm", progress=False, **options)


@pytest.fixture(scope="module")
def channels(folder: Path) -> ng.Database:
    return store(folder, "channels", resolution={"0": "channel", "3": "channel"})


@pytest.fixture(scope="module")
def neurons(folder: Path) -> ng.Database:
    return store(folder, "neurons")


def active(layer: int) -> np.ndarray:
    """Activations after the ReLU that follows a convolution, (7, C, H, W)."""
    with torch.no_grad():
        found: np.ndarray = net()[: layer + 2](images()).numpy()
    return found


def expected(db: ng.Database, event: Any, weight: str = "unit") -> dict[str, tuple[float, int]]:
    """Largest relevance of every key over its targets, from exact measures."""
    found: dict[str, tuple[float, int]] = {}
    for key, target in itertools.product(KEYS, (0, 1)):
        m = db.measure(key, target)
        value = float(m(event)) * (m.logit if weight == "logit" else 1.0)
        if key not in found or value > found[key][0]:
            found[key] = value, target
    return found


SETS = {
    "channel": ng.Layer("3")[1],
    "two channels": ng.Layer("0").units([0, 3]),
    "by an alias": ng.Layer("4")[4],
    "all": ng.Layer("3")[:],
    "less one": ng.Layer("3")[:] - ng.Layer("3")[0],
}
REGION = ng.Layer("3")[1, 0:1, :]


@pytest.mark.parametrize("weight", ["unit", "logit"])
@pytest.mark.parametrize("name", SETS)
def test_relevance_is_that_of_measures(channels: ng.Database, name: str, weight: str) -> None:
    event = SETS[name]
    found = references(channels, event, k=7, weight=weight, share=None)
    wanted = expected(channels, event, weight)
    order = sorted(KEYS, key=lambda key: -wanted[key][0])
    assert found.table["key"].to_pylist() == order
    assert found.table["target"].to_pylist() == [wanted[key][1] for key in order]
    np.testing.assert_allclose(
        found.table["relevance"], [wanted[key][0] for key in order], rtol=2e-5, atol=2e-6
    )
    assert found.inputs == 7
    assert len(found) == 7


@pytest.mark.smoke
def test_activation_is_that_of_the_network(channels: ng.Database, neurons: ng.Database) -> None:
    cases = [
        (channels, ng.Layer("3")[1], active(3)[:, 1]),
        (channels, ng.Layer("3")[2], active(3)[:, 2]),  # never active: no row in the store
        (channels, ng.Layer("0").units([0, 3]), active(0)[:, [0, 3]]),
        (neurons, REGION, active(3)[:, 1, 0:1, :]),
        (neurons, ng.Layer("3")[1, 0, 0], active(3)[:, 1, 0, 0]),
    ]
    for db, event, values in cases:
        found = references(db, event, k=7, by="activation", share=None).table
        means = values.reshape(7, -1).mean(1)
        order = sorted(range(7), key=lambda i: (-means[i], KEYS[i]))
        assert found["key"].to_pylist() == [KEYS[i] for i in order]
        np.testing.assert_allclose(found["activation"], means[order], rtol=1e-5, atol=1e-7)


def test_parts_of_channels_need_a_store_of_neurons(
    channels: ng.Database, neurons: ng.Database
) -> None:
    with pytest.raises(ng.EventError, match=r"divides channel 1 of 3.*'neuron'.*materialize"):
        references(channels, REGION)
    found = references(neurons, REGION, k=7, share=None).table
    wanted = expected(neurons, REGION)
    np.testing.assert_allclose(
        found["relevance"], sorted((v for v, _ in wanted.values()), reverse=True), rtol=2e-5,
        atol=2e-6,
    )  # fmt: skip


def test_what_pruning_takes_from_edges_nodes_keep(folder: Path, neurons: ng.Database) -> None:
    pruned = store(folder, "pruned", coverage=0.5)
    event = ng.Layer("3")[3]
    a, b = (references(db, event, k=7, share=None).table for db in (neurons, pruned))
    assert a.equals(b)


def test_where_keeps_to_some_inputs(channels: ng.Database) -> None:
    event = ng.Layer("3")[1]
    found = references(channels, event, where="label = 'b' AND target = 1", share=None)
    assert set(found.table["key"].to_pylist()) == set(KEYS[1::2])
    assert set(found.table["target"].to_pylist()) == {1}
    assert set(found.table["label"].to_pylist()) == {"b"}
    assert repr(found) == "<3 of 3 inputs by relevance of 3[1]>"
    with pytest.raises(ng.InputError, match="no input is chosen by where"):
        references(channels, event, where="label = 'c'")
    for hostile in ("true) UNION SELECT 1 --", "1; DROP TABLE inputs", ""):
        with pytest.raises(ng.QueryError):
            references(channels, event, where=hostile)


# Regions


@pytest.mark.parametrize("by", ["relevance", "activation"])
def test_heat_maps_are_those_of_conditioned_measures(channels: ng.Database, by: str) -> None:
    event = ng.Layer("3")[1]
    found = references(channels, event, k=3, by=by, share=0.6)
    assert len(found) == len(found.images) == len(found.heatmaps) == 3
    for row, image, heat in zip(found.table.to_pylist(), found.images, found.heatmaps, strict=True):
        given_ = channels.measure(row["key"], row["target"]).given(event)
        pixels = given_.marginal("input", by="neuron").astype(np.float64).sum(0)
        assert heat is not None
        np.testing.assert_array_equal(heat, pixels)
        assert (heat < 0).any()  # signed
        assert image is not None
        np.testing.assert_array_equal(
            image, images()[KEYS.index(row["key"])].permute(1, 2, 0).numpy()
        )
        positive = np.maximum(pixels, 0)
        b = row["box"]
        inside = positive[b["top"] : b["bottom"], b["left"] : b["right"]].sum()
        assert row["held"] == pytest.approx(inside / positive.sum(), rel=1e-12)
        assert row["held"] >= 0.6
        assert row["amplification"] == pytest.approx(given_.amplification)
        assert row["reason"] is None
        area = (b["bottom"] - b["top"]) * (b["right"] - b["left"])
        assert area == smallest(positive, 0.6)[0]


def test_undefined_conditionals_say_so(channels: ng.Database) -> None:
    found = references(channels, ng.Layer("3")[2], k=2)
    for row in found.table.to_pylist():
        assert (row["relevance"], row["activation"], row["box"], row["held"]) == (0, 0, None, None)
        assert "undefined" in row["reason"]
    assert found.table["key"].to_pylist() == KEYS[:2]  # ties by key
    assert found.heatmaps == (None, None)
    assert all(image is not None for image in found.images)


def test_inputs_that_are_no_images_have_no_region(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    rows = [{"input": torch.rand(3), "key": "a"}]
    with ng.extract(model, rows, tmp_path / "v.nrm", target=0, progress=False) as db:
        found = references(db, ng.Layer("0")[:])
        (row,) = found.table.to_pylist()
        assert row["reason"] == "the input input of shape (3,) is no image"
        assert row["relevance"] == pytest.approx(float(db.measure("a")(ng.Layer("0")[:])))
        assert found.images == (None,)


def test_without_regions_neither_torch_nor_inputs_are_needed(
    folder: Path, channels: ng.Database
) -> None:
    omitted = store(folder, "omitted", tensors="omit", resolution={"3": "channel"})
    with omitted:
        found = references(omitted, ng.Layer("3")[1], share=None)
        assert found.images == found.heatmaps == (None,) * 7
        with pytest.raises(ng.InputError, match="holds no tensor of"):
            references(omitted, ng.Layer("3")[1])
    code = (
        "import sys, nrm_graph as ng; from nrm_graph.circuits.references import references;"
        "db = ng.open(sys.argv[1]); r = references(db, ng.Layer('3')[1], share=None);"
        "print(len(r), [m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(channels.path)], capture_output=True, text=True, check=True
    ).stdout
    assert out == "7 []\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a number of inputs, at least 1, found 0"),
        ({"k": True}, "k must be"),
        ({"k": 2.0}, "k must be"),
        ({"by": "logit"}, "by must be 'relevance' or 'activation', found 'logit'"),
        ({"by": None}, "by must be"),
        ({"weight": "mass"}, "weight must be 'unit' or 'logit', found 'mass'"),
        ({"share": 0.0}, "share must be over 0 and at most 1, or None, found 0.0"),
        ({"share": float("nan")}, "share must be"),
        ({"share": 1.5}, "share must be"),
        ({"share": "half"}, "share must be"),
        ({"share": True}, "share must be"),
    ],
)
def test_arguments(channels: ng.Database, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ng.InputError, match=message):
        references(channels, ng.Layer("3")[1], **options)


def test_events_that_are_no_units(channels: ng.Database) -> None:
    A, B = ng.Layer("3")[1], ng.Layer("0")[1]
    for wrong in (A & B, ~A, "3[1]", None, ng.Edge(A, B)):
        with pytest.raises(ng.EventError, match="expected neurons of one layer"):
            references(channels, wrong)  # type: ignore[arg-type]
    with pytest.raises(ng.EventError, match="holds no neuron of layer 3"):
        references(channels, ng.Layer("3")[[]])
    with pytest.raises(ng.EventError, match="there is no layer"):
        references(channels, ng.Layer("five")[1])
    with pytest.raises(ng.EventError, match="units 0 to 4"):
        references(channels, ng.Layer("3").units([5]))


# Boxes


def smallest(positive: np.ndarray, share: float) -> tuple[float, ...]:
    """Area, minus sum, and place of the best of all boxes."""
    height, width = positive.shape
    found = []
    for top, bottom in itertools.combinations(range(height + 1), 2):
        for left, right in itertools.combinations(range(width + 1), 2):
            held = positive[top:bottom, left:right].sum()
            if held >= share * positive.sum() * (1 - 1e-12):
                found.append(((bottom - top) * (right - left), -held, top, left, bottom, right))
    return min(found)


@pytest.mark.smoke
@settings(max_examples=150, deadline=None)
@given(
    arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 9)),
    st.integers(1, 16),
)
def test_no_box_is_smaller(values: np.ndarray, sixteenths: int) -> None:
    positive = values.astype(np.float64)  # whole numbers, whose sums are exact
    if not positive.any():
        positive[0, 0] = 1.0
    share = sixteenths / 16
    top, left, bottom, right = box(positive, share)
    area, held, *_ = smallest(positive, share)
    assert (bottom - top) * (right - left) == area
    assert -positive[top:bottom, left:right].sum() == held


def test_boxes_at_the_ends() -> None:
    assert box(np.ones((1, 1)), 1.0) == (0, 0, 1, 1)
    assert box(np.ones((2, 3)), 1.0) == (0, 0, 2, 3)
    assert box(np.eye(3), 0.3) == (0, 0, 1, 1)  # the topmost, leftmost of equals
    long = np.zeros((300, 200))
    long[250, 150], long[10, 10] = 2.0, 1.0
    assert box(long, 0.5) == (250, 150, 251, 151)
    assert box(long, 1.0) == (10, 10, 251, 151)
    assert box(np.full((2, 2), 1e-300), 1.0) == (0, 0, 2, 2)


def test_references_are_frozen(channels: ng.Database) -> None:
    found = references(channels, ng.Layer("3")[1], k=1, share=None)
    assert isinstance(found, References)
    with pytest.raises(AttributeError):
        found.by = "activation"  # type: ignore[misc]


def test_of_token_ids_there_is_no_region(tmp_path):
    torch.manual_seed(0)
    dense = nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)
    net = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), *dense)
    rows = [{"input": torch.tensor([i, 1, 2]), "key": f"k{i}"} for i in range(3)]
    with ng.extract(
        net, rows, tmp_path / "ids.nrm", composite="epsilon", target=0, progress=False
    ) as db:
        found = references(db, ng.Layer("2")[1], k=2)
    assert {row["reason"] for row in found.table.to_pylist()} == {
        "the embedding 0 of shape (3, 4) is no image"
    }
    assert found.images == (None, None)
