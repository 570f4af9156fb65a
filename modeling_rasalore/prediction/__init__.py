"""Run a model over scans: one, many, an archive; thresholds, doubt.

calibration.py   thresholds from healthy scans
free_map.py      smoothing in 3-D, and the map that learns nothing
journal.py       what is done, one line per scan
loading.py       model and processor from a folder or the Hub
options.py       PredictionOptions, passed whole everywhere
outputs.py       files written for one scan
planning.py      what a run over many scans knows, and what is left of it
run.py           many scans, in shards, resumable, here or on a Ray cluster
saved_options.py  what is saved with a model: thresholds, and how its masks are made
scoring.py       slices through the network
uncertainty.py   spread of scores under the model's noise
volume.py        VolumePrediction: one scan through a model
"""
