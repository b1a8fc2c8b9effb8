"""Which architectures are supported, how exactly, and at what cost?  A table in ``docs``.

Every network has its real input size and seeded random weights, batch-norm statistics near those of
random inputs, float32.  Columns: the composite; the number of layers; the largest error of
conservation, ``|total of a cut - 1|`` over the sum of |R| of the cut, of the input and of cuts at
random layers; the largest difference from an independent implementation, over the largest
relevance of the layer, in float64 on a small network of the same family; and the time of extracting
one input's tables, written to disk, over that of a training step (forward and full backward) of the
network in the same process.

    python benchmarks/support.py [--page] [--rounds 3] [names ...]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchvision.models as tv

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers import architectures as small
from helpers import transformer_networks
from helpers.transformer_networks import Last, tiny
from reference import attention_gradients

import nrm_graph as ng

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
BEGIN, END = "<!-- architectures:begin -->", "<!-- architectures:end -->"
IMAGE = ((3, 224, 224),)


@dataclass(frozen=True)
class Row:
    """A network of real size, and its small relative in ``tests/helpers/architectures.py``."""

    title: str
    make: Callable[[], nn.Module]
    small: str
    shapes: tuple[tuple[int, ...], ...] = IMAGE
    composite: str = "epsilon_gamma"
    tokens: int = 0  # of a network that reads token ids below 1000


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return Last(GPT2LMHeadModel(GPT2Config(vocab_size=1000)), use_cache=False)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return Last(BertForSequenceClassification(BertConfig(vocab_size=1000)))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {"vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1376}
    config |= {"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
    return Last(LlamaForCausalLM(LlamaConfig(**config)), use_cache=False)


TRANSFORMER = "attn_lrp"
ROWS = (
    Row("AlexNet", lambda: tv.alexnet(), "alexnet"),
    Row("VGG-16", lambda: tv.vgg16(), "vgg"),
    Row("VGG-16, batch-norm", lambda: tv.vgg16_bn(), "vgg_bn"),
    Row("ResNet-50", lambda: tv.resnet50(), "resnet"),
    Row("ResNeXt-50 32x4d", lambda: tv.resnext50_32x4d(), "resnext"),
    Row("Wide-ResNet-50", lambda: tv.wide_resnet50_2(), "wide_resnet"),
    Row("DenseNet-121", lambda: tv.densenet121(), "densenet"),
    Row("SqueezeNet 1.1", lambda: tv.squeezenet1_1(), "squeezenet"),
    Row("GoogLeNet", lambda: tv.googlenet(init_weights=False), "googlenet"),
    Row("Inception v3", lambda: tv.inception_v3(init_weights=False), "inception", ((3, 299, 299),)),
    Row("MobileNet v2", lambda: tv.mobilenet_v2(), "mobilenet_v2"),
    Row("MobileNet v3 large", lambda: tv.mobilenet_v3_large(), "mobilenet_v3"),
    Row("EfficientNet-B0", lambda: tv.efficientnet_b0(), "efficientnet"),
    Row("RegNetX-400MF", lambda: tv.regnet_x_400mf(), "regnet_x"),
    Row("RegNetY-400MF", lambda: tv.regnet_y_400mf(), "regnet_y"),
    Row("MNASNet 1.0", lambda: tv.mnasnet1_0(), "mnasnet"),
    Row("ShuffleNet v2 1.0", lambda: tv.shufflenet_v2_x1_0(), "shufflenet"),
    Row("ConvNeXt-tiny", lambda: tv.convnext_tiny(), "convnext"),
    Row("ViT-B/16", lambda: tv.vit_b_16(), "vit", composite=TRANSFORMER),
    Row("Swin-T", lambda: tv.swin_t(), "swin", composite=TRANSFORMER),
    Row("GPT-2, 64 tokens", _gpt2, "gpt2", composite=TRANSFORMER, tokens=64),
    Row("BERT-base, 64 tokens", _bert, "bert", composite=TRANSFORMER, tokens=64),
    Row("Llama, 8 layers, 64 tokens", _llama, "llama", composite=TRANSFORMER, tokens=64),
    Row("U-Net, 96 x 96", small.UNet, "unet", ((2, 96, 96),)),
    Row("1-D convolutions", small.Signal, "signal", ((2, 26),)),
    Row("3-D convolutions, 8 x 16 x 16", small.Volume, "volume", ((1, 8, 16, 16),)),
    Row("two inputs", small.TwoInputs, "two_inputs", ((1, 6, 6), (3,))),
    Row("graph convolutions", small.Graph, "graph", ((6, 3),), "epsilon"),
    Row("LSTM, 16 steps", lambda: small.Recurrent("LSTM"), "lstm", ((16, 3),), TRANSFORMER),
    Row("GRU, 16 steps", lambda: small.Recurrent("GRU"), "gru", ((16, 3),), TRANSFORMER),
)


def example(row: Row, seed: int) -> tuple[torch.Tensor, ...]:
    """One input, without batch axis."""
    generator = torch.Generator().manual_seed(seed)
    if row.tokens:
        return (torch.randint(0, 1000, (row.tokens,), generator=generator),)
    return tuple(torch.randn(shape, generator=generator) for shape in row.shapes)


def step(net: nn.Module, xs: tuple[torch.Tensor, ...]) -> float:
    """Seconds of a forward and a full backward of one input."""
    batch = [x[None].clone() for x in xs]
    start = time.perf_counter()
    for x in batch:
        if x.is_floating_point():
            x.requires_grad_(True)
    net.zero_grad()
    net(*batch)[:, 0].sum().backward()
    return time.perf_counter() - start


def cuts(m: ng.Measure, count: int = 3) -> float:
    """Return the largest error of a cut, over the sum of |R| that it is made of."""
    variation = {r["layer"]: r["total_variation"] for r in m.report().to_pylist()}
    layers = [layer.name for layer in m.topology.layers]
    chosen = np.random.default_rng(0).choice(layers[:-1], min(count, len(layers) - 1), False)
    worst = 0.0
    for name in {m.topology.inputs[0].name, *map(str, chosen)}:
        cut = m.cut(name)
        parts = [*cut.bypass.values(), *cut.absorbed.values()]
        size = variation[name] + sum(map(abs, parts))
        worst = max(worst, abs(cut.total - 1) / size)
    return worst


def difference(name: str) -> str:
    """Against AttnLRP as gradient times input, at the input, of a small network in float64."""
    if name in ("lstm", "gru"):
        return "-"
    net, xs = small.network(name), small.inputs(name)
    leaf = transformer_networks.NETWORKS.get(name, ("", ""))[1]
    with torch.no_grad():
        target = int(net(*xs)[0].argmax())
    single = xs
    given = single if len(xs) > 1 else single[0]
    program = ng.trace(net, given)  # before the oracle changes the network's activations
    expected = attention_gradients.relevance(net, list(xs), target, (leaf,) if leaf else ())
    rules = tiny(ng.composites.attn_lrp())
    m = ng.measure(program, given, target=target, composite=rules, dtype="float64")
    wanted = expected[leaf or "x"][0].numpy()
    found = m.marginal(m.topology.inputs[0].name, by="neuron")
    return f"{np.abs(found - wanted).max() / np.abs(wanted).max():.0e} (gradient)"


def measured(row: Row, rounds: int) -> dict[str, Any]:
    """All columns of a row."""
    torch.manual_seed(0)
    net = row.make()
    net = net.eval() if row.tokens else small.randomise(net, *row.shapes)
    stamps: list[float] = []

    def inputs() -> Iterator[dict[str, Any]]:
        """Note when each input is asked for: the first pays for tracing."""
        for i in range(rounds + 1):
            stamps.append(time.perf_counter())
            xs = example(row, i)
            yield {"input": xs if len(xs) > 1 else xs[0], "key": str(i)}
        stamps.append(time.perf_counter())

    folder = Path(tempfile.mkdtemp()) / "store.nrm"
    options = {"composite": row.composite, "batch_size": 1, "progress": False}
    with ng.extract(net, inputs(), folder, **options) as db:
        each = [b - a for a, b in itertools.pairwise(stamps[1:])]
        error = cuts(db.measure("0"))
        layers = len(db.measure("0").topology.layers)
    net.requires_grad_(True)
    step(net, example(row, 0))
    steps = [step(net, example(row, 0)) for _ in range(rounds)]
    return {
        "layers": layers,
        "error": error,
        "time": statistics.median(each) / statistics.median(steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="titles to measure; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="rewrite the table in docs")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [
        "| architecture | composite | layers | conservation error | largest difference "
        "| time / training step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print(*lines, sep="\n", flush=True)
    for row in ROWS:
        if args.names and not any(name in row.title for name in args.names):
            continue
        found = measured(row, args.rounds)
        lines.append(
            f"| {row.title} | {row.composite} | {found['layers']} | {found['error']:.0e} "
            f"| {difference(row.small)} | {found['time']:.2g} |"
        )
        print(lines[-1], flush=True)
        small.network.cache_clear()
    if args.page and not args.names:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        _, after = rest.split(END)
        table = "\n".join(lines)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
