r"""Stage 1, DDPT: tune prompts (and a small backbone) on slice labels alone.

Two cores, minutes:
    accelerate launch --cpu train/stage1.py hub_configs/ddpt-tiny/training.yaml \
        data.root=phantoms out=runs/stage1
The poster's setting, on a GPU:
    accelerate launch train/stage1.py hub_configs/ddpt/training.yaml data.root=scans out=runs/stage1

Only slice labels are read from here on: training patients' masks, where there are any, are reduced
to one label per slice when the slices are listed. Without masks, slice_labels.csv in the folder of
scans has a line per labelled slice below the line volume,slice_index,label, such as
patient_01,41,healthy: the patient's folder, the slice from 0 (inferior) on, healthy or unhealthy.

A backbone that is trained from scratch may start on healthy slices alone, some of them with a
painted lesion, which count as unhealthy; then on the real ones:
    ... out=runs/stage1_start synthetic_lesions.share=1
    ... out=runs/stage1 initial_weights=runs/stage1_start
"""

from modeling_rasalore import recipes  # first, so that an interrupt is one line
from modeling_rasalore.training.stage1 import Stage1Recipe, train_stage1


def main(recipe: Stage1Recipe) -> None:
    train_stage1(recipe)


if __name__ == "__main__":
    recipes.run_script(main)
