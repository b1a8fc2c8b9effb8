"""What does an input of a network of real size cost, at the default bound?  Ratios in one run.

One line a network, each in a process of its own: the network's own training step (forward and full
backward of one input) is 1; an input's extraction, with everything written, and a heat map of
another implementation beside it; rows and MB of all tables of an input, and the share that its
pairs of layers keep; the set-up, over ``torch.export`` and its decompositions; peak memory
of a first extraction.

Times are CPU time of the process with one thread of torch, and with ``--threads 2`` wall time.
Each round runs every candidate once, in turn, so that drift of a shared machine hits all alike.
Weights are random, those of VGG16 are the real ones of the tests.

    python benchmarks/networks.py [--rounds 3] [--threads 1] [--max-edges auto] [names ...]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision.models as tv

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers import architectures
from helpers.real_vgg16 import photographs, vgg16
from helpers.transformer_networks import Last

import nrm_graph as ng

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    Network = tuple[nn.Module, Tensor, str, Callable[[Tensor], object] | None]


def real_vgg16() -> Network:
    """Return the real VGG16, a photograph, and zennit's heat map of it."""
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonGammaBox

    network = vgg16()

    def heatmap(x: Tensor) -> object:
        box = EpsilonGammaBox(low=torch.zeros_like(x), high=torch.ones_like(x))
        with Gradient(network, box) as attributor:
            return attributor(x.clone().requires_grad_(True), torch.eye(4)[[0]])

    return network, next(iter(photographs().values()))[None], "epsilon_gamma_box", heatmap


def convolutional(make: Callable[[], nn.Module], canonical: bool = True) -> Network:
    """Return a network of random weights, an image, and zennit's heat map."""
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonGammaBox
    from zennit.torchvision import ResNetCanonizer

    torch.manual_seed(0)
    network = architectures.randomise(make(), (3, 224, 224))

    def heatmap(x: Tensor) -> object:
        low, high = torch.full_like(x, -3), torch.full_like(x, 3)
        box = EpsilonGammaBox(low=low, high=high, canonizers=[ResNetCanonizer()])
        with Gradient(network, box) as attributor:
            return attributor(x.clone().requires_grad_(True), torch.eye(1000)[[0]])

    return network, torch.randn(1, 3, 224, 224), "epsilon_gamma", heatmap if canonical else None


def vision_transformer() -> Network:
    """Return a ViT-B/16 of random weights, an image, and autolrp's heat map."""
    import autolrp

    torch.manual_seed(0)
    network = tv.vit_b_16().eval()
    torch.nn.init.normal_(network.heads.head.weight, std=0.02)
    config = autolrp.LRPConfig(rule={**autolrp.BASE, **autolrp.ATTNLRP})

    def heatmap(x: Tensor) -> object:
        network.requires_grad_(True)
        wrapped = autolrp.tensor(x.clone())
        network(wrapped)[0, 0].lrp(config=config)
        network.requires_grad_(False)
        return wrapped.relevance

    return network, torch.randn(1, 3, 224, 224), "attn_lrp", heatmap


