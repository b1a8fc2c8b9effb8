"""MODEL: networks by name, by file and by function."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from nrm_graph.cli import models
from nrm_graph.cli.demo.fashion_cnn import load_demo
from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.smoke


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Importable module with model functions."""
    made = types.ModuleType("nrm_test_models")
    made.demo = lambda: load_demo()[0]  # type: ignore[attr-defined]
    made.both = lambda: (load_demo()[0], None, ["a", "b"])  # type: ignore[attr-defined]
    made.wrong = lambda: 3  # type: ignore[attr-defined]
    made.broken = lambda: 1 / 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def test_random_weights_are_seeded_and_leave_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, preprocessing, classes = models.load_model("torchvision:squeezenet1_1@random:3")
    two, _, _ = models.load_model("torchvision:squeezenet1_1@random:3")
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[name], rtol=0, atol=0)
    assert classes is None
    assert preprocessing is not None
    assert preprocessing(Image.new("RGB", (300, 260))).shape == (3, 224, 224)


def test_weights_file(tmp_path: Path) -> None:
    from torchvision import models as networks

    for outputs in (1000, 7):
        model = networks.mobilenet_v3_small(num_classes=outputs)
        torch.save(model.state_dict(), tmp_path / "w.pt")
        again, _, classes = models.load_model(f"torchvision:mobilenet_v3_small@{tmp_path / 'w.pt'}")
        key = "classifier.3.weight"
        torch.testing.assert_close(again.state_dict()[key], model.state_dict()[key])
        assert classes is None if outputs == 7 else classes is not None
    with pytest.raises(InputError, match="not those of alexnet"):
        models.load_model(f"torchvision:alexnet@{tmp_path / 'w.pt'}")


def test_exported_program_and_function(tmp_path: Path, module: types.ModuleType) -> None:
    model, inputs = load_demo()
    x = torch.stack([item["input"] for item in inputs[:2]])
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(model, (x,), dynamic_shapes=dynamic)
    torch.export.save(exported, tmp_path / "m.pt2")
    for spec in (str(tmp_path / "m.pt2"), "nrm_test_models:demo"):
        loaded, preprocessing, classes = models.load_model(spec)
        torch.testing.assert_close(loaded.eval()(x), model(x))
        assert (preprocessing, classes) == (None, None)
    assert models.load_model("nrm_test_models:both")[2] == ("a", "b")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vgg16", "expected torchvision:NAME"),
        ("https://a.b/m.pt2", "address"),
        ("torchvision:vgg61", "did you mean"),
        ("torchvision:vgg16@random:x", "seed"),
        ("torchvision:vgg16@nothing.pt", "no file"),
        ("nothing.pt2", "no file"),
        ("{bad}.pt2", "torch.export.save"),
        ("torchvision:vgg16@{bad}.pt2", "state dict"),
        ("no_such_module:f", "ModuleNotFoundError"),
        ("nrm_test_models:nothing", "AttributeError"),
        ("nrm_test_models:wrong", "must give a torch.nn.Module"),
        ("nrm_test_models:broken", "ZeroDivisionError"),
    ],
)
def test_model_errors(tmp_path: Path, module: types.ModuleType, spec: str, message: str) -> None:
    (tmp_path / "bad.pt2").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=message):
        models.load_model(spec.replace("{bad}", str(tmp_path / "bad")))
