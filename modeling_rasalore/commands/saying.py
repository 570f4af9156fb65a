"""Say what a command did, what it left out and what went wrong."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ..files import first_line, printable


@contextmanager
def one_line_errors(go_on: str = "the same command begins anew") -> Iterator[None]:
    """End the command with one line for a user's mistake, and with code 130 for an interrupt.

    Args:
        go_on: what to do after an interrupt.
    """
    try:
        yield
    except BrokenPipeError as error:  # whoever read what was printed has had enough
        sys.stdout = None  # else Python says so when it ends
        raise typer.Exit(1) from error
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        print(f"interrupted; finished results are complete, and {go_on}.", file=sys.stderr)
        raise typer.Exit(130) from error


def say_line(line: str) -> None:
    """Print a line, errors and warnings where they belong."""
    print(line, file=sys.stderr if line.startswith(("error: ", "warning: ")) else sys.stdout)


def describe_computing(network: Any, options: Any) -> str:
    """Return on what a network computes, in which float type, and why."""
    device = next(network.parameters()).device
    return f"computing on {device} in {options.precision}: {options.precision_reason}"


def say_errors(line: str) -> None:
    """Print a line if it is an error."""
    if line.startswith("error: "):
        say_line(line)


def say_left_out(found: Any, quiet: bool, as_json: bool = False) -> None:
    """Say what of the given folders is not used; quietly, or beside JSON, how much it is."""
    from ..scans.finding import describe_counts, describe_left_out

    if found is None or not found.left_out:
        return
    for line in [] if quiet or as_json else describe_left_out(found.left_out):
        print(f"left out: {printable(line)}")
    print(describe_counts(found.counts), file=sys.stderr if quiet or as_json else sys.stdout)
