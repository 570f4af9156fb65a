"""Train both stages: lists, batches, loop, checkpoints.

augmentation.py      geometry and intensities of batches
averages.py          running statistics and averaged weights
epoch_order.py       every slice once per epoch
optimizers.py        optimizers and learning rates
painted_lesions.py   lesions painted into healthy slices
run.py               a run's folder, loop and checkpoints
slice_loader.py      batches of one process
temperature.py       one number that calibrates scores
work_list.py         the slices a run learns from
"""
