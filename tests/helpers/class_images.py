"""Images in folders by class, networks for them, and what a command says of a mistake."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from helpers.tiny_stores import checksums
from nrm_graph.cli import inputs as sources
from nrm_graph.cli import main

MODULE = "nrm_bad_models"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(144, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))


def broken(path, value):
    net = Net()
    with torch.no_grad():
        net.get_parameter(path).view(-1)[1] = value
    return net


def transformer():
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=3)


CLASSES = ("cat", "dog", "cow")
MODELS = {
    "net": lambda: (Net(), None, CLASSES),
    "unnamed": Net,
    "nan": lambda: broken("conv.weight", torch.nan),
    "inf": lambda: broken("head.bias", torch.inf),
    "vit": transformer,
    "other": lambda: (broken("head.bias", 3.0), None, CLASSES),
}


def picture(seed=0, size=(8, 8), mode="RGB"):
    channels = len(mode) if mode != "L" else 1
    values = np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)
    return Image.fromarray(values[:, :, 0] if mode == "L" else values, mode=None)


def said(capsys, argv, code, message):
    """Run a command that must fail; its one line."""
    capsys.readouterr()
    assert main.main([str(a) for a in argv]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1
    assert lines[0].startswith("nrm-graph: ")
    assert len(lines[0]) < 1200
    assert message in lines[0]
    return lines[0]


def extract(place, *more, model="net", inputs="photos"):
    path = place / inputs if isinstance(inputs, str) else inputs
    return ["extract", f"{MODULE}:{model}", path, "--store", place / "s.nrm", "--quiet", *more]


def unchanged(place, capsys, argv, code, message):
    before = checksums(place / "s.nrm")
    said(capsys, argv, code, message)
    assert checksums(place / "s.nrm") == before


def truncated(path):
    picture(9, (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-4000])


def rows(**metadata):
    torch.manual_seed(3)
    return [{"input": torch.rand(3, 8, 8), "key": "new", **metadata}]


SAME = {"classes": CLASSES, "preprocessing": sources.PIXELS, "progress": False}
