"""Texts and tokens: what a tokenizer makes of a text, and which output a text names."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import language_models

import nrm_graph as ng
from nrm_graph.extraction.texts import StreamedTexts

TEXT = "The capital of France is"
CITIES = [" Paris", " London", " Rome"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return ng.load_model(f"hf:{language_models.save(tmp_path_factory.mktemp('hf'), 'gpt2')}")


@pytest.fixture(scope="module")
def store(lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "s.nrm"
    rows = [
        {"text": TEXT, "key": "france", "label": "city", "length": 5},
        {"text": "The capital of Italy is not", "key": "italy", "target": " Rome"},
        {"text": "London", "key": "london", "target": " Rome", "against": " Paris"},
        {"text": "The capital", "key": "other", "against": " London"},
    ]
    ng.extract(lm, rows, path, target=" Paris", progress=False)
    return path


@pytest.mark.smoke
def test_a_difference_of_logits(lm):
    both = [ng.measure(lm, TEXT, target=name) for name in CITIES[:2]]
    m = ng.measure(lm, TEXT, target=" Paris", against=" London")
    assert m.logit == pytest.approx(both[0].logit - both[1].logit, abs=1e-5)
    assert m.tokens == ("The", " capital", " of", " France", " is")
    assert both[0].target_text() == f"target {both[0].target} (' Paris')"
    outputs = [lm.reader.output_of(name) for name in CITIES[:2]]
    words = f"target {outputs[0]} (' Paris') against {outputs[1]} (' London')"
    assert m.target_text() == words
    title = m.heatmap().get_title().replace("\N{NO-BREAK SPACE}", " ")
    assert "(' Paris')" in title
    assert "(' London')" in title  # on one line each
    uneven = ng.measure(lm, TEXT, target={" Paris": 1, " London": -0.5})
    assert "' London'): -0.5" in uneven.target_text()
    same = ng.measure(lm, TEXT, target={" Paris": 1, both[1].target: -1})
    assert same.logit == pytest.approx(m.logit, abs=1e-6)
    top = ng.measure(lm, TEXT)
    over = ng.measure(lm, TEXT, target="predicted", against=" London")
    assert over.logit == pytest.approx(top.logit - both[1].logit, abs=1e-5)
    assert top.network.composite.name == "attn_lrp"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": " Parisian"}, r"splits it into ' Paris', 'i', 'an'; give one token"),
        ({"target": ""}, "holds no token"),
        ({"target": " Paris", "against": " Paris"}, "the same output, ' Paris'"),
        ({"target": 10**6}, "expected a token as text or as a number from 0 to"),
        ({"target": True}, "expected a token"),
        ({"target": {" Paris": 1}, "against": " Rome"}, "put both into it"),
        ({"target": "label"}, "is for classifiers"),
        ({"tokens": ["a"]}, "leave tokens= out"),
        ({"output": "logits"}, "leave output= out"),
    ],
)
def test_targets_that_are_none(lm, options, message):
    with pytest.raises(ng.InputError, match=message):
        ng.measure(lm, TEXT, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no token"),
        ("a" * 40, "the model knows 32 positions"),
        (3, "is a int, expected text"),
        ("\ud800", "no valid Unicode"),
    ],
)
def test_texts_that_are_none(lm, text, message):
    with pytest.raises(ng.InputError, match=message):
        ng.measure(lm, text)


def test_text_is_for_language_models(lm):
    with pytest.raises(ng.InputError, match=r"ng\.load_model"):
        ng.measure(lm.network(), TEXT)
    with pytest.raises(ng.InputError, match="for language models"):
        ng.measure(lm.network(), lm.example(3), target=1, against=2)
    with pytest.raises(ng.InputError, match="for language models"):
        ng.extract(lm.network(), [lm.example(3)], "nowhere", length=3)


@pytest.mark.parametrize("kind", ["bytes", "bytes+mask", "spaces", "words"])
def test_every_token_by_its_text(kind, lm):
    import dataclasses

    words = language_models.tokenizer(kind)
    reader = dataclasses.replace(
        lm.reader, tokenizer=words, outputs=len(words), vocabulary=len(words), _texts={}
    )
    texts = [reader.text_of(i) for i in range(len(words))]
    assert all(texts)
    for i, text in enumerate(texts):
        if texts.count(text) == 1:
            assert reader.output_of(text) == i, text
    assert reader.text_of(len(words) + 3) == f"<{len(words) + 3}>"
    encoded = words("A cat sat on the mat", add_special_tokens=False)["input_ids"]
    joined = "".join(reader.text_of(i) for i in encoded)
    assert joined.replace("##", "").replace(" ", "").lower() == "acatsatonthemat"
    if kind != "words":
        assert joined.lstrip() == "A cat sat on the mat"
    if kind == "spaces":
        with pytest.raises(ng.InputError, match="splits it into ' ', '<unk>'"):
            reader.output_of("\u4e00")
    if kind == "words":
        with pytest.raises(ng.InputError, match="is unknown to this tokenizer"):
            reader.output_of("\u4e00")


def test_a_store_of_texts(store, lm):
    paris, london, rome = map(lm.reader.output_of, CITIES)
    with ng.open(store, weights=lm.weights) as db:
        assert db.meta["language"]["length"] == 6
        table = db.sql("SELECT * FROM inputs").to_arrow_table()
        rows = {row["key"]: row for row in table.to_pylist()}
        assert rows["france"]["target"] == paris
        assert rows["france"]["target_text"] == " Paris"
        assert rows["france"]["text"] == TEXT
        assert rows["france"]["tokens"] == ["The", " capital", " of", " France", " is"]
        assert rows["italy"]["target_text"] == " Rome"
        assert rows["london"]["target"] is None
        weights = json.loads(rows["london"]["weights"])
        assert weights == {str(rome): 1.0, str(paris): -1.0}
        assert json.loads(rows["london"]["target_text"]) == {" Rome": 1.0, " Paris": -1.0}
        assert json.loads(rows["other"]["weights"]) == {str(paris): 1.0, str(london): -1.0}
        assert [db.classes[i] for i in (paris, london, rome)] == CITIES
        assert sum(map(bool, db.classes)) < 10
        assert db.outputs.text(rome, db.classes) == f"{rome} (' Rome')"
        m = db.measure("italy")
        assert m.target_text() == f"target {rome} (' Rome')"
        assert db.measure("london").tokens == ("London", *[""] * 5)
        strip = db.measure("london").heatmap(layer="transformer.wte")
        assert [text.get_text() for text in strip.texts][:1] == ["London"]
        assert "" not in [text.get_text() for text in strip.texts]
        alone = ng.measure(lm, "London", target=" Rome", against=" Paris")
        short, long = (
            alone.marginal("transformer.wte"),
            db.measure("london").marginal("transformer.wte"),
        )
        np.testing.assert_allclose(long[: len(short)], short, atol=1e-5)
        assert not long[len(short) :].any()
        assert db.verify(sample=2).sound
        assert not db.sql(
            "SELECT count(*) FROM nodes JOIN inputs USING (input_id) JOIN layers USING (layer_id) "
            "WHERE inputs.key = 'london' AND layers.name = 'transformer.wte' AND unit >= 16"
        ).fetchall()[0][0]


def test_weights_are_named_not_copied(store, lm):
    assert (store / "weights.safetensors").stat().st_size < 3_000
    with ng.open(store) as db, pytest.raises(ng.NrmError, match="without holding them"):
        db.measure("france")


def test_a_store_goes_on(store, lm, tmp_path):
    import shutil

    path = shutil.copytree(store, tmp_path / "s.nrm")
    with ng.extract(lm, iter([TEXT[:11]]), path, target=" Rome", progress=False) as db:
        assert len(db) == 5
        assert db.meta["language"]["length"] == 6
    with pytest.raises(ng.StoreError, match=r"another (inputs|program)"):
        ng.extract(lm, [TEXT], path, length=9, progress=False)
    with pytest.raises(ng.InputError, match=r"'item 0' is of 11 tokens, and the store holds 6"):
        ng.extract(lm, [f"{TEXT} the capital of Italy and Rome"], path, progress=False)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("The capital", {}, "put one text into a list"),
        ([3], {}, "is a int: expected text"),
        ([{"prompt": "a"}], {}, "a mapping with prompt: expected its text"),
        ([{"text": "a", "tokens": ["a"]}], {}, "has a field 'tokens'"),
        ([{"text": "a", "key": "k", "target": " Parisian"}], {}, "target of 'k': ' Parisian'"),
        ([{"text": "a", "target": 1}], {"target": [1, 2]}, "and the call several"),
        ([TEXT, "a"], {"length": 3}, "is of 5 tokens, and the store holds 3.*length=5"),
        ([TEXT], {"length": 33}, "knows 32 positions"),
        ([TEXT], {"length": 0}, "length must be a number of positions"),
        (iter([TEXT]), {}, "give length="),
        ([TEXT], {"target": " Parisian"}, "splits it"),
    ],
)
def test_data_sets_that_are_refused(lm, tmp_path, texts, options, message):
    with pytest.raises(ng.InputError, match=message):
        ng.extract(lm, texts, tmp_path / "s.nrm", progress=False, **options)
    assert not (tmp_path / "s.nrm" / "store.json").exists()


def test_what_fails_is_skipped(lm, tmp_path):
    texts = [{"text": TEXT, "key": "a"}, 3, {"text": "", "key": "c"}, {"text": "is", "key": "d"}]
    options = {"on_error": "skip", "progress": False, "target": [" Paris", " Rome"]}
    with ng.extract(lm, texts, tmp_path / "s.nrm", **options) as db:
        assert len(db) == 4
        assert db.meta["language"]["length"] == 5
        assert [k for (k,) in db.sql("SELECT key FROM failures ORDER BY key").fetchall()] == [
            "c",
            "item 1",
        ]
    with ng.extract(lm, iter(texts), tmp_path / "t.nrm", length=5, **options) as db:
        assert len(db) == 4
    assert isinstance(StreamedTexts(iter(texts), None), StreamedTexts)


def test_a_classifier(tmp_path):
    folder = language_models.save(
        tmp_path / "hf",
        "distilbert",
        cls="DistilBertForSequenceClassification",
        id2label={0: "good", 1: "bad", 2: "neither"},
    )
    lm = ng.load_model(f"hf:{folder}")
    assert (lm.head, lm.classes) == ("classification", ("good", "bad", "neither"))
    m = ng.measure(lm, TEXT, target="bad", against="good")
    assert m.tokens[0] == "[CLS]"
    rows = [{"text": TEXT, "key": "a", "label": "good"}, {"text": "A cat", "key": "b", "label": 2}]
    with ng.extract(lm, rows, tmp_path / "s.nrm", target="label", progress=False) as db:
        assert db.sql("SELECT target FROM inputs ORDER BY key").fetchall() == [(0,), (2,)]
        assert db.classes == lm.classes
    with pytest.raises(ng.InputError, match="expected one of good, bad, neither"):
        ng.measure(lm, TEXT, target="awful")


def test_a_masked_model_has_one_mask(tmp_path):
    lm = ng.load_model(f"hf:{language_models.save(tmp_path / 'hf', 'bert')}")
    for text, count in (("the capital", 0), ("[MASK] [MASK]", 2)):
        with pytest.raises(ng.InputError, match=rf"mask token \[MASK\] {count} times"):
            ng.measure(lm, text)
    assert ng.measure(lm, "the [MASK] of France", target="Paris").target == lm.reader.output_of(
        "paris"
    )


def test_the_command_line_loads_them(tmp_path, lm):
    from nrm_graph.cli import models

    folder = f"hf:{lm.name}"
    models.check_model(folder)
    loaded, preparation, classes = models.load_model(folder)
    assert isinstance(loaded, ng.LanguageModel)
    assert preparation is classes is None
    with pytest.raises(ng.InputError, match="no folder"):
        models.check_model("hf:./nothing")


def test_aggregates_by_position_are_of_one_length(store, lm):
    with ng.open(store, weights=lm.weights) as db:
        options = {"mixed_targets": True, "top": 20}
        with pytest.raises(
            ng.InputError, match=r"texts are of 1 to 6 tokens.*by='auto' \(each layer by 'feature'"
        ):
            db.circuit(**options)
        with pytest.raises(ng.InputError, match="positions"):
            db.contrast("key = 'france'", "key = 'italy'", mixed_targets=True)
        graph = db.circuit(by="auto", **options)
        assert not any("template" in note for note in graph.graph["flags"])
        graph = db.circuit("key = 'france'", **options)
        assert any("all texts are of 5 tokens" in note for note in graph.graph["flags"])
