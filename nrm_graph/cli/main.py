"""The command line: it calls the library and turns errors into messages."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

import click

from nrm_graph.cli.output import one_line
from nrm_graph.cli.parser import COMPLETION, cli
from nrm_graph.errors import NrmError
from nrm_graph.events.excerpt import inline
from nrm_graph.signals import Terminated, ending_in_order

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    for stream in (sys.stdout, sys.stderr):  # an encoding that lacks a character is no error
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        return _run(sys.argv[1:] if argv is None else list(argv))


def _run(argv: list[str]) -> int:
    try:
        if completion := os.environ.get(COMPLETION):
            from click.shell_completion import shell_complete

            return shell_complete(cli, {}, "nrm-graph", COMPLETION, completion)
        with ending_in_order(), cli.make_context("nrm-graph", argv) as context:
            cli.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as done:  # help or the version was shown
        return done.exit_code
    except click.UsageError as error:
        asked = error.ctx or click.Context(cli, info_name="nrm-graph")
        hint = f"({asked.get_usage()}; see {asked.command_path} --help)"
        return _say(f"{error.format_message()} {hint}", error.exit_code)
    except NrmError as error:
        return _say(" ".join([str(error), *getattr(error, "__notes__", ())]), error.exit_code)
    except KeyboardInterrupt:
        return _say("interrupted; what is in the store stays valid", 130)
    except Terminated as ended:
        return _say(f"{ended}; what is in the store stays valid", 128 + ended.signal)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise  # a bug, not what torch says where memory ends
        return _say("there is not enough memory: try a smaller --batch-size or resolution", 1)
    except BrokenPipeError:  # the reader, head for instance, has seen enough
        _drop_output()
        return 0
    except OSError as error:
        reason = error.strerror or str(error)
        if error.filename is not None:
            return _say(f"cannot use {os.fsdecode(error.filename)}: {reason}", 1)
        _drop_output()  # no file of its own: this is standard output
        return _say(f"cannot write the output: {reason}", 1)
    return 0


def _drop_output() -> None:
    """Let what is still buffered for standard output go nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str, code: int) -> int:
    """Print a message on one line, without what would steer a terminal; return the exit code."""
    with contextlib.suppress(OSError, AttributeError):  # a terminal that hung up, or none at all
        sys.stderr.write(f"nrm-graph: {one_line(inline(message))}\n")
    return code


def _show_warning(message: Any, *_: Any) -> None:
    print(f"note: {one_line(str(message))}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
