"""Score maps against true masks: rows, tables, pictures.

leaks.py            the same image under two names
metrics.py          Dice, average precision and others, in NumPy
patient_scores.py   one patient's maps -> counts
rows.py             counts -> rows of results.json
slice_grid.py       a picture of slices by systems
tables.py           rows -> Markdown and a figure
"""
