"""Train both stages: lists, batches, loop, checkpoints.

augmentation.py      geometry and intensities of batches
examples.py          slices chosen, prepared and painted on, for either stage
lesion_recipes.py    what painted lesions are like, per sequence
lesion_shapes.py     where they lie and what form they have
loop.py              steps, validations, averages, best weights
optimizers.py        optimizers and learning rates
painted_lesions.py   lesions painted into healthy slices
run.py               a run's folder: recipe, checkpoints, summary
slice_loader.py      batches of one process, in the order of the epoch
stage1.py            DDPT, from slice labels
stage2.py            RASALoRE, from pseudo-masks, and its temperature
work_list.py         the slices a run learns from
"""
