"""Learn to recognise sequences from synthetic brains, and check that on scans and whole heads.

    python train/plain/recognition.py out=runs/recognition
    python train/plain/recognition.py out=runs/recognition scans=scans
    python train/plain/recognition.py out=runs/recognition head=head.nii.gz head_brain=mask.nii.gz

Writes recognition.json and sequences.json, the table that the package holds in
modeling_rasalore/brains/. With `scans`, every scan below that folder whose name tells its sequence
is recognised: a confusion matrix is printed, and how many are taken for heads or for no brain.
With `head`, a T1 scan with skull, deformed heads in three contrasts must be taken for heads;
pydeface's mean_reg2mean.nii.gz is such a head, and deepbet makes its mask.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from modeling_rasalore.brains.anatomy import measure_anatomy
from modeling_rasalore.brains.sequences import (
    KINDS,
    TABLE,
    Table,
    measure_profile,
    recognise_sequence,
)
from modeling_rasalore.data.phantom_tumours import smooth_field
from modeling_rasalore.data.phantoms import make_phantom
from modeling_rasalore.files import write_json
from modeling_rasalore.provenance import provenance
from modeling_rasalore.recipes import run_script
from modeling_rasalore.scans.naming import MODALITIES, role_by_words
from modeling_rasalore.scans.volumes import read_mask, read_volume

UNTOLD = "not told"
BRAIN_MM = 2.0  # voxels of synthetic brains
SCANNERS = 3  # that each of them is scanned with besides
HEAD_MM = 2.0  # voxels of deformed heads
AIR = 0.15  # of white matter's brightness


@dataclass
class RecognitionRecipe:
    """What is learned and what is checked.

    Attributes:
        out: folder of sequences.json and recognition.json.
        patients: synthetic brains to learn from, a third each healthy, with tumours, with lesions
            of the white matter.
        seed: of the first of them; the others follow.
        scans: folder of extracted brains to check; "": none.
        head: T1 scan of a whole head; "": none.
        head_brain: mask of its brain.
        heads: how many deformed heads are made of it, in three contrasts each.
    """

    out: str = MISSING
    patients: int = 60
    seed: int = 5000
    scans: str = ""
    head: str = ""
    head_brain: str = ""
    heads: int = 12


def main(recipe: RecognitionRecipe) -> None:
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    write_table(out / TABLE, learn(recipe.patients, recipe.seed))
    results: dict[str, Any] = {**provenance(), "patients": recipe.patients, "seed": recipe.seed}
    if recipe.scans:
        results["scans"] = check_scans(Path(recipe.scans))
    if recipe.head:
        results["heads"] = check_heads(recipe)
    write_json(out / "recognition.json", results)


# --- Learning -------------------------------------------------------------------------------------
def learn(patients: int, seed: int) -> Table:
    """Return the table of synthetic brains; T1 with contrast agent counts as T1."""
    kinds, profiles = [], []
    for number in tqdm(range(patients), desc="synthetic brains"):
        rng = np.random.default_rng(seed + number)
        disease = {"tumour": number % 3 == 1, "white_matter_lesions": number % 3 == 2}
        for sequence, image in make_phantom(seed + number, **disease).images.items():
            brain = image.transpose(2, 1, 0).astype(np.float32)
            scanned = [scan_otherwise(rng, brain) for _ in range(SCANNERS)]
            for slices, spacing in ((brain, (BRAIN_MM,) * 3), *scanned):
                kinds.append(next(kind for kind, fits in KINDS.items() if sequence in fits))
                profiles.append(measure_profile(slices, spacing))
    scaler = StandardScaler().fit(profiles)
    model = LogisticRegression(max_iter=3000).fit(scaler.transform(profiles), kinds)
    order = [list(model.classes_).index(kind) for kind in KINDS]
    weights = model.coef_[order] / scaler.scale_
    return Table(weights, model.intercept_[order] - weights @ scaler.mean_)


def scan_otherwise(
    rng: np.random.Generator, brain: np.ndarray
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return a brain as another scanner shows it, and its spacing in mm.

    Contrast, evenness of the coil, noise and thickness of the slices are drawn.
    """
    axes = tuple((np.arange(n, dtype=np.float32) - (n - 1) / 2) * BRAIN_MM for n in brain.shape)
    inside, thick = brain > 0, int(rng.integers(1, 4))
    image = (brain / np.median(brain[inside])) ** np.exp(rng.normal(0, 0.3))
    image *= np.exp(rng.uniform(0, 0.2) * smooth_field(rng, axes, float(rng.uniform(16, 40))))
    count = len(image) // thick
    image = image[: count * thick].reshape(count, thick, *image.shape[1:]).mean(1)
    noisy = np.maximum(image + rng.uniform(0, 0.1) * rng.standard_normal(image.shape), 1e-3)
    return np.where(image > 0, noisy, 0).astype(np.float32), (BRAIN_MM * thick, BRAIN_MM, BRAIN_MM)


def write_table(path: Path, table: Table) -> Path:
    """Return `path`; four decimals are enough."""
    return write_json(path, {k: np.round(v, 4).tolist() for k, v in vars(table).items()})


