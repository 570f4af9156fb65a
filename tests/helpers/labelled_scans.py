"""Small scans to label, and the labelling server as a browser would talk to it."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from modeling_rasalore.data.layouts import find_scanned_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.labelling.desk import LabelDesk
from modeling_rasalore.labelling.page import address_of, listen, make_server
from modeling_rasalore.scans.volume_writing import write_nifti

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])
SLICES, SHOWN = 14, (2, 11)


def write_patient(folder: Path, name: str, sequences: Sequence[str] = ("flair",)) -> None:
    """A patient whose slice k has brain from 2 to 11, all of it 100 + 10 k, in 14 slices."""
    for sequence in sequences:
        voxels = np.zeros((24, 28, SLICES), np.int16)
        for index in range(SHOWN[0], SHOWN[1] + 1):
            voxels[4:20, 5:23, index] = 100 + 10 * index
        path = folder / name / f"{name}_{sequence}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, voxels, AFFINE)


def make_patients(folder: Path, names: Sequence[str] = ("ann", "bob", "cid")) -> list[Patient]:
    """Patients as the command finds them."""
    for name in names:
        write_patient(folder, name)
    return find_scanned_patients(folder)


@contextmanager
def serving(desk: LabelDesk) -> Iterator[str]:
    """Serve the page from a thread; gives its address."""
    with listen() as listener:
        server = make_server(desk)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join()


def ask(address: str, path: str, content: dict[str, Any] | None = None) -> Any:
    """What the page's script is answered."""
    data = None if content is None else json.dumps(content).encode()
    request = Request(f"{address}label/{path}", data, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as response:
        return json.loads(response.read())
