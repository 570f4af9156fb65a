r"""Which of several stage-2 runs to go on with, by criteria that need no mask.

    python train/compare_runs.py stage1=runs/stage1 runs=[runs/a,runs/b,runs/c] data.root=scans \
        out=runs/choices

Validation patients are scored, whose slice labels are all that is read of them. choices.md has a
line per run and a column per criterion, and marks what each would choose; choices.json names the
chosen runs too, and says how well every two runs agree, such as two rounds of self-training.
oracle=true adds what true masks of the validation patients would have chosen. It is computed when
everything else is written, and is no choice: it says how good the others are.
"""

from modeling_rasalore import recipes  # first, so that an interrupt is one line
from modeling_rasalore.pseudo_masks.comparison import ComparisonRecipe, compare_runs
from modeling_rasalore.pseudo_masks.criteria import choices_table


def main(recipe: ComparisonRecipe) -> None:
    print(choices_table(compare_runs(recipe)) + f"done: {recipe.out}")


if __name__ == "__main__":
    recipes.run_script(main)
