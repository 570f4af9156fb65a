"""Read and write the files of other programs, byte by byte under budgets; no floor below.

dicom_content.py        one DICOM file: its header, its slices, compressed or not
dicom_segmentation.py   masks as DICOM segmentations that refer to their series
dicom_slices.py         where its slices lie and how they are scaled
endings.py              the reader and writer that the end of a name stands for
metaimage.py            .mha and .mhd: ITK
neuroimaging.py         .mgz and .mgh: FreeSurfer; .img/.hdr: SPM and FSL
nrrd_files.py           .nrrd and .nhdr: 3D Slicer
stored_voxels.py        voxels that a header describes, never more than it announces
"""
