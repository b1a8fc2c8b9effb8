"""Whether relevance singles out the two heads of induction: five networks, and five more.

::

    python scripts/induction_seeds.py            # prints the tables
    python scripts/induction_seeds.py --page     # writes them and the picture into docs/

What is compared was fixed before any of it was looked at in these networks (``docs/induction.md``
tells of an earlier design, which had no pair to be found):

* Networks: seeds 0 to 4 of ``scripts/train_induction.py``, and the same seeds with weight decay 0.1
  instead of 1, whose attention is near saturation. None is left out.
* The true pair, by attention alone: the head of the first block with the largest attention to the
  position before (where letters are read for the first time), and the head of the second with the
  largest attention to what followed the present letter (means over the prompts).
* Prompts: 24 that no training drew; explained is the score of the right letter.
* For each of the 16 pairs of a head of the second block with one of the first, means over the
  prompts: the joint relevance of what both mix, under attn_lrp and under cp_lrp (relp is the same
  here: there are no gates); the joint relevance of the keys of the one with what the other mixes,
  under attn_lrp (under cp_lrp it is 0); the fall of the score with both heads set to zero; and the
  fall of the score if only the keys of the one are read without what the other mixes.
* Pairs are ranked by value, the largest first. Heads of the first block alone are ranked, too, by
  what the keys of the whole second block have from them.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# The checkout's networks are trained, not those that happen to be installed.
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.cli.demo.induction import InductionTransformer
    from nrm_graph.cli.demo.induction_heads import HeadScores

    Floats = npt.NDArray[np.float64]

SEEDS = range(5)
PROMPTS = 24
HARDER = 0.1
"""Weight decay of the second five."""

COLUMNS = {
    "all": "all walks, attn_lrp",
    "held": "all walks, cp_lrp",
    "keys": "through keys, attn_lrp",
    "ablated": "both heads zeroed",
    "unread": "keys read without it",
}
PAGE, PICTURE = ROOT / "docs" / "induction.md", ROOT / "docs" / "induction.png"
BEGIN, END = "<!-- induction:begin -->", "<!-- induction:end -->"


@dataclass(frozen=True, eq=False)
class Compared:
    """What one network shows; matrices are (heads of the second block, heads of the first)."""

    seed: int
    decay: float
    accuracy: float
    scores: HeadScores
    matrices: dict[str, Floats]
    keys_held: float
    """Largest joint relevance through keys under cp_lrp, in magnitude."""
    remainder: float
    """Share of what the second block's attention weights hold that ends in the remainder."""


