"""Score maps against true masks: rows, tables, pictures.

intervals.py        bootstrap intervals over patients
leaks.py            the same image under two names
lesion_metrics.py   lesion-wise Dice and surface distances, as BraTS 2023 has them
metrics.py          Dice, average precision, calibration
patient_scores.py   one patient's maps -> a tally
row_scores.py       tallies of a test set -> the scores of a row
rows.py             maps of a system -> rows of results.json
scan_thresholds.py  the threshold that a new scan keeps to
slice_grid.py       a picture of slices by systems
tables.py           rows -> Markdown and a figure
"""
