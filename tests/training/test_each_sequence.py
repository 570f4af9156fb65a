"""Stage 2 learns from every sequence of a patient as a scan of its own."""

from pathlib import Path

import pytest
import torch

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import EACH, Patient, PreparedSlices
from modeling_rasalore.data.phantoms import write_phantoms
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.models import RasaloreModel
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.training import examples
from modeling_rasalore.training.stage2 import Stage2Recipe, train_stage2

SMALL = ("loop.max_steps=2", "loop.batch_size=8", "loop.evaluate_every=2", "loop.tensorboard=false")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_phantoms(folder, 3, 0, healthy_patients=3, shape=(32, 36, 24), voxel_size=6.0)
    return folder


def read_recipe(scans: Path, out: Path, *words: str) -> Stage2Recipe:
    data = f"data.root={scans}", f"data.modality={EACH}", "data.skip_slices=4", f"out={out}"
    fields = "split.validation=1", "split.test=1", "synthetic_lesions.share=1"
    preset = "hub_configs/rasalore-base/training.yaml"
    return load_recipe(Stage2Recipe, [preset, *data, *fields, *SMALL, *words])


def test_a_patient_is_four_scans_of_one_sequence_each(scans: Path) -> None:
    patient = find_patients(scans)[0]
    apart = patient.of_each_sequence()
    assert [p.patient_id.rpartition("/")[2] for p in apart] == ["t1", "t1ce", "t2", "flair"]
    for scan, name in zip(apart, ("t1", "t1ce", "t2", "flair"), strict=True):
        first, whole = next(read_slices(scan, EACH)), next(read_slices(patient, name))
        assert (first.image == whole.image).all() and first.modality == whole.modality == name


def test_prepared_slices_are_refused() -> None:
    patient = Patient("a", {"t2": Path("x")}, prepared=PreparedSlices("root", "part", 1, 0))
    with pytest.raises(ValueError, match="give the folder they were prepared from"):
        patient.of_each_sequence()


def test_each_slice_is_painted_as_its_sequence(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, int] = {}
    paint = examples.paint_slices

    def count(batch: dict, healthy: torch.Tensor, *others: object) -> object:
        name = str(others[2])
        drawn[name] = drawn.get(name, 0) + int(healthy.sum())
        return paint(batch, healthy, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(examples, "paint_slices", count)
    out = train_stage2(read_recipe(scans, tmp_path / "run"))
    assert drawn.keys() == {"t1", "t1ce", "t2", "flair"}
    assert RasaloreModel.from_pretrained(out).config.modality is None
    assert "/" not in (out / "split.json").read_text("utf-8")  # the split is of patients


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["synthetic_lesions.share=0.5", "pseudo_masks=x"], "learns from painted lesions alone"),
        (["model=hub_configs/rasalore-tiny"], "needs a network that sees whole scans"),
    ],
)
def test_what_cannot_be_learned_from_each_sequence_is_refused(
    scans: Path, tmp_path: Path, words: list[str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        train_stage2(read_recipe(scans, tmp_path / "run", *words))