def compare(seed: int, decay: float) -> Compared:
    """Train a network and ask it everything."""
    import train_induction

    import nrm_graph as ng
    from nrm_graph.cli.demo import induction_heads as heads
    from nrm_graph.cli.demo.induction import LETTERS, prompts

    model = train_induction.train(seed, decay=decay)
    asked = prompts(PROMPTS)
    program = ng.trace(model, asked[0]["input"][None])
    attn, cp = (
        [
            ng.measure(
                program,
                prompt["input"][None],
                target=LETTERS.index(prompt["label"]),
                composite=composite,
            )
            for prompt in asked
        ]
        for composite in ("attn_lrp", "cp_lrp")
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.nrm"
        options: dict[str, Any] = {"composite": "cp_lrp", "classes": LETTERS, "progress": False}
        with ng.extract(program, asked, path, target="label", max_edges=1000, **options) as db:
            ablated = heads.drops_of_pairs(db)
    matrices = {
        "all": heads.joint_of_heads(attn),
        "held": heads.joint_of_heads(cp),
        "keys": heads.joint_of_heads(attn, keys=True),
        "ablated": ablated,
        "unread": unread_keys(model, asked),
    }
    weights = np.mean([_weights_and_remainder(m) for m in attn], axis=0)
    return Compared(
        seed,
        decay,
        train_induction.accuracy(model),
        heads.head_scores(model, asked),
        matrices,
        float(np.abs(heads.joint_of_heads(cp, keys=True)).max()),
        float(weights[1] / weights[0]),
    )


def _weights_and_remainder(m: Any) -> tuple[float, float]:
    report = {row["layer"]: row for row in m.report().to_pylist()}
    row = report["blocks.1.attention.attention_weights"]
    return row["sum"], row["remainder"]


def unread_keys(model: InductionTransformer, asked: Sequence[dict[str, Any]]) -> Floats:
    """Mean fall of the score if a head's keys are read without what a head below mixes.

    The keys come from a run in which the lower head is zero; all else is the network's own run.
    """
    import torch

    from nrm_graph.cli.demo.induction import HEADS, LETTERS, SIZE

    ids = torch.stack([prompt["input"] for prompt in asked])
    place = torch.arange(len(ids)), [LETTERS.index(prompt["label"]) for prompt in asked]
    first, second = (block.attention for block in model.blocks)
    drops = np.zeros((HEADS, HEADS))
    with torch.inference_mode():
        whole = model(ids)[place]
        for lower in range(HEADS):
            mine = slice(lower * SIZE, (lower + 1) * SIZE)

            keys: list[Tensor] = []
            hooks = [
                first.out.register_forward_pre_hook(functools.partial(_silenced, mine)),
                second.key.register_forward_hook(functools.partial(_kept, keys)),
            ]
            model(ids)
            for hook in hooks:
                hook.remove()
            for upper in range(HEADS):
                read = slice(upper * SIZE, (upper + 1) * SIZE)
                hook = second.key.register_forward_hook(functools.partial(_reread, keys[0], read))
                drops[upper, lower] = (whole - model(ids)[place]).double().mean()
                hook.remove()
    return drops


def _silenced(features: slice, module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
    mixed = args[0].clone()
    mixed[..., features] = 0
    return (mixed,)


def _kept(keys: list[Tensor], module: Any, args: Any, out: Tensor) -> None:
    keys.append(out)


def _reread(keys: Tensor, features: slice, module: Any, args: Any, out: Tensor) -> Tensor:
    out = out.clone()
    out[..., features] = keys[..., features]
    return out


def tables(found: Sequence[Compared]) -> str:
    """Return the tables of the page, in Markdown."""
    from nrm_graph.cli.demo.induction_heads import others, rank_of

    scores = [
        "| seed, decay | completed | pair (second, first) | attention to the previous letter, "
        "heads of the first block | attention to what followed, heads of the second | "
        "remainder of the weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        upper, lower = one.scores.pair
        scores.append(
            f"| {one.seed}, {one.decay:g} | {100 * one.accuracy:.2f} % | {upper}, {lower} | "
            f"{_listed(one.scores.previous)} | {_listed(one.scores.induction)} | "
            f"{100 * one.remainder:.0f} % |"
        )
    ranks = [
        "| seed, decay | " + " | ".join(COLUMNS.values()) + " | keys of the block |",
        "| --- |" + " --- |" * (len(COLUMNS) + 1),
    ]
    for one in found:
        pair = one.scores.pair
        cells = [
            f"**{rank_of(values, pair)}**: {_short(values[pair])} (others {_short(rest[0])}, mean "
            f"{_short(rest.mean())})"
            for values in (one.matrices[name] for name in COLUMNS)
            for rest in (others(values, pair),)
        ]
        by_lower = one.matrices["keys"].sum(0)
        cells.append(f"**{1 + int((by_lower > by_lower[pair[1]]).sum())}** of 4: {_each(by_lower)}")
        ranks.append(f"| {one.seed}, {one.decay:g} | " + " | ".join(cells) + " |")
    held = max(one.keys_held for one in found)
    last = f"Through keys under `cp_lrp`: {held:g} at most, in all networks."
    return "\n".join([*scores, "", *ranks, "", last])


def _listed(values: Floats) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _each(values: Floats) -> str:
    return " ".join(_short(value) for value in values)


def _short(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:.2f}"


def picture(found: Sequence[Compared], path: Path) -> None:
    """Draw every pair of every network as a point, the true one large and red."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from nrm_graph.cli.demo.induction_heads import others

    decays = list(dict.fromkeys(one.decay for one in found))
    figure, axes = plt.subplots(len(decays), len(COLUMNS), figsize=(11, 5.4), layout="constrained")
    for ax, title in zip(axes[0], COLUMNS.values(), strict=True):
        ax.set_title(title, fontsize=9)
    for row, decay in zip(axes, decays, strict=True):
        some = [one for one in found if one.decay == decay]
        for ax, name in zip(row, COLUMNS, strict=True):
            for one in some:
                values, pair = one.matrices[name], one.scores.pair
                rest = others(values, pair)
                grey = ax.scatter(np.full(len(rest), one.seed), rest, s=14, color="0.65", lw=0)
                red = ax.scatter([one.seed], [values[pair]], s=34, color="#c1272d", zorder=3)
            ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
            ax.set_xticks([one.seed for one in some])
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=8)
            ax.set_xlabel("seed", fontsize=8)
        row[0].set_ylabel(f"decay {decay:g}\njoint relevance", fontsize=9)
        row[3].set_ylabel("fall of the score", fontsize=9)
    names = ["the true pair", "the 15 other pairs of heads"]
    figure.legend(
        [red, grey], names, loc="outside lower center", ncols=2, fontsize=9, frameon=False
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Train, compare, print or write; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Compare the pairs of heads of ten induction networks."
    )
    parser.add_argument(
        "--page", action="store_true", help="write docs/induction.md and its picture"
    )
    options = parser.parse_args(arguments)

    import torch
    import train_induction

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    found = []
    for decay in (train_induction.DECAY, HARDER):
        for seed in SEEDS:
            found.append(compare(seed, decay))
            print(f"seed {seed}, decay {decay:g}: compared", file=sys.stderr, flush=True)
    print(tables(found))
    if options.page:
        write_page(found)
    return 0


def write_page(found: Sequence[Compared]) -> None:
    """Write the tables and the picture into the documentation."""
    page = PAGE.read_text("utf-8")
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{tables(found)}\n\n{END}{tail}", "utf-8")
    picture(found, PICTURE)


if __name__ == "__main__":
    sys.exit(main())