def language_model() -> Network:
    """Return a GPT-2 of random weights and 64 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    network = Last(GPT2LMHeadModel(GPT2Config(vocab_size=1000)), use_cache=False).eval()
    return network, torch.randint(0, 1000, (1, 64)), "attn_lrp", None


NETWORKS: dict[str, Callable[[], Network]] = {
    "VGG16": real_vgg16,
    "ResNet-50": lambda: convolutional(tv.resnet50),
    "ConvNeXt-T": lambda: convolutional(tv.convnext_tiny, canonical=False),
    "MobileNet v3 small": lambda: convolutional(tv.mobilenet_v3_small, canonical=False),
    "ViT-B/16": vision_transformer,
    "GPT-2": language_model,
}


def exported(network: nn.Module, x: Tensor) -> None:
    """Do what no tracing can do without."""
    torch.export.export(network, (x,)).run_decompositions({})


def training_step(network: nn.Module, batch: Tensor) -> None:
    """Run a network forward and fully backward."""
    for parameter in network.parameters():
        parameter.requires_grad_(True).grad = None
    given = batch.clone()
    if given.is_floating_point():
        given.requires_grad_(True)
    network(given)[:, 0].sum().backward()


def extract(model: Any, x: Tensor, number: int, store: Path, options: dict[str, Any]) -> None:
    """Extract one input so many times, under other keys, into a new store."""
    inputs = [{"input": x[0], "key": f"{store.name} {i}"} for i in range(number)]
    ng.extract(model, inputs, store, **options).close()


def bound(text: str) -> int | str:
    """Read ``--max-edges``."""
    return int(text) if text.isdigit() else text


def in_processes(
    file: str, args: argparse.Namespace, measure: Callable[..., str], **options: Any
) -> None:
    """Print the line of every chosen network, each in a process of its own.

    ``options`` are passed to ``measure``, and on the command line in their words.
    """
    warnings.simplefilter("ignore")
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    for name in NETWORKS:
        if args.names and not any(part in name for part in args.names):
            continue
        if args.here:
            print(measure(name, **options), flush=True)
        else:
            subprocess.run([sys.executable, file, *words, "--here", name], check=True)


def measured(name: str, rounds: int, threads: int, max_edges: str) -> str:
    """Line of one network."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    network, x, composite, heatmap = NETWORKS[name]()
    folder = Path(tempfile.mkdtemp())
    options: dict[str, Any] = {
        "composite": composite,
        "max_edges": bound(max_edges),
        "batch_size": 1,
        "progress": False,
    }

    def seconds(call: Callable[[], object]) -> float:
        start = clock()
        call()
        return clock() - start

    def step_of_training() -> None:
        training_step(network, x)
        network.requires_grad_(False)

    def stored(model: Any, number: int, store: str) -> None:
        extract(model, x, number, folder / store, options)

    whole = seconds(lambda: stored(network, 1, "first"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    export = seconds(lambda: exported(network, x))
    program = ng.trace(network, x)
    candidates: dict[str, Callable[[], object]] = {"step": step_of_training}
    if heatmap is not None:
        candidates["heat map"] = lambda: heatmap(x)
    found: dict[str, list[float]] = {"extraction": []}
    for call in candidates.values():
        call()  # warm up
    for k in range(rounds):
        for label, call in candidates.items():
            found.setdefault(label, []).append(seconds(call))
        # One input's own cost: what is done once is done in both.
        one = seconds(lambda k=k: stored(program, 1, f"{k} one"))
        four = seconds(lambda k=k: stored(program, 4, f"{k} four"))
        found["extraction"].append((four - one) / 3)
    median = {label: statistics.median(values) for label, values in found.items()}
    step = median.pop("step")
    with ng.open(folder / "0 four") as db:
        ((rows, kept),) = db.sql(
            "SELECT (SELECT count(*) FROM edges) / count(*), min(kept) FROM inputs"
        ).fetchall()
    tables = [f for f in (folder / "0 four" / "shards").iterdir() if ".tensors." not in f.name]
    size = sum(f.stat().st_size for f in tables) / 4 / 1e6
    set_up = whole - median["extraction"]
    ratios = ", ".join(f"{label} {value / step:.2f}" for label, value in median.items())
    return (
        f"{name:<20} {ratios} (step {step:.2f} s); {rows:,.0f} rows, {size:.2f} MB, kept "
        f"{kept:.2f}; set-up {set_up:.1f} s, export {export:.1f} s; peak {peak:.1f} GB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks to measure; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-edges", default="auto")
    parser.add_argument("--here", action="store_true", help="in this process")
    args = parser.parse_args()
    options = {"rounds": args.rounds, "threads": args.threads, "max_edges": args.max_edges}
    in_processes(__file__, args, measured, **options)


if __name__ == "__main__":
    main()
