"""Which model of several reads a scan, who says so, and what is refused."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from dicom_files import write_series, zip_series
from heads import make_brain, write_slices
from saved_defaults import save_defaults
from space import ask_as_agent, left_in, make_handlers, save_model, segment, serving, write_scan

from modeling_rasalore.packaged import packaged_sequences
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.scans.volumes import read_volume

pytest.importorskip("gradio")
import gpu
from analysis import NOISE_SAMPLES, Analyst, say_nothing
from app import split
from gradio_client.exceptions import AppError
from handlers import Handlers
from model_choice import BY_SEQUENCE, offer_models, open_model
from page import introduction
from scan_reading import read_scan
from traffic import sweep


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A FLAIR model and a T2 model."""
    root = tmp_path_factory.mktemp("models")
    return [save_model(root / name, name) for name in ("flair", "t2")]


@pytest.fixture(scope="module")
def both(folders: list[Path]) -> Handlers:
    return make_handlers(*folders)


@pytest.fixture(scope="module")
def shared_address(folders: list[Path], cache: Path) -> Iterator[str]:
    """Where the Space is served with both models."""
    with serving(cache, *folders) as address:
        yield address


def test_the_models_of_the_package_are_offered_where_none_is_named() -> None:
    if not packaged_sequences():
        pytest.skip("this copy of the package brings no weights")
    models = offer_models()
    assert list(models.offers) == [f"rasalore-base/{name}" for name in packaged_sequences()]
    assert models.sequences == packaged_sequences()
    assert models.titles[0] == BY_SEQUENCE


def test_a_model_is_opened_when_a_scan_needs_it_and_once(folders: list[Path]) -> None:
    models = offer_models([str(folder) for folder in folders])
    assert models._analysts == {}
    first = models.open(models.first)
    assert list(models._analysts) == ["flair"] and models.open(models.first) is first


def test_models_are_named_by_commas_and_each_may_have_a_revision(folders: list[Path]) -> None:
    assert split(" a/b, runs/x ,") == ["a/b", "runs/x"] and split("") == []
    sources = [str(folder) for folder in folders]
    offers = offer_models(sources, ["one", "two"]).offers
    assert [offer.revision for offer in offers.values()] == ["one", "two"]
    with pytest.raises(ValueError, match="one for each of the 2 models, got 3"):
        offer_models(sources, ["1", "2", "3"])
    assert list(offer_models(sources[:1] * 2).offers) == ["flair", "flair (2)"]
    assert introduction(("flair", "t2")).count("Reads **FLAIR** or **T2** scans") == 1


@pytest.mark.parametrize("sequence", ["flair", "t2"])
def test_the_name_of_a_scan_chooses_its_model(
    both: Handlers, sequence: str, tmp_path: Path
) -> None:
    offer, scan = both.models.read(write_scan(tmp_path / f"p1_{sequence}.nii.gz"))
    assert (offer.title, scan.source["unfit_because"]) == (sequence, [])
    assert "nothing else tells" not in " ".join(scan.source["warnings"])


@pytest.mark.parametrize("sequence", ["flair", "t2"])
def test_the_image_of_a_scan_chooses_its_model_where_nothing_else_tells(
    both: Handlers, sequence: str, tmp_path: Path
) -> None:
    offer, scan = both.models.read(write_slices(tmp_path / "scan.nii.gz", make_brain(21, sequence)))
    assert offer.title == sequence
    analysis = both.models.open(offer).analyse(scan, 0.5, say_nothing)
    told = both.describe(analysis, 0.5)[0]
    assert f"{sequence.upper()} (its image looks like a {sequence}) · read by {sequence}" in told
    assert "nothing else tells; choose the model if that is wrong." in told


def test_a_sequence_that_no_model_reads_is_refused_by_name_and_by_image(
    both: Handlers, tmp_path: Path
) -> None:
    reads = "the models read FLAIR and T2, but"
    with pytest.raises(ValueError, match=rf"^p1_t1\.nii\.gz: {reads} its name says t1; give a"):
        both.models.read(write_scan(tmp_path / "p1_t1.nii.gz"))
    t1 = write_slices(tmp_path / "scan.nii.gz", make_brain(21, "t1"))
    with pytest.raises(ValueError, match=f"^scan.nii.gz: {reads} its image looks like a t1"):
        both.models.read(t1)


