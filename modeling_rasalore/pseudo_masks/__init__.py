"""Turn heatmaps into pseudo-masks and a table; judge runs without masks.

comparison.py        finished runs compared on validation patients
criteria.py          which run is better, told without masks
deletion.py          score heatmaps by deleting their hottest pixels
lite_medsam.py       SAM's decoder behind a TinyViT
makers.py            heatmaps, a teacher's scores or true masks -> a folder of masks
rule.py              heatmap -> scores -> pseudo-mask
segmenter.py         SAM or MedSAM prompted by pseudo-masks
segmenter_models.py  which model a segmenter's folder holds
table.py             pseudo-masks on disk, by patient and slice
tiny_vit.py          the TinyViT encoder of images
"""