# --- Checking scans -------------------------------------------------------------------------------
def check_scans(root: Path) -> dict[str, Any]:
    """Return how brains of every named sequence were recognised by the package's own table."""
    counts: Counter[tuple[str, str]] = Counter()
    problems = {}
    paths = [path for path in sorted(root.rglob("*.nii.gz")) if role_by_words(path) in MODALITIES]
    for path in tqdm(paths, desc="scans"):
        volume = read_volume(path)
        said = recognise_sequence(volume)
        fits = said.fits if said else None
        counts[str(role_by_words(path)), next((k for k in KINDS if KINDS[k] == fits), UNTOLD)] += 1
        anatomy = measure_anatomy(volume.slices, volume.spacing)
        if anatomy is None or anatomy.problem:
            problems[str(path.relative_to(root))] = anatomy.problem if anatomy else "blank"
    columns = [*KINDS, UNTOLD]
    print(f"{'by name':8}", *(f"{column:>9}" for column in columns))
    for row in MODALITIES:
        print(f"{row:8}", *(f"{counts[row, column]:9}" for column in columns))
    print(f"{len(problems)} of {len(paths)} brains are taken for heads or for no brain", problems)
    matrix = {row: {column: counts[row, column] for column in columns} for row in MODALITIES}
    return {"confusion": matrix, "taken_for_no_brain": problems}


# --- Checking heads -------------------------------------------------------------------------------
def check_heads(recipe: RecognitionRecipe) -> dict[str, Any]:
    """Return the figures of each deformed head, and whether it was taken for one."""
    results = {}
    for name, image in tqdm(deform_heads(recipe), total=recipe.heads * 6, desc="heads"):
        anatomy = measure_anatomy(image, (HEAD_MM,) * 3)
        assert anatomy is not None
        results[name] = {**vars(anatomy), "is_head": anatomy.is_head}
    recognised = sum(result["is_head"] for result in results.values())
    print(f"{recognised} of {len(results)} heads are taken for heads")
    return results


def deform_heads(recipe: RecognitionRecipe) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and slices of heads of another size, tilt and form: T1, T2 and FLAIR, each with
    noise in the air and with the air zeroed; of some, up to 80 mm are cut off from below."""
    volume = read_volume(recipe.head)
    brain = read_mask(recipe.head_brain, volume) > 0
    zoom = np.divide(volume.spacing, HEAD_MM)
    head = ndimage.zoom(volume.slices / np.percentile(volume.slices[brain], 85), zoom, order=1)
    inside = ndimage.zoom(brain.astype(np.float32), zoom, order=1)
    axes = tuple((np.arange(n, dtype=np.float32) - (n - 1) / 2) * HEAD_MM for n in head.shape)
    for number in range(recipe.heads):
        rng = np.random.default_rng(number)
        positions = move(rng, axes)
        moved, brain = (
            ndimage.map_coordinates(data, positions, order=1) for data in (head, inside)
        )
        lowest = rng.integers(0, 40)
        for kind in KINDS:
            image = recolour(moved, brain, kind) * np.exp(0.1 * smooth_field(rng, axes, 60.0))
            tissue = ndimage.binary_opening(image > AIR, iterations=2)
            noise = rng.uniform(0.01, 0.04) * rng.standard_normal((2, *image.shape))
            noisy = np.hypot(image + noise[0], noise[1]).astype(np.float32)
            zeroed = np.where(ndimage.binary_fill_holes(tissue), noisy, 0)
            yield f"{number} {kind} noise", noisy[lowest:]
            yield f"{number} {kind} zeroed air", zeroed[lowest:]


def move(rng: np.random.Generator, axes: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return where each voxel of a deformed head lies in the given one, in voxels, (3, S, H, W)."""
    x, y, z = rng.normal(0, 0.08, 3)
    tilt = np.array([[1, -z, y], [z, 1, -x], [-y, x, 1]]) / rng.normal(1, 0.06, 3)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    bend = [2.5 * smooth_field(rng, axes, 45.0) + smooth_field(rng, axes, 18.0) for _ in axes]
    moved = np.tensordot(tilt, grid, 1) + np.stack(bend)
    starts = np.array([axis[0] for axis in axes])
    return np.asarray((moved - starts[:, None, None, None]) / HEAD_MM)


def recolour(head: np.ndarray, brain: np.ndarray, kind: str) -> np.ndarray:
    """Return a T1 head, white matter = 1, in the brightness of another sequence.

    In the brain, fluid is darker than grey matter and that darker than white matter; outside, bone
    is dark and fat bright, as it is in all three.
    """
    levels = {
        "t2": ([0, 0.45, 0.72, 0.95, 1.2], [3.2, 2.6, 1.35, 1, 0.95], [0.1, 0.45, 0.9, 1.8]),
        "flair": ([0, 0.45, 0.72, 0.95, 1.2], [0.3, 0.4, 1.15, 1, 0.95], [0.1, 0.4, 1.0, 1.6]),
    }
    if kind not in levels:
        return head
    steps, inner, outer = levels[kind]
    share = np.clip(ndimage.gaussian_filter((brain > 0.3).astype(np.float32), 0.7), 0, 1)
    outside = np.interp(head, [0, 0.2, 0.5, 1.0, 1.6], [0, *outer])
    return np.asarray(share * np.interp(head, steps, inner) + (1 - share) * outside)


if __name__ == "__main__":
    run_script(main)
