"""Networks of every supported family, small and seeded; batch-norm statistics randomised."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn

from helpers import transformer_networks

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Architecture:
    """How to make a network and what it reads: shapes without batch axis, or token ids."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    composites: tuple[str, ...] = ("epsilon_gamma",)
    target: object = "predicted"


def randomise(net: nn.Module, *shapes: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Batch-norm statistics near those of random inputs, affine parameters, layer scales.

    Near, so that activations are not all bias; not quite, so that statistics matter.  Matrices that
    begin as zeros (the head of a vision transformer) are drawn too.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
            if isinstance(getattr(module, "layer_scale", None), nn.Parameter):
                module.layer_scale.uniform_(0.3, 1, generator=generator)
        for parameter in net.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.1, generator=generator)
        if norms:
            momenta = [module.momentum for module in norms]
            net.eval()
            for module in norms:
                module.train().momentum = 1.0
            net(*(torch.randn((4, *s), generator=generator) for s in shapes))
            for module, momentum in zip(norms, momenta, strict=True):
                module.momentum = momentum
                noise = torch.randn(module.running_mean.shape, generator=generator)
                module.running_mean += 0.3 * noise * module.running_var.sqrt()
                module.running_var *= 0.5 + 1.5 * torch.rand(noise.shape, generator=generator)
    return net.eval()


def edge_sums(m):
    """Yield layers, their relevance by unit, and the sum of their edges, from both sides."""
    _, rows = m.tables()
    column = {k: rows[k].to_numpy() for k in rows.column_names[:5]}
    for layer in m.topology.layers:
        relevance = m.marginal(layer.name)
        above = column["dst_layer"] == layer.layer_id
        below = (column["src_layer"] == layer.layer_id) & (column["src_unit"] >= 0)
        for chosen, unit, ends in (
            (above, "dst_unit", layer in m.topology.inputs),
            (below, "src_unit", layer == m.topology.output),
        ):
            if not ends:
                place, value = column[unit][chosen], column["relevance"][chosen]
                yield layer, relevance, np.bincount(place, value, len(relevance))


def classifier(net: nn.Module, features: int) -> nn.Module:
    """A smaller head: that of AlexNet and VGG has 4096 neurons."""
    net.classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(features, 12), nn.ReLU(), nn.Linear(12, 5)
    )
    return net


