r"""One table of several folds and seeds: every patient of the data set is a test patient of it.

    python train/pool_folds.py folders=[runs/fold1/benchmark,runs/fold2/benchmark] out=runs/pooled
    python train/pool_folds.py out=runs/pooled/cross/tcga_lgg \
        folders=[runs/fold1/benchmark/cross/tcga_lgg,runs/fold2/benchmark/cross/tcga_lgg]

Each folder is one of a finished train/run_benchmark.py, whose maps are scored again, together.
Folds add patients. Seeds of a fold are averaged patient by patient before anything else, and so are
all runs on another data set (<fold's benchmark>/cross/<name>), each of which scores all of its
patients. Each run's label-free thresholds are applied to its own test patients; the oracle is one
threshold for all slices of all runs. Refused are runs that tested a patient twice at one seed, that
read other scans, or that made a system in different ways.
"""

from modeling_rasalore import recipes  # first, so that an interrupt is one line
from modeling_rasalore.benchmark.pooling import PoolRecipe, pool_folds


def main(recipe: PoolRecipe) -> None:
    pool_folds(recipe)


if __name__ == "__main__":
    recipes.run_script(main)
