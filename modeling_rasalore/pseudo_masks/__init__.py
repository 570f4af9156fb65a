"""Turn heatmaps into pseudo-masks and a table; judge runs without masks.

comparison.py        finished runs compared on validation patients
criteria.py          which run, heatmap or rate of false alarms is better, told without masks
fusion.py            heatmaps, networks and the free map together, weighted by slice labels
lite_medsam.py       SAM's decoder behind a TinyViT
makers.py            patients -> a folder of masks
recipe.py            what they are made from
rule.py              heatmap -> scores -> pseudo-mask
segmenter.py         SAM or MedSAM prompted by pseudo-masks
segmenter_models.py  which model a segmenter's folder holds
sources.py           where lesions are, by heatmaps, a teacher's scores or true masks
table.py             pseudo-masks on disk, by patient and slice
tiny_vit.py          the TinyViT encoder of images
"""
