"""The commands that make a store: ``demo`` and ``extract``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nrm_graph.cli import arguments
from nrm_graph.cli.options import FILE, command, quiet
from nrm_graph.cli.output import print_notes
from nrm_graph.errors import InputError
from nrm_graph.language.folder import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping


@command(
    "nrm-graph demo --store demo.nrm --picture demo.svg",
    """\
A transformer instead of images:
  nrm-graph demo --language""",
)
@click.option(
    "--language",
    is_flag=True,
    help="a small transformer that completes repeated letters, instead of images",
)
@click.option(
    "--store",
    type=FILE,
    metavar="STORE",
    help="store to write (nrm-demo.nrm; with --language nrm-language.nrm)",
)
@click.option(
    "--picture",
    type=FILE,
    metavar="FILE",
    help="picture to write (nrm-demo.png; with --language nrm-language.png)",
)
def demo(language: bool, store: str | None, picture: str | None) -> None:
    """Extract a store of what the package ships, images or letters, and tour it."""
    from nrm_graph.cli.demo import language_tour, tour

    name = "nrm-language" if language else "nrm-demo"
    run = language_tour.run if language else tour.run
    run(f"{name}.nrm" if store is None else store, f"{name}.png" if picture is None else picture)


@command(
    "nrm-graph extract torchvision:vgg16@weights.pt photos/ --store relevance.nrm",
    """\
A large network in little space:
  nrm-graph extract torchvision:vgg16 photos/ --store small.nrm \\
      --max-edges 50000 --mantissa-bits 10 --tensors omit --on-error skip""",
)
@click.argument("model", type=FILE)
@click.argument("inputs", type=FILE, required=False)
@click.option(
    "--prompt",
    multiple=True,
    metavar="TEXT",
    help="a text for a language model, in place of INPUTS; several times for several",
)
@click.option(
    "--store", type=FILE, required=True, metavar="STORE", help="store to write or continue"
)
@click.option(
    "--composite",
    metavar="NAME",
    default="auto",
    help="rules (auto: attn_lrp of networks with attention, else epsilon_gamma)",
)
@click.option(
    "--bias",
    type=click.Choice(["absorbed", "ignored"]),
    help="whether biases and constants take their share (absorbed), or are left out and neurons "
    "carry the whole",
)
@click.option(
    "--target",
    multiple=True,
    default=["predicted"],
    metavar="N",
    help="predicted, label, an output's number, POSITION:CLASS (-1:464 or -1:predicted) of an "
    "output of several axes, NAME:... of several outputs; several with commas; or weights of "
    "outputs, 3=1,5=-1; of a language model predicted, or the text of a token or class (' Paris'), "
    "given several times for several",
)
@click.option(
    "--against",
    metavar="TEXT",
    help="of a language model: the token or class that targets are compared with; the difference "
    "of the two logits is explained",
)
@click.option(
    "--length",
    type=arguments.positive,
    metavar="N",
    help="of a language model: positions of the store, padding included (of the longest text)",
)
@click.option(
    "--output",
    metavar="NAME",
    type=arguments.names,
    help="of a network that returns several tensors, the one to explain, or several with commas, "
    "by name; those of a tuple by their numbers from 0",
)
@click.option(
    "--resolution",
    type=arguments.resolution,
    metavar="NAME",
    help="neuron, channel, feature, token, head, or by layer: features.0=channel,... (auto)",
)
@click.option(
    "--max-edges",
    type=arguments.max_edges,
    default="auto",
    metavar="N",
    help="keep so many edges an input at most, the strongest of all pairs of layers; all, or auto "
    "(250,000 of a large network)",
)
@click.option(
    "--coverage",
    type=float,
    metavar="SHARE",
    help="instead: of each pair of layers keep the strongest edges up to this share",
)
@click.option(
    "--top",
    type=arguments.positive,
    metavar="N",
    help="instead: keep at most so many edges for each input and pair of layers",
)
@click.option(
    "--mantissa-bits",
    type=arguments.positive,
    metavar="N",
    help="round edges, 1 to 22 bits (lossless)",
)
@click.option(
    "--on-error",
    type=click.Choice(("stop", "skip")),
    default="stop",
    help="what an input that cannot be read or explained does",
)
@click.option(
    "--tensors",
    type=click.Choice(("keep", "omit")),
    default="keep",
    help="keep the inputs in the store, which exact queries need, or omit them",
)
@click.option(
    "--classes",
    type=FILE,
    metavar="FILE",
    help="names of the outputs, one a line (those of the model)",
)
@click.option(
    "--preprocessing", metavar="WORDS", help="how the inputs were prepared, kept in the store"
)
@click.option(
    "--weights",
    type=click.Choice(("copy", "named")),
    help="copy the network's weights into the store (copy), or name them alone: then exact answers "
    "need --weights FILE",
)
@click.option(
    "--batch-size", type=arguments.positive, default=16, metavar="N", help="inputs at once"
)
@click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ...")
@click.option(
    "--engine",
    type=click.Choice(("local", "ray")),
    default="local",
    help="where inputs are explained; ray needs pip install 'nrm-graph[ray]'",
)
@click.option("--workers", type=arguments.positive, metavar="N", help="processes with --engine ray")
@quiet
def extract(
    model: str,
    inputs: str | None,
    prompt: tuple[str, ...],
    store: str,
    target: tuple[str, ...],
    against: str | None,
    length: int | None,
    output: list[str] | None,
    classes: str | None,
    preprocessing: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Extract the relevance of inputs into a store, or continue it.

    MODEL is torchvision:NAME (pretrained), torchvision:NAME@weights.pt,
    torchvision:NAME@random:SEED, hf:FOLDER or hf:NAME (a language model, safetensors alone), a file
    of torch.export.save (.pt2) or package.module:function, which gives a model, or (model,
    preprocessing, classes). The last two RUN CODE: use only files and modules that you trust.

    INPUTS is a folder of images (sub-folders are labels), an image, or an .npy or .npz file (arrays
    images or inputs, and labels); float arrays are taken as they are, whole numbers as token ids.
    Several arrays named like forward's arguments feed a network of several inputs; an array of
    texts named tokens names the positions. Images are read without their EXIF orientation and
    transparency, as torchvision does. Of a language model it is a .txt (a prompt a line), or a
    .jsonl, .csv or .parquet with text, and perhaps key, label, target, against; or --prompt TEXT.

    The same command again goes on where it stopped. A store that is there goes on with its own
    composite, resolution, bounds of edges, precision, classes and preprocessing: they need not be
    given again, and are refused where they differ. With --on-error skip, inputs that fail are kept
    in the table failures, which info shows, and the exit code is 0.
    """
    aims = list(target) if model.startswith(PREFIX) else _targets(target)
    names = _checked(store, model, classes, options)
    given = _given(model, inputs, prompt, aims, against, length)
    made = (Path(store).expanduser() / "store.json").exists()

    from nrm_graph.cli import models, overview
    from nrm_graph.extraction.extract import extract

    network, preparation, known = models.load_model(model)
    dataset, prepared = given.read(preparation)
    with extract(
        network,
        dataset,
        store,
        progress=not quiet,
        classes=known if names is None and not made else names,
        preprocessing=prepared if preprocessing is None and not made else preprocessing,
        output=output[0] if output and len(output) == 1 else output,
        **given.options,
        **options,
    ) as db:
        ((failed,),) = db.sql("SELECT count(*) FROM failures").fetchall()
        failures = f", {failed:,} failed" if failed else ""
        print(f"{store} holds {len(db):,} inputs{failures}; next: nrm-graph info {store}")
        if options["composite"] == "auto" and not made:
            print(f"rules: {overview.composite(db.meta)}; --composite takes others")
        stated = db.meta["preprocessing"]
        if preprocessing is None and stated != prepared:
            stated = "in a way that is not known" if stated is None else f"thus: {stated}"
            differ = f"its inputs were prepared {stated}; these were: {prepared}"
            print_notes([f"the store says that {differ}"])
        flagged = overview.flagged(db)
        if flagged != "none":
            text = f"flags of the inputs, as the column flags of inputs holds them: {flagged}"
            print_notes([text])


