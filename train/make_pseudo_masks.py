r"""Pseudo-masks of all unhealthy training and validation slices, from stage 1's heatmaps.

    python train/make_pseudo_masks.py stage1=runs/stage1 data.root=scans out=runs/pseudo_masks
With MedSAM refinement (a GPU is advisable):
    python train/make_pseudo_masks.py stage1=runs/stage1 data.root=scans out=runs/pseudo_masks \
        segmenter=flaviagiammarino/medsam-vit-base prompt=box
A round of self-training, from the scores of a finished stage 2:
    python train/make_pseudo_masks.py stage1=runs/stage1 data.root=scans out=runs/round_1 \
        teacher=runs/stage2

Start it again after an interruption: patients that are done are kept. `source=truth` writes the
true masks instead, for the ceiling row of the benchmark and nothing else.
"""

from modeling_rasalore import recipes  # first, so that an interrupt is one line
from modeling_rasalore.pseudo_masks.makers import make_pseudo_masks
from modeling_rasalore.pseudo_masks.recipe import PseudoMaskRecipe


def main(recipe: PseudoMaskRecipe) -> None:
    make_pseudo_masks(recipe)


if __name__ == "__main__":
    recipes.run_script(main)
