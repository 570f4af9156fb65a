"""Score every row of the table by one protocol, on patients that nothing learned from.

ablations.py    stage 2 with one part changed, as rows
finished.py     benchmarks that are done, and which of them belong together
output.py       results.json and its tables
own.py          the project's rows, by name, title and key
pictures.py     slices and maps of a few patients
pooling.py      folds and seeds as one table
recipe.py       what a benchmark asks for
running.py      every system fitted, scored and written
scoring.py      one system's maps and threshold
slices.py       slices as systems get them, and leaks refused
systems.py      what a system and a row are; competitors register
trained.py      trained networks as systems
"""