def vgg(batch_norm: bool) -> nn.Module:
    from torchvision.models.vgg import make_layers

    layers = make_layers([4, "M", 6, "M", 8, 8, "M"], batch_norm)
    net = tv.VGG(layers, num_classes=5, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(3)
    return classifier(net, 8 * 9)


def resnet(block, **options) -> nn.Module:
    return tv.ResNet(block, [1, 1, 1, 1], num_classes=5, **options)


def efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig

    setting = [
        FusedMBConvConfig(2, 3, 1, 8, 8, 1),
        MBConvConfig(4, 3, 2, 8, 12, 2),
        MBConvConfig(2, 5, 2, 12, 16, 1),
    ]
    return tv.EfficientNet(setting, dropout=0.1, num_classes=5, last_channel=24)


def regnet(se_ratio) -> nn.Module:
    from torchvision.models.regnet import BlockParams

    params = BlockParams(
        depths=[1, 2],
        widths=[8, 16],
        group_widths=[4, 4],
        bottleneck_multipliers=[1.0, 1.0],
        strides=[2, 2],
        se_ratio=se_ratio,
    )
    return tv.RegNet(params, num_classes=5, stem_width=6)


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig

    setting = [CNBlockConfig(8, 12, 2), CNBlockConfig(12, None, 1)]
    return tv.ConvNeXt(setting, stochastic_depth_prob=0.2, num_classes=5)


class UNet(nn.Module):
    """Down twice, up by interpolation and by a transposed convolution, with skips."""

    def __init__(self, mode: str = "bilinear") -> None:
        super().__init__()
        self.mode = mode
        self.a, self.b, self.c = self.block(2, 4), self.block(4, 6), self.block(6, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.d, self.e = self.block(12, 6), self.block(10, 4)
        self.head = nn.Conv2d(4, 3, 1)

    @staticmethod
    def block(i: int, o: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        y = self.up(self.c(F.max_pool2d(b, 2)))
        y = self.d(torch.cat([b, y], 1))
        options = {} if self.mode == "nearest" else {"align_corners": self.mode == "bicubic"}
        y = F.interpolate(y, scale_factor=2, mode=self.mode, **options)
        return self.head(self.e(torch.cat([a, y], 1))).mean((2, 3))


class Signal(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(2, 6, 5, stride=2, padding=2),
            nn.BatchNorm1d(6),
            nn.LeakyReLU(0.1),
            nn.MaxPool1d(2),
            nn.Conv1d(6, 6, 3, groups=3, padding=2, dilation=2),
            nn.GroupNorm(2, 6),
            nn.ELU(),
            nn.AvgPool1d(3, 2),
            nn.Flatten(),
            nn.Linear(12, 5),
        )


class Volume(nn.Module):
    """3-D convolutions, instance norm, trilinear upsampling, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Conv3d(1, 3, 3, padding=1),
            nn.Conv3d(3, 3, (1, 3, 3), padding=(0, 1, 1)),
        )
        self.norm, self.up = nn.InstanceNorm3d(3, affine=True), nn.ConvTranspose3d(3, 2, 2, 2)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)))
        x = F.max_pool3d(x + self.b(x), 2)
        y = F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)
        return self.head(torch.cat([F.hardswish(y), self.up(x)], 1).mean((2, 3, 4)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
        self.record, self.gate = nn.Linear(3, 16), nn.Linear(3, 64)
        self.head = nn.Sequential(nn.Linear(80, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, picture, record):
        y = self.image(picture) * torch.sigmoid(self.gate(record))
        return self.head(torch.cat([y, F.relu(self.record(record))], 1))


class Graph(nn.Module):
    """Two graph convolutions, ``A X W``."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        a = torch.rand(6, 6, generator=generator)
        self.register_buffer("a", (a + a.T > 1.0).float() + torch.eye(6))
        self.first, self.second, self.head = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.a @ self.first(x))
        x = F.relu(self.second(self.a @ x))
        return self.head(x.sum(1))


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 4, num_layers=2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


PICTURE = ((3, 32, 32),)
CNN = ("epsilon_gamma", "epsilon_plus")
ATTENTION = ("attn_lrp", "cp_lrp", "relp")
IDS = ((5,),)

ARCHITECTURES = {
    "alexnet": Architecture(
        lambda: classifier(tv.alexnet(num_classes=5), 256 * 36), ((3, 64, 64),)
    ),
    "vgg": Architecture(lambda: vgg(False), PICTURE, CNN),
    "vgg_bn": Architecture(lambda: vgg(True), PICTURE, CNN),
    "resnet": Architecture(lambda: resnet(tv.resnet.BasicBlock), PICTURE, CNN),
    "resnext": Architecture(
        lambda: resnet(tv.resnet.Bottleneck, groups=16, width_per_group=4), PICTURE
    ),
    "wide_resnet": Architecture(lambda: resnet(tv.resnet.Bottleneck, width_per_group=96), PICTURE),
    "densenet": Architecture(lambda: tv.DenseNet(4, (2, 2, 2, 2), 8, num_classes=5), PICTURE, CNN),
    "squeezenet": Architecture(lambda: tv.squeezenet1_1(num_classes=5), PICTURE),
    "googlenet": Architecture(
        lambda: tv.googlenet(num_classes=5, init_weights=False, aux_logits=True), PICTURE
    ),
    "inception": Architecture(
        lambda: tv.inception_v3(num_classes=5, init_weights=False), ((3, 75, 75),)
    ),
    "mobilenet_v2": Architecture(
        lambda: tv.mobilenet_v2(width_mult=0.1, num_classes=5), PICTURE, CNN
    ),
    "mobilenet_v3": Architecture(
        lambda: tv.mobilenet_v3_small(width_mult=0.2, num_classes=5), PICTURE, CNN
    ),
    "efficientnet": Architecture(efficientnet, PICTURE, (*CNN, "attn_lrp")),
    "regnet_x": Architecture(lambda: regnet(None), PICTURE),
    "regnet_y": Architecture(lambda: regnet(0.25), PICTURE, CNN),
    "mnasnet": Architecture(lambda: tv.MNASNet(0.2, num_classes=5), PICTURE),
    "shufflenet": Architecture(
        lambda: tv.ShuffleNetV2([2, 2, 2], [8, 16, 24, 32, 32], num_classes=5), PICTURE
    ),
    "convnext": Architecture(convnext, PICTURE, (*CNN, "attn_lrp")),
    "vit": Architecture(transformer_networks.vit, PICTURE, ATTENTION),
    "swin": Architecture(transformer_networks.swin, PICTURE, ATTENTION),
    "gpt2": Architecture(transformer_networks.gpt2, IDS, ATTENTION),
    "bert": Architecture(transformer_networks.bert, IDS, ATTENTION),
    "llama": Architecture(transformer_networks.llama, IDS, ATTENTION),
    "unet": Architecture(UNet, ((2, 12, 12),), CNN),
    "unet_bicubic": Architecture(lambda: UNet("bicubic"), ((2, 12, 12),)),
    "unet_nearest": Architecture(lambda: UNet("nearest"), ((2, 12, 12),)),
    "signal": Architecture(Signal, ((2, 26),), CNN),
    "volume": Architecture(Volume, ((1, 4, 4, 6),), CNN),
    "two_inputs": Architecture(TwoInputs, ((1, 6, 6), (3,)), CNN),
    "graph": Architecture(Graph, ((6, 3),), ("epsilon",)),
    "lstm": Architecture(lambda: Recurrent("LSTM"), ((4, 3),), ATTENTION),
    "gru": Architecture(lambda: Recurrent("GRU"), ((4, 3),), ATTENTION),
}

CASES = [(name, rules) for name, found in ARCHITECTURES.items() for rules in found.composites]


@functools.cache
def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name in transformer_networks.NETWORKS:
        return transformer_networks.drawn(name)
    found = ARCHITECTURES[name]
    return randomise(found.make(), *found.shapes).double()


def inputs(name: str, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """One input, with batch axis."""
    if name in ("gpt2", "bert", "llama"):
        return (transformer_networks.IDS,)
    generator = torch.Generator().manual_seed(1)
    shapes = ARCHITECTURES[name].shapes
    return tuple(torch.randn((1, *s), generator=generator, dtype=dtype) for s in shapes)
