"""Turn a data-set folder into patients, splits and labelled slices; make phantoms.

label_table.py       slice_labels.csv as other programs leave it -> rows
labels.py            slice labels: of that table, or by areas
layouts.py           BraTS 20/21/23, MSD and plain folders -> patients
patient.py           Patient: what is known before anything is opened
persons.py           whom names and a table of persons mean, and which visit
phantom_template.py  synthetic brains, warped from the maps of a template
phantom_tumours.py   tumours and white-matter lesions of synthetic patients
phantoms.py          synthetic patients
shard_writing.py     write prepared slices as Parquet
shards.py            read prepared slices
slices.py            labelled slices of patients
splits.py            patients shared out once, by person
"""
