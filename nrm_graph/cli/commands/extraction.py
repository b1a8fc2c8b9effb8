"""The commands that make a store: ``demo`` and ``extract``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nrm_graph.cli import arguments
from nrm_graph.cli.options import FILE, command, quiet
from nrm_graph.cli.output import print_notes
from nrm_graph.errors import InputError

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
@click.argument("inputs", type=FILE)
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
    type=arguments.target,
    default="predicted",
    metavar="N",
    help="predicted, label, an output's number, POSITION:CLASS (-1:464 or -1:predicted) of an "
    "output of several axes, NAME:... of several outputs; several with commas; or weights of "
    "outputs, 3=1,5=-1",
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
    inputs: str,
    store: str,
    output: list[str] | None,
    classes: str | None,
    preprocessing: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Extract the relevance of inputs into a store, or continue it.

    MODEL is torchvision:NAME (pretrained), torchvision:NAME@weights.pt,
    torchvision:NAME@random:SEED, a file of torch.export.save (.pt2) or package.module:function,
    which gives a model, or (model, preprocessing, classes). The last two RUN CODE: use only files
    and modules that you trust.

    INPUTS is a folder of images (sub-folders are labels), an image, or an .npy or .npz file (arrays
    images or inputs, and labels); float arrays are taken as they are, whole numbers as token ids.
    Several arrays named like forward's arguments feed a network of several inputs; an array of
    texts named tokens names the positions. Images are read without their EXIF orientation and
    transparency, as torchvision does.

    The same command again goes on where it stopped. A store that is there goes on with its own
    composite, resolution, bounds of edges, precision, classes and preprocessing: they need not be
    given again, and are refused where they differ. With --on-error skip, inputs that fail are kept
    in the table failures, which info shows, and the exit code is 0.
    """
    names = _checked(store, model, inputs, classes, options)
    made = (Path(store).expanduser() / "store.json").exists()

    from nrm_graph.cli import inputs as sources
    from nrm_graph.cli import models, overview
    from nrm_graph.extraction.extract import extract

    network, preparation, known = models.load_model(model)
    dataset = sources.load_inputs(inputs, preparation)
    with extract(
        network,
        dataset,
        store,
        progress=not quiet,
        classes=known if names is None and not made else names,
        preprocessing=dataset.preprocessing
        if preprocessing is None and not made
        else preprocessing,
        output=output[0] if output and len(output) == 1 else output,
        **options,
    ) as db:
        ((failed,),) = db.sql("SELECT count(*) FROM failures").fetchall()
        failures = f", {failed:,} failed" if failed else ""
        print(f"{store} holds {len(db):,} inputs{failures}; next: nrm-graph info {store}")
        if options["composite"] == "auto" and not made:
            print(f"rules: {overview.composite(db.meta)}; --composite takes others")
        stated = db.meta["preprocessing"]
        if preprocessing is None and stated != dataset.preprocessing:
            stated = "in a way that is not known" if stated is None else f"thus: {stated}"
            prepared = f"its inputs were prepared {stated}; these were: {dataset.preprocessing}"
            print_notes([f"the store says that {prepared}"])
        flagged = overview.flagged(db)
        if flagged != "none":
            text = f"flags of the inputs, as the column flags of inputs holds them: {flagged}"
            print_notes([text])


def _checked(
    store: str, model: str, inputs: str, classes: str | None, options: Mapping[str, Any]
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

    from nrm_graph.cli import inputs as sources
    from nrm_graph.cli import models
    from nrm_graph.network.device import device_of
    from nrm_graph.rules import composites

    if options["composite"] != "auto":
        composites.get(options["composite"], options["bias"])
    device_of(options["device"])
    models.check_model(model)
    sources.located(inputs)
    return names
