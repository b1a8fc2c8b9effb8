"""README and docs: what they link, name, call and print is there; their Python runs."""

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

import nrm_graph
from nrm_graph.cli.options import EXIT_CODES
from nrm_graph.cli.parser import cli
from nrm_graph.network.topology import PSEUDO_UNITS
from nrm_graph.network.units import RESOLUTIONS
from nrm_graph.propagation.flags import SHORT

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]*?) -->\n\n)?```(?P<kind>\w*)\n(?P<code>.*?)```", re.DOTALL
)


def name(page):
    return str(page.relative_to(ROOT))


def text(page):
    return page.read_text("utf-8")


def blocks(page, kind):
    """Blocks of code with the comment right above them, which says why one is not run."""
    return [(b["mark"], b["code"]) for b in BLOCK.finditer(text(page)) if b["kind"] == kind]


def spans(page):
    """Code inside sentences and tables."""
    prose = BLOCK.sub("", text(page))
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`]+)`", prose)]


@pytest.mark.smoke
def test_the_readme_is_short():
    assert len(README.read_bytes()) < 9000


@pytest.mark.parametrize("extra", [". && .venv/bin/nrm-graph demo", '".[dev]" && .venv/bin/python'])
def test_the_readme_has_the_two_commands(extra):
    lines = [line for _, code in blocks(README, "") for line in code.splitlines()]
    command = f"python3 -m venv .venv && .venv/bin/pip install {extra}"
    assert command + (" -m pytest" if "dev" in extra else "") in lines


# Links


def anchors(page):
    prose = BLOCK.sub("", text(page))
    titles = [re.sub(r"[^\w\- ]", "", t).strip() for t in re.findall(r"^#+ (.*)$", prose, re.M)]
    return {title.lower().replace(" ", "-") for title in titles}


@pytest.mark.smoke
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_pictures_exist(page):
    prose = BLOCK.sub("", text(page))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_list_links_every_page_in_order():
    listed = re.findall(r"^\d+\. \[.*?\]\((.*?)\)", text(ROOT / "docs" / "README.md"), re.M)
    assert sorted(listed) == sorted(page.name for page in DOCS if page.name != "README.md")
    for page, following in pairwise(listed):
        assert f"]({following})." in text(ROOT / "docs" / page).splitlines()[-1]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page):
    paths = re.findall(
        r"\b(?:nrm_graph|scripts|benchmarks|tests|notebooks)/[\w/.]+\.\w+", text(page)
    )
    assert [path for path in paths if not (ROOT / path).exists()] == []


# The command line


def options_of(command):
    return {"--help", *(name for option in cli.commands[command].params for name in option.opts)}


def shown(page):
    """Every call of the command line that a page shows."""
    lines = [
        line.removeprefix("$ ").replace("\\\n", " ")
        for _, code in blocks(page, "")
        for line in re.split(r"(?<!\\)\n", code)
    ]
    return [line for line in [*lines, *spans(page)] if line.startswith("nrm-graph ")]


@pytest.mark.smoke
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_options_exist(page):
    for line in shown(page):
        _, command, *words = shlex.split(line.replace("...", ""))
        if command in ("COMMAND", "--help"):
            continue
        options = options_of(command)
        assert [w for w in words if w.startswith("--") and w not in options] == [], line


def test_blocks_of_commands_parse():
    """Blocks hold whole calls; sentences may hold excerpts of them."""
    calls = [
        line.replace("\\\n", " ").removeprefix("$ ")
        for page in PAGES
        for _, code in blocks(page, "")
        for line in re.split(r"(?<!\\)\n", code)
    ]
    calls = [call for call in calls if call.startswith("nrm-graph ")]
    assert len(calls) > 5
    for call in calls:
        _, command, *words = shlex.split(call)
        if command in cli.commands:
            cli.commands[command].make_context(command, words)


def test_the_page_on_commands_is_complete():
    page = text(ROOT / "docs" / "command-line.md")
    assert re.findall(r"^\| `(\w+)` \| .* \| `nrm-graph \1", page, re.M) == list(cli.commands)
    codes = set(re.findall(r"^ +(\d+) ", EXIT_CODES, re.M))
    assert codes <= set(re.findall(r"^\| ([\d, ]+) \|", page, re.M)) | {"130", "143", "129"}


# Python


def objects():
    from nrm_graph.database import Database
    from nrm_graph.measures.measure import Measure

    known = {"ng": nrm_graph, "nrm_graph": nrm_graph, "plots": nrm_graph.plots, "db": Database}
    return known | dict.fromkeys(("m", "c", "given"), Measure)


def attribute(owner, attr):
    """Attribute of a module or of instances of a class; None where no more can be told."""
    if inspect.ismodule(owner):
        if not hasattr(owner, attr):  # a module that nothing has imported yet
            return importlib.import_module(f"{owner.__name__}.{attr}")
        return getattr(owner, attr)
    if inspect.isclass(owner):
        fields = dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ()
        if attr in {field.name for field in fields} | {"meta", "path"}:
            return None
        value = getattr(owner, attr)
        return value if inspect.isfunction(value) else None
    return None


