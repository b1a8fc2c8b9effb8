"""What does a language model of a billion parameters in bfloat16 cost?  Two threads of torch.

A Llama configuration (``--size 1B``: that of Llama 3.2 1B; ``110M`` is a small one) with seeded
weights, and a text of 64 tokens.  Every question is asked in a fresh process.

Memory is ``ru_maxrss`` of the process: all resident pages, those of the file of weights that are
mapped and those of the interpreter and its libraries among them; ``load`` is these alone.  The bar
is the weights as they are stored, their largest tensor in float32, and 1 GB.

Times are CPU time of the process, every figure the least of some rounds that run all candidates
in turn.  A training step is the model's own, in bfloat16: forward, and the backward pass of the
loss of the last token to all weights; no optimiser.  A pass is a relevance pass from the output
to the embeddings.

    python benchmarks/language.py [--size 1B] [--nodes 50] [--rounds 2] [--only memory time]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS, TOKENS, SPARE = 2, 64, 1e9
SIZES = {  # hidden, between, layers, heads, of keys and values, vocabulary
    "110M": (768, 2048, 12, 12, 4, 50257),
    "1B": (2048, 8192, 16, 32, 8, 128256),
}
MEMORY = ("load", "marginals", "reduced")


def save(folder: Path, size: str) -> None:
    """Write a model of seeded weights, that is never in float32, and a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from helpers.language_models import tokenizer

    words = tokenizer("bytes")
    hidden, between, layers, heads, groups, vocabulary = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=between,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=words.pad_token_id,
        dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)


def text(lm: Any) -> str:
    """Return a text of so many tokens."""
    words = [
        "The",
        "capital",
        "of",
        "Italy",
        "is",
        "Rome",
        "and",
        "London",
        "is",
        "not",
        "the",
        "capital",
        "of",
        "France",
    ]
    cut = 0
    while len(lm.reader.encode(" ".join((words * TOKENS)[: cut + 1])).ids) <= TOKENS:
        cut += 1
    short = " ".join((words * TOKENS)[:cut])
    while len(lm.reader.encode(short).ids) < TOKENS:
        short += "!"
    assert len(lm.reader.encode(short).ids) == TOKENS
    return short


def loaded(folder: Path) -> Any:
    import torch

    import nrm_graph as ng

    warnings.simplefilter("ignore")
    torch.set_num_threads(THREADS)
    return ng.load_model(f"hf:{folder}")


def marginals(m: Any) -> None:
    for layer in m.topology.layers:
        m.marginal(layer.name)


def memory(folder: Path, question: str, nodes: int) -> dict[str, float]:
    """Peak of this process in bytes, and what the bar is made of."""
    import nrm_graph as ng

    lm = loaded(folder)
    weights = {p.data_ptr(): p for p in lm.module.parameters()}.values()
    if question != "load":
        m = ng.measure(lm, text(lm))
        marginals(m) if question == "marginals" else m.reduced(nodes=nodes)
    else:  # so that pages that are mapped count as loaded
        for parameter in weights:
            parameter.sum()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak": peak * (1 if sys.platform == "darwin" else 1024),
        "weights": sum(p.numel() * p.element_size() for p in weights),
        "largest": max(p.numel() for p in weights) * 4,
    }


def training_step(lm: Any, ids: Any) -> None:
    """Forward, and the backward pass of the loss of the last token; positions have no logits."""
    import torch

    logits = lm.module(ids, logits_to_keep=1, use_cache=False).logits[:, -1]
    torch.nn.functional.cross_entropy(logits, ids[:, -1]).backward()


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def times(folder: Path, nodes: int, rounds: int) -> dict[str, float]:
    """CPU seconds of every candidate, the least of some rounds."""
    import torch

    import nrm_graph as ng
    from nrm_graph.propagation.relevance_pass import relevance_pass

    lm = loaded(folder)
    prompt = text(lm)
    ids = torch.tensor([lm.reader.encode(prompt).ids])
    took = {"tracing": seconds(lambda: lm.program(TOKENS))}
    m = ng.measure(lm, prompt)

    def train() -> float:
        lm.module.requires_grad_(True)
        once = seconds(lambda: training_step(lm, ids))
        lm.module.zero_grad(set_to_none=True)
        lm.module.requires_grad_(False)
        return once

    def a_pass() -> float:
        return seconds(lambda: relevance_pass(m.state, m.start, visit=lambda i, r: None))

    candidates: dict[str, Callable[[], float]] = {
        "training step": train,
        "relevance pass": a_pass,
        "measure and marginals": lambda: seconds(lambda: marginals(ng.measure(lm, prompt))),
        "reduced graph": lambda: seconds(lambda: m.reduced(nodes=nodes)),
    }
    for _ in range(rounds):
        for name, candidate in candidates.items():
            took[name] = min(candidate(), took.get(name, float("inf")))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="1B")
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=["memory", "time"])
    parser.add_argument("--folder", type=Path, help="keep the model there")
    parser.add_argument("--ask", choices=("save", "time", *MEMORY), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask == "save":
        save(options.folder, options.size)
    elif options.ask == "time":
        print(json.dumps(times(options.folder, options.nodes, options.rounds)))
    elif options.ask:
        print(json.dumps(memory(options.folder, options.ask, options.nodes)))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            told(options, options.folder or Path(temporary) / "model")


def told(options: argparse.Namespace, folder: Path) -> None:
    """Print all figures as ratios."""

    def ask(question: str) -> dict[str, float]:
        given = ("--size", options.size, "--nodes", options.nodes, "--rounds", options.rounds)
        command = [sys.executable, __file__, "--ask", question, "--folder", folder, *given]
        # Threads that wait for each other let others compute: the machine may not be ours alone.
        quiet = os.environ | {"OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1"}
        done = subprocess.run(
            list(map(str, command)), stdout=subprocess.PIPE, check=True, env=quiet
        )
        return json.loads(done.stdout) if done.stdout else {}

    if not (folder / "config.json").exists():
        ask("save")
    if "memory" in options.only:
        before = 0.0
        for question in MEMORY:
            of = ask(question)
            before = before or of["peak"]
            bar = of["weights"] + of["largest"] + SPARE
            print(
                f"peak memory, {question}: {of['peak'] / bar:.2f} of the bar "
                f"({of['peak'] / 1e9:.2f} GB of {bar / 1e9:.2f}), "
                f"{(of['peak'] - before) / 1e9:.2f} GB above loaded",
                flush=True,
            )
    if "time" in options.only:
        took = ask("time")
        step, passes = took["training step"], options.nodes * took["relevance pass"]
        for name, each in took.items():
            print(f"{name}: {each / step:.2f} training steps ({each:.2f} s)")
        print(f"reduced graph: {took['reduced graph'] / passes:.2f} of {options.nodes} passes")


if __name__ == "__main__":
    main()
