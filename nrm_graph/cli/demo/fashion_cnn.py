"""The demo's network and images: a small VGG-style network trained on Fashion-MNIST.

Both ship inside the package (``nrm_graph/data``), so that the demo downloads nothing;
``scripts/train_demo.py`` writes them anew. This module imports torch: import it lazily.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load
from torch import nn

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["CLASSES", "FashionCNN", "fashion_cnn", "load_demo"]

CLASSES: tuple[str, ...] = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""Names of the ten Fashion-MNIST classes; the position is the class index."""

WEIGHTS_FILE = "fashion_cnn.safetensors"
IMAGES_FILE = "fashion_test.npz"


class FashionCNN(nn.Module):
    """A plain VGG in miniature for images of shape (1, 28, 28) with values in [0, 1].

    Three stages of 3x3 convolution, ReLU and max-pooling with 8, 16 and 32 channels, then two
    dense layers (288 -> 64 -> 10). The submodules are named as in torchvision's VGG: the
    convolutions are ``features.0``, ``features.3`` and ``features.6``, the dense layers
    ``classifier.0`` and ``classifier.3``. There is no batch-norm and no input normalisation.

    Parameters
    ----------
    dropout : float, default 0.1
        Probability of dropping a hidden dense neuron in training mode.

    References
    ----------
    .. [1] K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image
       recognition", ICLR 2015.
    .. [2] H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking
       machine learning algorithms", arXiv:1708.07747 (2017).

    Examples
    --------
    >>> import torch
    >>> FashionCNN()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(32 * 3 * 3, 64),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(64, len(CLASSES)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of images.

        Parameters
        ----------
        x : torch.Tensor
            Images of shape (N, 1, 28, 28) with values in [0, 1].

        Returns
        -------
        torch.Tensor
            Logits of shape (N, 10), in the order of `CLASSES`.
        """
        hidden: torch.Tensor = self.features(x)
        logits: torch.Tensor = self.classifier(torch.flatten(hidden, 1))
        return logits


def fashion_cnn() -> nn.Module:
    """Build the demo network with untrained weights.

    Returns
    -------
    torch.nn.Module
        A `FashionCNN` in training mode; `load_demo` returns the trained one.

    Examples
    --------
    >>> sum(p.numel() for p in fashion_cnn().parameters())
    25034
    """
    return FashionCNN()


def load_demo() -> tuple[nn.Module, list[dict[str, Any]]]:
    """Load the trained demo network and the test images that the package ships.

    Returns
    -------
    model : torch.nn.Module
        The trained `FashionCNN` on the CPU, in evaluation mode.
    inputs : list of dict
        320 images, the first 32 of each class in the order of the Fashion-MNIST test set, right
        or wrong. ``"input"`` is a float32 tensor of shape (1, 28, 28) in [0, 1], ``"key"`` names
        the position in the test set (``"test-00012"``), ``"label"`` the true class.

    Examples
    --------
    >>> model, inputs = load_demo()
    >>> len(inputs), inputs[0]["key"], inputs[0]["label"]
    (320, 'test-00000', 'ankle boot')
    >>> logits = model(inputs[0]["input"].unsqueeze(0))
    >>> CLASSES[int(logits.argmax())]
    'ankle boot'
    """
    data: Traversable = files("nrm_graph").joinpath("data")
    model = fashion_cnn()
    model.load_state_dict(load(data.joinpath(WEIGHTS_FILE).read_bytes()))
    with (
        data.joinpath(IMAGES_FILE).open("rb") as stream,
        np.load(stream, allow_pickle=False) as archive,
    ):
        images = torch.from_numpy(archive["images"]).unsqueeze(1).to(torch.float32) / 255
        labels: list[int] = archive["labels"].tolist()
        indices: list[int] = archive["indices"].tolist()
    inputs: list[dict[str, Any]] = [
        {"input": image.clone(), "key": f"test-{index:05d}", "label": CLASSES[label]}
        for image, label, index in zip(images, labels, indices, strict=True)
    ]
    return model.eval(), inputs
