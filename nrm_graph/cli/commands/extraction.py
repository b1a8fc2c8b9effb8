"""The commands that make a store: ``demo`` and ``extract``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.cli import arguments
from nrm_graph.cli.options import add_command, add_quiet
from nrm_graph.cli.output import print_notes
from nrm_graph.errors import InputError
from nrm_graph.store.format.files import local_path
from nrm_graph.store.format.place import check_place

if TYPE_CHECKING:
    import argparse

    from nrm_graph.cli.options import Commands

_EXTRACT_HELP = """\
MODEL is torchvision:NAME (pretrained), torchvision:NAME@weights.pt,
torchvision:NAME@random:SEED, a file of torch.export.save (.pt2) or
package.module:function, which gives a model, or (model, preprocessing, classes).
The last two RUN CODE: use only files and modules that you trust.

INPUTS is a folder of images (sub-folders are labels), an image, or an .npy or .npz
file (arrays images or inputs, and labels); float arrays are taken as they are, whole
numbers as token ids. Several arrays named like forward's arguments feed a network of
several inputs; an array of texts named tokens names the positions.
Images are read without their EXIF orientation and transparency, as torchvision does.

The same command again goes on where it stopped. With --on-error skip, inputs that
fail are kept in the table failures, which info shows, and the exit code is 0.

A large network in little space:
  nrm-graph extract torchvision:vgg16 photos/ --store small.nrm --coverage 0.99 \\
      --mantissa-bits 10 --tensors omit --on-error skip"""


def add_demo(commands: Commands) -> None:
    """Add the command ``demo``."""
    parser = add_command(
        commands,
        "demo",
        demo,
        "Extract a store of the images that the package ships, and tour it.",
        "nrm-graph demo --store demo.nrm --picture demo.svg",
    )
    parser.add_argument("--store", default="nrm-demo.nrm", help="store to write (nrm-demo.nrm)")
    parser.add_argument("--picture", default="nrm-demo.png", help="picture to write (nrm-demo.png)")


def demo(args: argparse.Namespace) -> None:
    """Make and tour the demo's store."""
    from nrm_graph.cli.demo import tour

    tour.run(args.store, args.picture)


def add_extract(commands: Commands) -> None:
    """Add the command ``extract``."""
    parser = add_command(
        commands,
        "extract",
        extract,
        "Extract the relevance of inputs into a store, or continue it.",
        "nrm-graph extract torchvision:vgg16@weights.pt photos/ --store relevance.nrm",
        _EXTRACT_HELP,
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("inputs", metavar="INPUTS")
    parser.add_argument("--store", required=True, help="store to write or continue")
    _add_explained(parser)
    _add_stored(parser)
    _add_computing(parser)
    add_quiet(parser)


def _add_explained(parser: argparse.ArgumentParser) -> None:
    """Add what is explained, by which rules, and in which units."""
    parser.add_argument("--composite", default="epsilon_gamma", help="rules (epsilon_gamma)")
    parser.add_argument(
        "--target",
        default="predicted",
        type=arguments.target,
        help="predicted, label, an output's number, POSITION:CLASS (-1:464 or -1:predicted) of an "
        "output of several axes, NAME:... of several outputs; several with commas; or weights of "
        "outputs, 3=1,5=-1 (predicted)",
    )
    parser.add_argument(
        "--output",
        metavar="NAME",
        type=arguments.names,
        help="of a network that returns several tensors, the one to explain, or several with "
        "commas, by name; those of a tuple by their numbers from 0",
    )
    parser.add_argument(
        "--resolution",
        default="auto",
        type=arguments.resolution,
        help="auto, neuron, channel, feature, token, head, or by layer: features.0=channel,... "
        "(auto)",
    )


def _add_stored(parser: argparse.ArgumentParser) -> None:
    """Add what the store holds of it."""
    parser.add_argument(
        "--coverage", type=float, default=1.0, help="keep the strongest edges up to this share (1)"
    )
    parser.add_argument(
        "--top",
        type=arguments.positive,
        help="keep at most so many edges for each input and pair of layers",
    )
    parser.add_argument(
        "--mantissa-bits", type=arguments.positive, help="round edges, 1 to 22 bits (lossless)"
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what an input that cannot be read or explained does (stop)",
    )
    parser.add_argument(
        "--tensors",
        choices=("keep", "omit"),
        default="keep",
        help="keep the inputs in the store, which exact queries need, or omit them (keep)",
    )
    parser.add_argument(
        "--classes", metavar="FILE", help="names of the outputs, one a line (those of the model)"
    )
    parser.add_argument(
        "--preprocessing", metavar="WORDS", help="how the inputs were prepared, kept in the store"
    )


def _add_computing(parser: argparse.ArgumentParser) -> None:
    """Add where it is computed."""
    parser.add_argument(
        "--batch-size", type=arguments.positive, default=16, help="inputs at once (16)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (auto)")
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="where inputs are explained; ray needs pip install 'nrm-graph[ray]' (local)",
    )
    parser.add_argument(
        "--workers", type=arguments.positive, metavar="N", help="processes with --engine ray"
    )


def extract(args: argparse.Namespace) -> None:
    """Extract a store or continue it."""
    names = _checked_options(args)

    from nrm_graph.cli import inputs, models

    model, preprocessing, classes = models.load_model(args.model)
    dataset = inputs.load_inputs(args.inputs, preprocessing)

    from nrm_graph.cli import overview
    from nrm_graph.extraction.extract import extract

    with extract(
        model,
        dataset,
        args.store,
        composite=args.composite,
        target=args.target,
        resolution=args.resolution,
        coverage=args.coverage,
        top=args.top,
        mantissa_bits=args.mantissa_bits,
        batch_size=args.batch_size,
        device=args.device,
        progress=not args.quiet,
        classes=classes if names is None else names,
        preprocessing=dataset.preprocessing if args.preprocessing is None else args.preprocessing,
        tensors=args.tensors,
        on_error=args.on_error,
        output=args.output[0] if args.output and len(args.output) == 1 else args.output,
        engine=args.engine,
        workers=args.workers,
    ) as db:
        ((failed,),) = db.sql("SELECT count(*) FROM failures").fetchall()
        failures = f", {failed:,} failed" if failed else ""
        print(f"{args.store} holds {len(db):,} inputs{failures}; next: nrm-graph info {args.store}")
        flagged = overview.flagged(db)
        if flagged != "none":
            text = f"flags of the inputs, as the column flags of inputs holds them: {flagged}"
            print_notes([text])


def _checked_options(args: argparse.Namespace) -> list[str] | None:
    """Refuse what is wrong whatever the network is, before one is loaded; return the classes."""
    from nrm_graph import _optional
    from nrm_graph.network import units
    from nrm_graph.tables import pruning, rounding

    check_place(local_path(args.store))
    pruning.check(args.coverage, args.top)
    rounding.check_bits(args.mantissa_bits)
    units.check(args.resolution)
    if args.engine == "ray":
        _optional.installed()
    elif args.workers is not None:
        raise InputError(f"--workers {args.workers} goes with --engine ray: leave one of them out")
    names = None if args.classes is None else arguments.lines(args.classes)

    from nrm_graph.cli import inputs, models
    from nrm_graph.network.device import device_of
    from nrm_graph.rules import composites

    composites.get(args.composite)
    device_of(args.device)
    models.check_model(args.model)
    inputs.located(args.inputs)
    return names
