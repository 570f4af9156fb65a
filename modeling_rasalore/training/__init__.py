"""Train both stages: lists, batches, loop, checkpoints.

augmentation.py      geometry and intensities of batches
averages.py          running statistics and averaged weights
examples.py          slices chosen, prepared and painted on, for either stage
loop.py              steps, validations, best weights
optimizers.py        optimizers and learning rates
painted_lesions.py   lesions painted into healthy slices
run.py               a run's folder: recipe, checkpoints, summary
slice_loader.py      batches of one process, in the order of the epoch
stage1.py            DDPT, from slice labels
stage2.py            RASALoRE, from pseudo-masks
temperature.py       one number that calibrates scores
work_list.py         the slices a run learns from
"""
