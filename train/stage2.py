r"""Stage 2, RASALoRE: learn to segment from stage 1's pseudo-masks.

Two cores, minutes:
    accelerate launch --cpu train/stage2.py hub_configs/rasalore-tiny/training.yaml \
        data.root=phantoms pseudo_masks=runs/pseudo_masks out=runs/stage2
The poster's setting, on a GPU:
    accelerate launch train/stage2.py hub_configs/rasalore/training.yaml \
        data.root=scans pseudo_masks=runs/pseudo_masks out=runs/stage2

Supervision is the table of pseudo-masks, lesions painted into healthy slices, or both. The weights
that are kept agree best with the pseudo-masks of validation patients; where these have none, or all
lesions are painted (synthetic_lesions.share=1, which needs no stage 1), with lesions painted into
their healthy slices.
Masks made on one sequence supervise every other of the same grid: data.modality=flair with
pseudo-masks of T2; data.modality=all gives one network all sequences as channels, which survives
missing ones after augmentation.sequence_dropout=0.5.
"""

from modeling_rasalore import recipes  # first, so that an interrupt is one line
from modeling_rasalore.training.stage2 import Stage2Recipe, train_stage2


def main(recipe: Stage2Recipe) -> None:
    train_stage2(recipe)


if __name__ == "__main__":
    recipes.run_script(main)
