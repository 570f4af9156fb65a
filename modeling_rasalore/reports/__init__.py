"""Say to people what a run found: findings, tables, pictures and the page that holds them.

findings.py   connected parts of a mask, measured and ordered
page.py       report.html: one file with its pictures in it
pictures.py   three planes through a finding, the histogram of scores, pictures inside a page
tables.py     manifest.json, results.csv, results.parquet
wording.py    volumes, intervals and thresholds as sentences
"""
