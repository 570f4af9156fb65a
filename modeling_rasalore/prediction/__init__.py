"""Run a model over scans: one, many, an archive; thresholds, doubt.

archive.py       an archive in shards
calibration.py   thresholds from healthy scans
loading.py       model and processor from a folder or the Hub
mask_3d.py       parts, extent and smoothing in 3-D
outputs.py       files written for one scan
ray.py           an archive on a Ray cluster
report.py        results.csv and report.html
run.py           many scans with a manifest
uncertainty.py   spread of scores under the model's noise
volume.py        VolumePrediction: one scan through a model
"""
