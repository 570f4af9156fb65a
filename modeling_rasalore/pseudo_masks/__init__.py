"""Turn heatmaps into pseudo-masks and a table; judge runs without masks.

comparison.py  finished runs compared on validation patients
criteria.py    which run or rate of false alarms is better, told without masks
deletion.py    score heatmaps by deleting their hottest pixels
fused.py       pseudo-masks of heatmaps, networks and the free map together
fusion.py      maps on one scale, weighted by slice labels, cut at two levels
makers.py      patients -> a folder of masks
recipe.py      what they are made from
rule.py        heatmap -> scores -> pseudo-mask
segmenter.py   SAM or MedSAM prompted by pseudo-masks
sources.py     where lesions are, by heatmaps, a teacher's scores or true masks
table.py       pseudo-masks on disk, by patient and slice
"""
