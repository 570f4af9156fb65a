"""Write synthetic patients: `rasalore phantom`."""

from pathlib import Path
from typing import Annotated

import typer

from .saying import one_line_errors


def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder for the patients")],
    patients: Annotated[int, typer.Option(help="how many")] = 8,
    healthy: Annotated[int, typer.Option(help="how many of them are healthy")] = 0,
    seed: int = 0,
    shape: Annotated[tuple[int, int, int], typer.Option(help="voxels")] = (96, 112, 96),
    voxel_size: Annotated[float, typer.Option(help="mm")] = 2.0,
    white_matter_lesions: Annotated[
        bool, typer.Option("--white-matter-lesions", help="many small lesions, and no tumour")
    ] = False,
) -> None:
    """Write synthetic patients; can be interrupted and repeated."""
    with one_line_errors("the same command goes on"):
        from ..data.phantoms import write_phantoms

        written = write_phantoms(
            out,
            patients,
            seed,
            healthy,
            shape,
            voxel_size,
            white_matter_lesions=white_matter_lesions,
        )
        print(f"{len(written)} patients in the BraTS 2021 layout are in {out}")
