"""The transformer that the package ships for the language demo, and what the demo says of it."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.processes import ROOT
from safetensors import safe_open

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.cli.demo import induction, induction_heads
from nrm_graph.cli.demo.induction import LETTERS, InductionTransformer, load_induction
from nrm_graph.cli.demo.induction_heads import KEYS, head_scores, joint_of_heads, others, rank_of
from nrm_graph.network.tracing import trace_as_given

WEIGHTS = files("nrm_graph").joinpath("data", induction.WEIGHTS_FILE)


@pytest.fixture(scope="module")
def demo():
    return load_induction()


@pytest.fixture(scope="module")
def program(demo, remembered_traces):
    model, asked = demo
    return trace_as_given.traced(model, None, (asked[0]["input"][None],))[0]


def measures(program, asked, composite="attn_lrp"):
    return [
        ng.measure(
            program,
            prompt["input"][None],
            target=LETTERS.index(prompt["label"]),
            composite=composite,
        )
        for prompt in asked
    ]


@pytest.mark.smoke
def test_completes_held_out_sequences(demo):
    """At least 98 % of all letters that can be known, in 1,000 sequences of all periods."""
    model, _ = demo
    generator = torch.Generator().manual_seed(induction.HELD_OUT)
    ids, following, known = induction.repeated(1000, generator)
    with torch.inference_mode():
        right = model.everywhere(ids).argmax(-1) == following
    assert right[known].double().mean() >= 0.98


@pytest.mark.smoke
def test_completes_every_prompt_of_the_demo(demo):
    model, asked = demo
    with torch.inference_mode():
        answers = model(torch.stack([prompt["input"] for prompt in asked])).argmax(1)
    assert [LETTERS[i] for i in answers.tolist()] == [prompt["label"] for prompt in asked]


def test_weights_are_those_of_the_network():
    with safe_open(str(WEIGHTS), framework="pt") as held:
        found = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    expected = {name: t.shape for name, t in InductionTransformer().state_dict().items()}
    assert {name: tensor.shape for name, tensor in found.items()} == expected
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert Path(str(WEIGHTS)).stat().st_size < 300_000


def test_prompts_are_letters_and_their_beginning(demo):
    _, asked = demo
    assert len({prompt["key"] for prompt in asked}) == len(asked) == 32
    for prompt in asked:
        text = "".join(prompt["tokens"])
        assert prompt["key"] == f"{text[:8]}-{text[8:]}"
        assert text[:4] == text[8:]
        assert len(set(text)) == 8
        assert prompt["label"] == text[4]
        assert [LETTERS[i] for i in prompt["input"].tolist()] == prompt["tokens"]


def test_no_position_is_the_answer():
    """Sequences of a training begin anew after 6 to 12 letters, each about as often."""
    generator = torch.Generator().manual_seed(1)
    ids, following, known = induction.repeated(700, generator)
    assert torch.equal(ids[:, 1:], following[:, :-1])
    periods = induction.LENGTH - known.sum(1)
    counts = torch.bincount(periods, minlength=13)[6:]
    assert counts.min() > 60
    for row, period in zip(ids[:20], periods[:20].tolist(), strict=True):
        assert torch.equal(row[period:], row[:-period])


def test_patterns_are_what_the_heads_mix_by(demo):
    model, asked = demo
    ids = asked[0]["input"][None]
    for block, pattern in enumerate(model.patterns(ids)):
        x = model.letters(ids) + model.positions[:12]
        for before in model.blocks[:block]:
            x = before(x)
        inner = model.blocks[block]
        y = inner.norm(x)
        mixed = pattern @ induction.by_head(inner.attention.value(y))
        out = inner.attention.out(mixed.transpose(1, 2).flatten(2))
        torch.testing.assert_close(out, inner.attention(y))


# What the demo says of the shipped network


def test_the_previous_token_head_stands_out_through_keys(demo, program):
    """Of 16 pairs those of head 0 of the first block with an induction head are the largest."""
    model, asked = demo
    scores = head_scores(model, asked)
    upper, lower = scores.pair
    assert (upper, lower) == (0, 0)
    keys = joint_of_heads(measures(program, asked[:3]), keys=True)
    assert rank_of(keys, (upper, lower)) <= 2
    by_lower = keys.sum(0)
    assert by_lower.argmax() == lower
    assert by_lower[lower] > 10 * np.delete(by_lower, lower).max()


@pytest.mark.parametrize("composite", ["cp_lrp", "relp"])
def test_nothing_goes_through_keys_where_attention_is_held(demo, program, composite):
    (m,) = measures(program, demo[1][:1], composite)
    assert not np.asarray(m.marginal(KEYS)).any()
    assert joint_of_heads([m])[0].any()


def test_ranks_and_others():
    values = np.array([[3.0, -1.0], [5.0, 2.0]])
    assert [rank_of(values, pair) for pair in ((1, 0), (0, 0), (0, 1))] == [1, 2, 4]
    assert others(values, (1, 0)).tolist() == [3.0, 2.0, -1.0]


def test_the_demo_runs(tmp_path, monkeypatch, capsys, demo, program):
    model, asked = demo
    monkeypatch.setattr(induction, "load_induction", lambda: (model, asked[:2]))
    picture = tmp_path / "demo.svg"
    argv = ["demo", "--language", "--store", str(tmp_path / "s.nrm"), "--picture", str(picture)]
    assert main.main(argv) == 0
    out = capsys.readouterr().out
    for text in ("2 of 2 completed", "cp_lrp", "mean_relevance", "through keys", "Try next"):
        assert text in out
    assert "The pair: head 0 of block 0 feeds the keys of head 0 of block 1." in out
    assert picture.stat().st_size > 1000
    commands = [line.strip() for line in out.splitlines() if line.startswith("  nrm-graph ")]
    assert len(commands) == 4


def test_the_default_names_differ_from_those_of_the_images(monkeypatch):
    from nrm_graph.cli.demo import language_tour

    called = []
    monkeypatch.setattr(language_tour, "run", lambda *paths: called.append(paths))
    assert main.main(["demo", "--language"]) == 0
    assert called == [("nrm-language.nrm", "nrm-language.png")]


@pytest.mark.parametrize("script", ["train_induction.py", "induction_seeds.py"])
def test_scripts_explain_themselves(script):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage" in done.stdout


def test_the_page_has_the_numbers_of_the_shipped_network(demo, program):
    """Seed 0 is the network that ships: its row is computed anew from the weights."""
    model, _ = demo
    asked = induction.prompts(24)
    pair = head_scores(model, asked).pair
    found = measures(program, asked)
    page = (ROOT / "docs" / "induction.md").read_text("utf-8")
    (_, row) = [line for line in page.splitlines() if line.startswith("| 0, 1 |")]
    cells = [cell.strip() for cell in row.split("|")]
    for cell, keys in ((cells[2], False), (cells[4], True)):
        values = joint_of_heads(found, keys=keys)
        assert cell.startswith(f"**{rank_of(values, pair)}**: {values[pair]:.2g} ")


@pytest.mark.slow
def test_ablation_of_the_pair(demo, program, tmp_path):
    model, asked = demo
    options = {"composite": "cp_lrp", "classes": LETTERS, "target": "label", "progress": False}
    with ng.extract(program, asked[:8], tmp_path / "s.nrm", max_edges=1000, **options) as db:
        drops = induction_heads.drops_of_pairs(db)
    assert rank_of(drops, head_scores(model, asked).pair) <= 2