@dataclass(frozen=True)
class _Given:
    """What INPUTS and targets of a call are.

    Attributes
    ----------
    path : str or None
        INPUTS; None of prompts.
    texts : list or None
        Of a language model.
    options : dict
        Of :func:`nrm_graph.extract`.
    """

    path: str | None
    texts: list[dict[str, Any]] | None
    options: dict[str, Any]

    def read(self, preparation: Any) -> tuple[Any, str | None]:
        """Return the data set, and how its inputs are prepared."""
        if self.texts is not None:
            return self.texts, None
        from nrm_graph.cli import inputs as sources

        assert self.path is not None
        dataset = sources.load_inputs(self.path, preparation)
        return dataset, dataset.preprocessing


def _given(
    model: str,
    inputs: str | None,
    prompt: tuple[str, ...],
    target: Any,
    against: str | None,
    length: int | None,
) -> _Given:
    """Read what is explained, as far as it can be before a network is loaded."""
    if model.startswith(PREFIX):
        from nrm_graph.cli import text_files

        if bool(prompt) == (inputs is not None):
            raise InputError("a language model takes INPUTS, a file of texts, or --prompt TEXT")
        texts = text_files.prompts(prompt) if inputs is None else text_files.read_texts(inputs)
        one = target[0] if len(target) == 1 else list(target)
        return _Given(None, texts, {"target": one, "against": against, "length": length})
    for name, value in (("prompt", prompt), ("against", against), ("length", length)):
        if value:
            raise InputError(f"--{name} is for language models, MODEL hf:FOLDER or hf:NAME")
    if inputs is None:
        raise click.UsageError("Missing argument 'INPUTS'.")

    from nrm_graph.cli import inputs as sources

    sources.located(inputs)
    return _Given(inputs, None, {"target": target})


def _targets(texts: tuple[str, ...]) -> Any:
    """Read targets of any other network."""
    try:
        return arguments.target(",".join(texts))
    except click.BadParameter as error:
        error.param_hint = "'--target'"
        raise


def _checked(
    store: str, model: str, classes: str | None, options: Mapping[str, Any]
) -> list[str] | None:
    """Refuse what is wrong whatever the network is, before one is loaded; return the classes."""
    from nrm_graph import _optional
    from nrm_graph.network import units
    from nrm_graph.store.format.files import local_path
    from nrm_graph.store.format.place import check_place
    from nrm_graph.tables import pruning, rounding

    check_place(local_path(store))
    pruning.check(options["coverage"], options["top"], options["max_edges"])
    rounding.check_bits(options["mantissa_bits"])
    if options["resolution"] is not None:
        units.check(options["resolution"])
    workers = options["workers"]
    if options["engine"] == "ray":
        _optional.installed()
    elif workers is not None:
        raise InputError(f"--workers {workers} goes with --engine ray: leave one of them out")
    names = None if classes is None else arguments.lines(classes)

    from nrm_graph.cli import models
    from nrm_graph.network.device import device_of
    from nrm_graph.rules import composites

    if options["composite"] != "auto":
        composites.get(options["composite"], options["bias"])
    device_of(options["device"])
    models.check_model(model)
    return names
