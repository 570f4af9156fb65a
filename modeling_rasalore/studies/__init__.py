"""Study the whole line, from scans and labels to a judged model, by one protocol.

ablations.py    stage 2 with one part changed, as rows
output.py       results.json, tables and pictures
own.py          the project's rows, by name, title and key
pooling.py      folds and seeds as one table
recipe.py       what a study asks for
running.py      every system fitted, scored and written
scoring.py      one system's maps and threshold
slices.py       slices as systems get them, and leaks refused
steps.py        the steps of a study
study.py        the whole line in one process
systems.py      what a system and a row are; competitors register
trained.py      trained networks as systems
"""
