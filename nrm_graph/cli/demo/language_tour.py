"""The language demo: a store of repeated sequences, and a tour to the heads that complete them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from nrm_graph.cli.demo.tour import print_title
from nrm_graph.cli.output import text_table
from nrm_graph.graphs.formats import graph_path, write_graph
from nrm_graph.store.format.files import local_path
from nrm_graph.store.format.place import check_place

if TYPE_CHECKING:
    import numpy.typing as npt

    from nrm_graph.cli.demo.induction_heads import HeadScores
    from nrm_graph.database import Database
    from nrm_graph.measures.measure import Measure

SHOWN = 30  # steps in the picture, at most

# Exact zeros are not stored, so a mean divides by the number of inputs: never avg().
PER_HEAD = """
SELECT l.name AS layer, n.unit AS head,
       sum(CAST(n.relevance AS DOUBLE)) / (SELECT count(*) FROM inputs) AS mean_relevance
FROM nodes n JOIN layers l USING (layer_id)
WHERE l.name IN (?, ?) AND n.unit >= 0
GROUP BY ALL ORDER BY ALL
"""


def run(
    store_path: str | os.PathLike[str] = "nrm-language.nrm",
    picture_path: str | os.PathLike[str] = "nrm-language.png",
) -> None:
    """Extract the store of prompts, ask which heads complete them and write a picture.

    Parameters
    ----------
    store_path : path-like
        The store to write, or to continue.
    picture_path : path-like
        Picture of how the letters of one prompt reach the answer (``.png``, ``.svg``, ...).
    """
    picture = graph_path(picture_path)
    check_place(local_path(store_path))

    from nrm_graph.cli.demo.induction import LETTERS, load_induction
    from nrm_graph.cli.demo.induction_heads import FIRST, SECOND, head_scores
    from nrm_graph.extraction.extract import extract
    from nrm_graph.measures.create import measure

    began = time.perf_counter()
    model, prompts = load_induction()
    print(f"A two-layer transformer that completes repeated letters; {len(prompts)} prompts of")
    print("twelve letters, none of which it was trained on.")
    print(f"Extracting the relevance of heads and positions into {store_path} ...")
    with extract(
        model,
        prompts,
        store_path,
        composite="attn_lrp",
        resolution="head",  # of the stream: positions, which all prompts have in common
        target="predicted",
        classes=LETTERS,
        preprocessing="letters as numbers, a to z",
    ) as db:
        rows = db.sql("SELECT label, predicted FROM inputs").fetchall()
        right = sum(label == LETTERS[predicted] for label, predicted in rows)
        print(f"{right} of {len(rows)} completed, after {time.perf_counter() - began:.0f} s.")
        key = str(prompts[0]["key"])
        m = db.measure(key)
        held = measure(db.program, prompts[0]["input"][None], composite="cp_lrp")
        _letters(key, m, held)

        print_title(f"Heads: mean relevance of {len(rows)} prompts (SQL)")
        print(text_table(db.sql(PER_HEAD, params=[SECOND, FIRST]).to_arrow_table()))

        scores = head_scores(model, prompts)
        _attention(scores)
        _pairs(db, scores)

        by = {"letters": "token", FIRST: "head", SECOND: "head"}
        graph = m.reduced([*by], by, nodes=None).graph(SHOWN)
        graph.graph["title"] = f"How the letters of {key} reach {_answer(m)!r}, by heads"
        write_graph(graph, picture)

    print_title(f"Done in {time.perf_counter() - began:.0f} s")
    print(f"Store:   {Path(store_path).resolve()}")
    print(f"Picture: {picture.resolve()} (letters, heads and the answer of {key})")
    print("Try next:")
    for command in _next_commands(os.fspath(store_path), key, scores.pair):
        print(f"  {command}")


def _answer(m: Measure) -> str:
    return m.classes[m.target] if m.classes and m.target is not None else "?"


def _letters(key: str, m: Measure, held: Measure) -> None:
    print_title(f"What carries {_answer(m)!r} after {key}: relevance of the letters")
    print("attn_lrp halves a head's relevance between what it copies and where it looks; cp_lrp")
    print("holds where it looks constant, and sees what was copied alone.")
    columns = {
        "position": np.arange(len(m.tokens or ())),
        "letter": list(m.tokens or ()),
        "attn_lrp": m.marginal("letters", by="token").round(4),
        "cp_lrp": held.marginal("letters", by="token").round(4),
    }
    print(text_table(pa.table(columns)))
    lost = sum(row["remainder"] for row in m.report().to_pylist())
    print(f"The first-order rule of the softmax leaves {lost:.3f} in the remainder of attn_lrp.")


def _attention(scores: HeadScores) -> None:
    print_title("Which heads it should be: attention alone")
    print("previous: of block 0, attention to the letter before, 1 at most")
    print("induction: of block 1, attention to what followed the present letter when first read")
    columns = {
        "head": np.arange(len(scores.previous)),
        "previous": scores.previous.round(3),
        "induction": scores.induction.round(3),
    }
    print(text_table(pa.table(columns)))
    upper, lower = scores.pair
    print(f"The pair: head {lower} of block 0 feeds the keys of head {upper} of block 1.")


def _pairs(db: Database, scores: HeadScores) -> None:
    """Print what relevance says of the pair, and what an ablation says."""
    from nrm_graph.cli.demo.induction_heads import drops_of_pairs, joint_of_heads

    keys = [key for (key,) in db.sql("SELECT key FROM inputs ORDER BY input_id").fetchall()]
    measures = [db.measure(key) for key in keys]
    print_title("Whether relevance finds the pair: means over the prompts, pairs of heads")
    keys_too = joint_of_heads(measures, keys=True)
    rows = (
        ("joint relevance, all walks", joint_of_heads(measures)),
        ("joint relevance through keys", keys_too),
        ("fall of the score, both zeroed", drops_of_pairs(db)),
    )
    print(text_table(pa.Table.from_pylist([_row(name, v, scores.pair) for name, v in rows])))
    print("rank 1 is the largest of 16 pairs. Under cp_lrp and relp nothing goes through keys.")
    print("\nThrough keys, pair by pair:")
    columns = {f"block 0, head {g}": keys_too[:, g].round(5) for g in range(len(keys_too))}
    print(text_table(pa.table({"block 1, head": np.arange(len(keys_too)), **columns})))


def _row(name: str, values: npt.NDArray[np.float64], pair: tuple[int, int]) -> dict[str, object]:
    from nrm_graph.cli.demo.induction_heads import others, rank_of

    rest = others(values, pair)
    return {
        "": name,
        "the pair": round(float(values[pair]), 5),
        "largest other": round(float(rest[0]), 5),
        "mean other": round(float(rest.mean()), 5),
        "rank": rank_of(values, pair),
    }


def _next_commands(store: str, key: str, pair: tuple[int, int]) -> tuple[str, ...]:
    """Commands that go on with the demo's store and one of its prompts."""
    from nrm_graph.cli.demo.induction import SIZE
    from nrm_graph.cli.demo.induction_heads import FIRST, KEYS, SECOND

    upper, lower = pair
    features = f"{KEYS}[:, {upper * SIZE}:{(upper + 1) * SIZE}]"
    return (
        f"nrm-graph info {store}",
        f'nrm-graph relevance {store} --input {key} "{SECOND}[{upper}] & {FIRST}[{lower}]"',
        f'nrm-graph relevance {store} --input {key} "{features} & {FIRST}[{lower}]"',
        f"nrm-graph reduce {store} --input {key} --watch letters --watch {FIRST} --watch {SECOND}",
    )
