"""Turn heatmaps into pseudo-masks and a table; judge runs without masks.

comparison.py  finished runs compared on validation patients
criteria.py    which run or rate of false alarms is better, told without masks
deletion.py    score heatmaps by deleting their hottest pixels
makers.py      heatmaps, a teacher's scores or true masks -> a folder of masks
rule.py        heatmap -> scores -> pseudo-mask
segmenter.py   SAM or MedSAM prompted by pseudo-masks
table.py       pseudo-masks on disk, by patient and slice
"""
