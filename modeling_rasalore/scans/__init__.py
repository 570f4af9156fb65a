"""Bring a scan from disk into the slice frame, and results back onto its grid.

background.py       what is brain, what is background, the box around it
bids.py             BIDS data sets, raw and derived; where results go
dicom.py            DICOM series from folders and zips
finding.py          which scans a folder holds, what is left out
header_guard.py     refuse crafted headers before anything is decoded
naming.py           what names, descriptions and times say a file shows
overlays.py         pictures of slices with map, mask and truth
reading.py          any scan through one door, opened once; what header and voxels tell
series_files.py     files of a DICOM folder or zip, under byte budgets
slice_frame.py      Geometry: where voxels lie, and if a head can; the one place where axes change
volume_writing.py   results on a scan's own grid, in its format or another; how they are known again
volumes.py          Volume: scans in the slice frame, from files or voxels
"""
