r"""Fit and score every system on held-out patients under one protocol, and write the table.

    python train/run_benchmark.py data.root=scans stage1=runs/stage1 rasalore=runs/stage2 \
        out=runs/benchmark
    python train/run_benchmark.py data.root=phantoms stage1=runs/stage1 rasalore=runs/stage2 \
        ceiling=runs/ceiling out=runs/benchmark systems=all size=small workers=2

Only test patients are scored, with every slice that shows brain; `cross.root=` scores all patients
of another data set instead, with what was learned on this one. True masks are read here for the
first time, and only to score: systems get slices and slice labels, nothing else. Thresholds come
from healthy slices of validation patients, or are called oracle. Each system runs in a process of
its own: its failure is a row that says why. Start it again after an interruption: finished systems
are kept, and failed ones are tried again.
"""

from modeling_rasalore import recipes  # first, so that an interrupt is one line
from modeling_rasalore.benchmark.recipe import BenchmarkRecipe
from modeling_rasalore.benchmark.running import run_benchmark


def main(recipe: BenchmarkRecipe) -> None:
    if recipe.systems != "own":
        import baselines.registry  # noqa: F401 - competitors register themselves, with diffusers
    run_benchmark(recipe)


if __name__ == "__main__":
    recipes.run_script(main)
