"""The Space without a browser: its handlers, and its API over loopback."""

import base64
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from space import SPACE, make_handlers, save_model, serving, stored_files, write_scan

from modeling_rasalore import __version__
from modeling_rasalore.model_loading import load_model
from modeling_rasalore.prediction import VolumePrediction, predict_volume
from modeling_rasalore.volumes import read_mask, read_volume, write_nifti

pytest.importorskip("gradio")
from analysis import Analysis, measure_findings, read_scan
from drawing import draw_slice, write_table
from gradio.route_utils import delete_files_created_by_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from handlers import DOUBT, SCORES, Handlers
from uploads import UploadRegister, stored_paths


def quiet(share: float, text: str) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def handlers(model: Path) -> Handlers:
    return make_handlers(model)


@pytest.fixture(scope="module")
def analysis(handlers: Handlers, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    scan = read_scan(write_scan(tmp_path_factory.mktemp("scan") / "scan.nii.gz"))
    return handlers.analyst.analyse(scan, 0.5, quiet)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Gradio keeps what it must have on disk."""
    return tmp_path_factory.mktemp("gradio")


@pytest.fixture(scope="module")
def server(model: Path, cache: Path) -> Iterator[tuple[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        with serving(model) as server:
            yield server


@pytest.fixture(scope="module")
def address(server: tuple[str, Any]) -> str:
    return server[0]


def segment(address: str, scan: Path, out: Path, threshold: float = 0.5) -> tuple[str, Any]:
    client = Client(address, verbose=False, download_files=str(out))
    return client.predict(handle_file(scan), threshold, api_name="/segment")


# --- Handlers -----------------------------------------------------------------------------------


def test_the_downloaded_mask_is_that_of_predict_volume(
    handlers: Handlers, analysis: Analysis, tmp_path: Path
) -> None:
    volume = analysis.scan.volume
    for threshold in (0.5, 0.501):
        packed = handlers.pack_mask(analysis, threshold)
        path = tmp_path / packed["name"]
        path.write_bytes(base64.b64decode(packed["content"]))
        analyst = handlers.analyst
        expected = predict_volume(analyst.model, analyst.processor, volume, threshold=threshold)
        assert 0 < expected.mask.sum() < expected.mask.size
        assert np.array_equal(read_mask(path, volume), expected.mask)


def test_the_report_follows_the_threshold(handlers: Handlers, analysis: Analysis) -> None:
    packed = handlers.pack_report(analysis, 1.0)
    report = json.loads(base64.b64decode(packed["content"]))
    assert packed["name"] == "scan.json"
    assert (report["threshold"], report["millilitres"], report["findings"]) == (1.0, 0, [])
    assert "not a medical device" in report["disclaimer"]
    whole = analysis.report(0.5)
    assert sum(row["millilitres"] for row in whole["findings"]) == pytest.approx(
        whole["millilitres"]
    )


def test_findings_by_hand() -> None:
    mask = np.zeros((4, 5, 5), np.uint8)
    mask[0, 0, 0] = 1
    mask[1:3, 3, 3:5] = 1
    mask[3, 4, 4] = 1  # touches the second finding by a corner
    scores = np.where(mask, 0.8, 0).astype(np.float32)
    scores[0, 0, 0] = 1
    found = measure_findings(VolumePrediction(scores, mask, 0.5, (10.0, 10.0, 10.0), {}))
    assert found == [
        {"millilitres": 5, "lowest_slice": 1, "highest_slice": 3, "mean_score": pytest.approx(0.8)},
        {"millilitres": 1, "lowest_slice": 0, "highest_slice": 0, "mean_score": 1},
    ]


def test_the_table_names_the_largest_findings_and_counts_the_rest() -> None:
    row = {"millilitres": 2.0, "lowest_slice": 3, "highest_slice": 4, "mean_score": 0.75}
    report = {"millilitres": 24.0, "slices_with_anomaly": 2, "findings": [row] * 12}
    lines = write_table(report).splitlines()
    assert lines[3] == "| 1 | 2.0 | 3 to 4 | 0.75 |"
    assert len(lines) == 2 + 1 + 10 + 1
    assert lines[-1].startswith("| +2 ")


def test_opacity_and_colours_change_the_overlay_and_not_the_plain_slice(
    handlers: Handlers, analysis: Analysis
) -> None:
    empty = np.zeros_like(analysis.prediction.mask)
    plain, clear = draw_slice(analysis, 3, empty, opacity=0)
    assert plain.tobytes() == clear.tobytes()
    spread = handlers.analyst.uncertainty(analysis, 3)
    pictures = {
        draw_slice(analysis, 3, mask, opacity, doubt)[1].tobytes()
        for mask, opacity, doubt in (
            (empty, 0, None),
            (empty, 0.5, None),
            (empty, 0.5, spread),
            (analysis.prediction.mask, 0.5, None),
        )
    }
    assert len(pictures) == 4


def test_pictures_have_the_shape_of_the_brain_in_mm(handlers: Handlers, tmp_path: Path) -> None:
    voxels = np.zeros((40, 40, 3), np.uint8)
    voxels[10:30, 10:30, 1] = 100
    path = write_nifti(tmp_path / "scan.nii.gz", voxels, np.diag([-1.0, -2.0, 1.0, 1.0]))
    analysis = handlers.analyst.analyse(read_scan(path), 0.5, quiet)
    plain, _ = draw_slice(analysis, 1, analysis.prediction.mask, 0.5)
    assert plain.height == pytest.approx(2 * plain.width, abs=1)


def test_an_empty_scan_can_be_looked_at(handlers: Handlers, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", np.zeros((8, 8, 3), np.uint8), np.eye(4))
    analysis = handlers.analyst.analyse(read_scan(path), 0.5, quiet)
    assert len(handlers.draw(analysis, 99, 0.5, 0.5, SCORES) or []) == 2
    assert "no anomaly found" in handlers.describe(analysis, 0.5)[0]


def test_pictures_come_inline_and_without_a_scan_there_are_none(
    handlers: Handlers, analysis: Analysis
) -> None:
    for what in (SCORES, DOUBT):
        pictures = handlers.draw(analysis, 2, 0.5, 0.5, what) or []
        assert [picture["url"][:22] for picture in pictures] == ["data:image/png;base64,"] * 2
    assert handlers.draw(None, 2, 0.5, 0.5, SCORES) is None
    assert handlers.describe(None, 0.5) == ("", "")


def test_an_error_names_the_file_but_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.nii").write_text("no scan")
    with pytest.raises(ValueError, match=r"^notes\.nii: ") as error:
        read_scan(tmp_path / "notes.nii")
    assert str(tmp_path) not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_scan_with_too_many_voxels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.MAX_VOXELS", 1000)
    with pytest.raises(ValueError, match="million voxels here"):
        read_scan(write_scan(tmp_path / "scan.nii.gz"))


def test_the_bundled_example_is_small_and_loads(handlers: Handlers) -> None:
    path = SPACE / "examples" / "synthetic_t2.nii.gz"
    assert path.stat().st_size < 300_000
    assert read_volume(path).slices.any()


def test_the_bundled_example_is_what_its_script_makes() -> None:
    pytest.importorskip("nilearn")
    from write_example import TARGET, make_example

    voxels, affine = make_example()
    bundled = read_volume(TARGET)
    assert np.array_equal(bundled.affine, affine)
    # Rounding may differ by one between processors.
    assert np.abs(bundled.slices - voxels.transpose(2, 1, 0).astype(np.float32)).max() <= 1


# --- Uploads ------------------------------------------------------------------------------------


def test_a_file_that_two_people_uploaded_is_deleted_after_the_second_reading(
    tmp_path: Path,
) -> None:
    register, path = UploadRegister(), tmp_path / "scan.nii"
    path.write_text("scan")
    register.add([str(path)])
    register.add([str(path)])
    with register.reading(str(path)) as first:
        assert first.exists()
    assert path.exists()
    with pytest.raises(RuntimeError, match="stop"), register.reading(str(path)):
        raise RuntimeError("stop")
    assert not path.exists()


def test_only_uploaded_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("secret")
    with (
        pytest.raises(ValueError, match="choose the file again"),
        UploadRegister().reading(str(path)),
    ):
        pass
    assert path.exists()


def test_answers_of_the_upload_route_are_understood() -> None:
    assert stored_paths(b'["/a/b.nii", "/a/c.nii"]') == ["/a/b.nii", "/a/c.nii"]
    assert stored_paths(b'{"error": "too large"}') == []
    assert stored_paths(b"Bad request") == []


# --- API over loopback --------------------------------------------------------------------------


def test_the_api_gives_the_mask_and_report_of_predict_volume(
    address: str, model: Path, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    mask, report = segment(address, scan, tmp_path / "out", 0.5)
    volume = read_volume(scan)
    expected = predict_volume(*load_model(str(model), "main", "cpu"), volume)
    assert Path(mask).name == "scan_mask.nii.gz"
    assert np.array_equal(read_mask(mask, volume), expected.mask)
    assert report["millilitres"] == pytest.approx(expected.millilitres)
    assert report["input"] == "scan.nii.gz"


def test_requests_at_once_get_their_own_masks_and_uploads_are_gone(
    address: str, cache: Path, tmp_path: Path
) -> None:
    same = write_scan(tmp_path / "same.nii.gz", 1)
    scans = [same, write_scan(tmp_path / "other.nii.gz", 2), same, same]
    with ThreadPoolExecutor(4) as pool:
        out = [tmp_path / f"out{place}" for place in range(4)]
        results = list(pool.map(segment, [address] * 4, scans, out))
    assert [report["input"] for _, report in results] == [scan.name for scan in scans]
    masks = [Path(mask).read_bytes() for mask, _ in results]
    assert masks[0] == masks[2] == masks[3] != masks[1]
    assert {name for name in stored_files(cache) if "_mask" not in name} == set()


def test_what_is_left_on_disk_is_deleted_by_age(
    server: tuple[str, Any], cache: Path, tmp_path: Path
) -> None:
    address, blocks = server
    segment(address, write_scan(tmp_path / "aged.nii.gz"), tmp_path / "out")
    assert "aged_mask.nii.gz" in stored_files(cache)
    assert blocks.delete_cache == (90, 900)
    delete_files_created_by_app(blocks, 0)  # what Gradio does every 90 seconds, with age 900
    assert stored_files(cache) == []


def test_a_bad_file_gives_one_line_and_the_app_lives_on(
    address: str, cache: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "broken.nii.gz"
    bad.write_bytes(write_scan(tmp_path / "scan.nii.gz").read_bytes()[:200])
    with pytest.raises(AppError, match=r"^broken\.nii\.gz: .*\.$"):
        segment(address, bad, tmp_path / "out")
    assert bad.name not in stored_files(cache)
    assert segment(address, tmp_path / "scan.nii.gz", tmp_path / "out")[1]["slices"] == 6


def test_addresses_are_not_fetched(address: str) -> None:
    client = Client(address, verbose=False)
    given = {"path": f"{address}config", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError):
        client.predict(given, 0.5, api_name="/segment")


def test_two_sessions_do_not_see_each_others_scan(address: str, tmp_path: Path) -> None:
    first, second = Client(address, verbose=False), Client(address, verbose=False)
    scan = write_scan(tmp_path / "first.nii.gz")
    first.predict(handle_file(scan), 0.5, api_name="/analyse_upload")
    assert "first.nii.gz" in first.predict(0.5, api_name="/describe")[0]
    assert second.predict(0.5, api_name="/describe") == ("", "")
    assert second.predict(1, 0.5, 0.5, SCORES, api_name="/draw") is None


def test_the_api_is_documented_with_types(address: str) -> None:
    endpoints = Client(address, verbose=False).view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/segment"}
    names = [one["parameter_name"] for one in endpoints["/segment"]["parameters"]]
    assert names == ["scan", "threshold"]


# --- What is uploaded as a Space ----------------------------------------------------------------


def test_the_header_of_the_space_agrees_with_its_requirements() -> None:
    header = (SPACE / "README.md").read_text("utf-8").split("---")[1]
    requirements = (SPACE / "requirements.txt").read_text("utf-8")
    pins = (SPACE.parent / "constraints.txt").read_text("utf-8")
    version = re.search(r"^sdk_version: (.+)$", header, re.MULTILINE)
    assert version
    assert f"gradio[mcp]=={version[1]}" in requirements
    assert f"gradio=={version[1]}\n" in pins
    assert f"rasalore=={__version__}\n" in requirements
    assert re.search(r"torch==[\d.]+", requirements)[0] in pins  # type: ignore[index]
    assert "app_file: app.py" in header
