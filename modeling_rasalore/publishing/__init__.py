"""Publish models: cards, repositories, ONNX; convert the authors' files.

cards.py                  model and data cards
metric_folder.py          the `evaluate` metric with the formulas it imports
onnx_export.py            a slice in, its scores out, as ONNX
released_checkpoints.py   the authors' files -> a model folder
repository.py             push a folder to the Hub, in one commit
stranger.py               load a published model without this package
"""
