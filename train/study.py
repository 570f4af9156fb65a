r"""The whole line in one process: scans and slice labels in, a judged network out.

    python train/study.py out=runs/demo
    python train/study.py data.root=brats2021 data.modality=flair folds=4 seeds=[0,1,2] \
        systems=all selftrained=true poster=true cross=[tcga_lgg] out=runs/folds

Without data.root everything is synthetic: minutes on two cores, no network. With it both stages
start on synthetic patients, whose masks are known, and go on with the real scans and their slice
labels: stage 1, pseudo-masks, stage 2 and its ceiling, scores of patients held out, and one of them
segmented. True masks have a part in the ceiling and in scores alone; where there are none,
slice_labels.csv gives the labels (train/README.md), and criteria that need no mask take the place
of scores. Start it again after an interruption, and it goes on where it was: a step that is
finished is not repeated.
A shorter one: phantoms.patients=30 phantoms.test=6 stage1=[loop.max_steps=50]
stage2=[loop.max_steps=50].
"""

from modeling_rasalore import recipes  # first, so that an interrupt is one line
from modeling_rasalore.studies.recipe import StudyRecipe


def main(recipe: StudyRecipe) -> None:
    from modeling_rasalore.studies.study import (
        run_study,  # here: helpers that write scans go without
    )

    if recipe.systems != "own":
        import baselines.registry  # noqa: F401 - competitors register themselves, with diffusers
    run_study(recipe)


if __name__ == "__main__":
    recipes.run_script(main)
