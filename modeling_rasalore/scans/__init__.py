"""Bring a scan from disk into the slice frame, and results back onto its grid.

background.py       what is brain, what is background
bids.py             BIDS data sets, raw and derived
dicom.py            DICOM series from folders and zips
finding.py          which scans a folder holds, where results go
header_guard.py     refuse crafted headers before anything is decoded
naming.py           what a file's name says it shows
overlays.py         pictures of slices with map, mask and truth
reading.py          any scan through one door; what its header tells
slice_frame.py      the one place where axes change
volume_writing.py   NIfTI files on a scan's own grid
volumes.py          Volume: NIfTI into the slice frame
"""