def resolved(node, known):
    """What an expression stands for; refuses names and keywords that are not there."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        return attribute(resolved(node.value, known), node.attr)
    if isinstance(node, ast.Call):
        called = resolved(node.func, known)
        if inspect.isfunction(called):
            accepted = inspect.signature(called).parameters
            free = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
            for keyword in node.keywords:
                assert free or keyword.arg in accepted, ast.unparse(node)
        results = {"given": known["m"], "measure": known["m"], "extract": known["db"]}
        return results.get(getattr(called, "__name__", ""))
    return None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_names_and_keywords_exist(page):
    known = objects()
    for code in [*(code for _, code in blocks(page, "python")), *spans(page)]:
        try:
            tree = ast.parse(code)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.Call):
                resolved(node, known)


RUN = [
    pytest.param(
        page,
        code,
        id=f"{page.stem}-{number}",
        marks=[pytest.mark.slow] if page.stem == "reduced-graphs" else [],  # a ResNet, seconds
    )
    for page in DOCS
    for number, (mark, code) in enumerate(blocks(page, "python"))
    if mark is None
]


def test_some_blocks_run_and_others_say_why_not():
    assert len(RUN) >= 3
    marks = {mark for page in PAGES for mark, _ in blocks(page, "python")} - {None}
    assert all(mark == "photograph" or mark.startswith("not run: ") for mark in marks)


@pytest.fixture
def rules():
    """Leave no rule that a page registers."""
    from nrm_graph.rules.registry import RULES

    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(("page", "code"), RUN)
def test_python_runs(page, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, name(page), "exec"), {"__name__": "documentation"})
    capsys.readouterr()


def test_the_readme_asks_and_its_numbers_are_right(capsys):
    (code,) = (code for mark, code in blocks(README, "python") if mark is None)
    found = {"__name__": "documentation"}
    exec(compile(code, "README.md", "exec"), found)
    m, A, B, Layer = found["m"], found["A"], found["B"], found["ng"].Layer
    capsys.readouterr()
    shares = ", ".join(f"{value:.3f}" for value in m.many([A, A & B, A | B, ~A]))
    assert f"  # {shares}: shares" in code
    assert f"  # {m(B, given=A):.3f} of what passes through A" in code
    assert f"  # {m(found['ng'].Edge(A, Layer('features.3')[15])):.3f}: the direct step" in code


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A dress of the demo, with the tables of the page on SQL."""
    import nrm_graph as ng
    from nrm_graph.cli.demo.fashion_cnn import load_demo

    model, images = load_demo()
    dress = next(image for image in images if image["label"] == "dress")
    path = tmp_path_factory.mktemp("documented") / "demo.nrm"
    with ng.extract(model, [dress], path, progress=False) as db:
        db.materialize(ng.Layer("features.6")[3], name="given_b", progress=False)
        db.materialize(name="blocks", watch="features.?", by="channel", nodes=9, progress=False)
        yield db


def test_sql_runs(store):
    queries = [code for page in PAGES for _, code in blocks(page, "sql")]
    assert len(queries) >= 2
    for query in queries:
        assert store.sql(query).fetchall()


def test_the_lines_for_other_tools_run(store, monkeypatch):
    polars = pytest.importorskip("polars")
    import nrm_graph as ng

    monkeypatch.setattr(ng, "open", lambda path: store)
    names = {"db": store, "polars": polars, "ng": ng}
    for _, code in blocks(ROOT / "docs" / "sql.md", "python"):
        exec(compile(code, "docs/sql.md", "exec"), names)
        if "con" in names:
            names.pop("con").close()
    told = store.sql('SELECT layer, channel, "row", "column" FROM units WHERE name = \'heel\'')
    assert told.fetchall() == [("features.6", 3, 0, 3)]
    rows = len(store.sql("FROM edges JOIN inputs USING (input_id) WHERE label = 'dress'"))
    assert names["edges"].select(polars.len()).collect().item() == rows > 0


@pytest.mark.slow
def test_the_lines_on_a_photograph_run(tmp_path, monkeypatch, capsys):
    """With random weights, where torchvision looks before it downloads."""
    import numpy as np
    import torch
    import torchvision
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    checkpoint = tmp_path / "hub" / "checkpoints" / Path(weights.url).name
    checkpoint.parent.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), checkpoint)
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    (lines,) = (code for mark, code in blocks(README, "python") if mark == "photograph")
    exec(compile(lines, "README.md", "exec"), {})
    with Image.open("explained.png") as picture:
        assert picture.size == (1400, 500)
    assert "Measure of target" in capsys.readouterr().out


# Words


def test_pseudo_units_flags_and_resolutions_are_explained():
    pages = {page.stem: text(page) for page in DOCS}
    for unit, kind in PSEUDO_UNITS.items():
        assert f"{unit} {kind}" in pages["glossary"]
        assert re.search(rf"^\| {unit} \| {kind}", pages["store-format"], re.M)
    assert [flag for flag in SHORT if f"`{flag}`" not in pages["signed-relevance"]] == []
    assert [kind for kind in RESOLUTIONS if f"`{kind}`" not in pages["glossary"]] == []


def test_the_citation_is_of_this_version():
    assert f"version: {nrm_graph.__version__}\n" in text(ROOT / "CITATION.cff")
