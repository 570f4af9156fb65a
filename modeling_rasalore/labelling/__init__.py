"""Let people label slices in the browser; every key press is on disk before it is answered.

agreement.py   how far the tables of two labellers agree
desk.py        what the page can ask for
journal.py     who marked what and when, a line per key press
marks.py       what is marked in one scan, and what each key changes
page.py        the page, served on this machine; its HTML, style and script are in assets/
pictures.py    the slices of a patient's sequences as pictures
session.py     one labeller's way through the scans: undo, progress, the lock
suggestion.py  what a model says of a scan, and which scans it is least sure of
table.py       slice_labels.csv and journal, written together
"""
