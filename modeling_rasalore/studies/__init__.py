"""Study the whole line, from scans and labels to a judged model, in one process.

judging.py  what judges the networks of a study
recipe.py   what a study asks for
steps.py    the steps of a study, and one split of its scans
study.py    their order
"""