def test_an_untold_sequence_asks_for_a_model_which_then_reads_the_scan(
    both: Handlers, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    with pytest.raises(ValueError, match=r"tells the scan's sequence.* FLAIR and T2; choose"):
        both.models.read(scan)
    offer, read = both.models.read(scan, "t2")
    assert offer.title == "t2"
    assert "check that it is one" in " ".join(read.source["warnings"])
    with pytest.raises(ValueError, match=f"model must be one of {BY_SEQUENCE}, flair, t2, got t1"):
        both.models.read(scan, "t1")


def test_a_model_that_was_chosen_for_another_sequence_is_told_in_red(
    both: Handlers, tmp_path: Path
) -> None:
    named = write_scan(tmp_path / "p1_t2.nii.gz")
    seen = write_slices(tmp_path / "scan.nii.gz", make_brain(21, "t1"))
    for path, why in ((named, "the scan is t2"), (seen, "its image looks like a t1")):
        (reason,) = both.models.read(path, "flair")[1].source["unfit_because"]
        assert reason.startswith(f"the model was trained on flair, but {why}")


def test_a_name_that_the_image_contradicts_is_told_in_red(both: Handlers, tmp_path: Path) -> None:
    path = write_slices(tmp_path / "p1_flair.nii.gz", make_brain(21, "t2"))
    (reason,) = both.models.read(path)[1].source["unfit_because"]
    assert reason.startswith("its image looks like a t2, but its name says flair; check which")


def test_of_a_zip_of_several_series_the_one_that_a_model_reads_is_taken(
    both: Handlers, tmp_path: Path
) -> None:
    volume = read_volume(write_scan(tmp_path / "scan.nii.gz"))
    voxels = volume.slices.transpose(2, 1, 0).astype(np.int16)
    series = [
        write_series(tmp_path / name, voxels, volume.affine, SeriesDescription=f"Ax {name}")
        for name in ("T1", "T2")
    ]
    offer, scan = both.models.read(zip_series(tmp_path / "study.zip", *series))
    assert offer.title == "t2" and scan.volume.sequence == "t2"
    assert any("t2 series was taken" in text for text in scan.source["warnings"])


def test_the_thresholds_on_the_page_become_those_of_the_scans_model(
    both: Handlers, tmp_path: Path
) -> None:
    offer, scan = both.models.read(write_scan(tmp_path / "p1_t2.nii.gz"))
    analyst = both.models.open(offer)
    analysis = analyst.analyse(scan, 0.5, say_nothing)
    *_, radio, threshold = both.show(analysis, "marks 1 in 100 healthy voxels", 0.9)
    assert (radio["value"] if isinstance(radio, dict) else radio.value) == analyst.presets[0].words
    assert threshold == analyst.options.threshold
    *_, radio, threshold = both.show(analysis, None, 0.9)  # chosen on the slider
    assert threshold == 0.9
    assert both.preset(analysis, analyst.presets[0].words) == analyst.presets[0].threshold


# --- Through a server -----------------------------------------------------------------------------


def test_programs_and_agents_get_the_model_of_the_scans_sequence(
    shared_address: str, cache: Path, tmp_path: Path
) -> None:
    scan = write_slices(tmp_path / "scan.nii.gz", make_brain(21, "t2"))
    _, report = segment(shared_address, scan, tmp_path / "out", None)
    assert (report["model"]["name"], report["modality"]) == ("t2", "t2")
    assert report["modality_source"] == "its image looks like a t2"
    _, answer = ask_as_agent(shared_address, scan)
    assert "'modality_source': 'its image looks like a t2'" in answer.content[0].text
    sweep(cache, -1)  # the mask that was not fetched


def test_programs_and_agents_are_refused_a_sequence_that_is_not_read(
    shared_address: str, cache: Path, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "p1_t1.nii.gz")
    sentence = "p1_t1.nii.gz: the models read FLAIR and T2, but its name says t1; give a scan of"
    with pytest.raises(AppError, match=sentence):
        segment(shared_address, scan, tmp_path / "out", None)
    _, answer = ask_as_agent(shared_address, scan)
    assert answer.isError and sentence in answer.content[0].text
    assert left_in(cache) == []


# --- Uncertainty, and where it is computed --------------------------------------------------------


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Analyst:
    """A model whose scores contain the free map."""
    folder = save_model(tmp_path_factory.mktemp("fused"))
    save_defaults(folder, PredictionOptions(free_map=1.0, smooth_mm=2.0), "nothing")
    return open_model(str(folder))


def test_the_whole_uncertainty_is_that_of_the_command_line_free_map_included(
    fused: Analyst, tmp_path: Path
) -> None:
    scan = read_scan(write_scan(tmp_path / "p1_flair.nii.gz"))
    analysis = fused.analyse(scan, 0.5, say_nothing)
    options = PredictionOptions(free_map=1.0, smooth_mm=2.0, noise_samples=NOISE_SAMPLES)
    expected = predict_volume(fused.model, fused.processor, scan.volume, options).spread
    assert expected is not None and expected.any()
    assert np.array_equal(fused.whole_uncertainty(analysis), expected)
    plain = predict_volume(
        fused.model, fused.processor, scan.volume, PredictionOptions(noise_samples=NOISE_SAMPLES)
    ).spread
    assert not np.allclose(expected, plain)
    # The first slice with brain draws the same noise, alone or as the first of all.
    first = int(np.flatnonzero(scan.images.any((1, 2)))[0])
    assert np.allclose(fused.uncertainty(analysis, first), expected[first], atol=1e-6)


def test_where_gpus_are_lent_what_computes_is_marked_and_takes_and_gives_what_pickles(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def lend(function: Any) -> Any:
        """As `spaces.GPU`, which computes in a process of its own."""

        def run(*given: Any) -> Any:
            calls.append(function.__name__)
            return pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(given)))))

        return run

    scan = read_scan(write_scan(tmp_path / "p1_flair.nii.gz"))
    plain = open_model(str(model))
    expected = plain.analyse(scan, 0.5, say_nothing)
    monkeypatch.setattr(gpu, "spaces", SimpleNamespace(GPU=lend))
    lent = open_model(str(model))
    analysis = lent.analyse(scan, 0.5, say_nothing)
    assert np.array_equal(analysis.prediction.scores, expected.prediction.scores)
    assert np.array_equal(lent.uncertainty(analysis, 3), plain.uncertainty(expected, 3))
    assert calls == ["predict_where_computed", "draw_where_computed"]


def test_elsewhere_functions_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "spaces", None)
    assert gpu.on_gpu(say_nothing) is say_nothing
