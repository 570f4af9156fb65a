"""Say what scans and folders of results are: `rasalore inspect`."""

import json
import sys

import typer

from ..prediction.options import PredictionOptions, takes_options
from .saying import one_line_errors, say_left_out
from .words import READING, Json, Quiet, Scans


@takes_options(*READING)
def inspect(
    scans: Scans,
    options: PredictionOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what predict would do with each scan by its header, and the memory it needs.

    Of a folder that predict or a script filled, say how and how far: versions, settings, progress,
    recipe, seed, hashes and scores.
    """
    with one_line_errors():
        from ..brains.choice import find_told
        from ..prediction.journal import describe_run
        from ..provenance import describe_folder, inspect_folder, is_result
        from ..scans.finding import SeveralSequencesError, find_scans
        from ..scans.reading import describe_facts, inspect_scan

        results = [inspect_folder(path) | describe_run(path) for path in scans if is_result(path)]
        scans = [path for path in scans if not is_result(path)]
        found = None
        try:
            found = find_scans(scans, *options.reading[1:]) if scans else None
        except SeveralSequencesError:  # of which predict takes one, too
            sequence, found = find_told(scans, options.reading)
            if not (quiet or as_json):
                print(f"model: of several sequences predict takes {sequence}; choose by --modality")
        say_left_out(found, quiet, as_json)
        facts = [inspect_scan(path, *options.reading) for path in found.scans] if found else []
        left_out = [
            {"input": str(entry.path), "left_out": entry.reason}
            for entry in (found.left_out if found else [])
        ]
    for result in [] if as_json or quiet else results:
        print(describe_folder(result))
    if as_json:
        print(json.dumps([*results, *facts, *left_out], indent=2))
    for fact in [] if as_json else facts:
        if fact["reason"]:
            print(f"error: {fact['reason']}", file=sys.stderr)
        elif not quiet:
            print(describe_facts(fact))
    raise typer.Exit(int(any(fact["reason"] for fact in facts)))
