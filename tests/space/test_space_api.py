"""The Space as programs meet it: uploads that are read once, and its API over loopback."""

import ast
import gc
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from dicom_files import write_series, zip_bomb, zip_files, zip_series
from odd_intensities import scans_without_a_brain, write_slices
from space import AFFINE, ask_as_agent, connect, left_in, segment, stored, write_scan

from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.scans.volumes import read_mask, read_volume

pytest.importorskip("gradio")
from analysis import Analysis
from gradio.exceptions import Error
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from handlers import SCORES
from scan_reading import REFUSE, TAKE
from traffic import stored_paths, sweep
from uploads import UploadRegister, own_upload

# --- Uploads --------------------------------------------------------------------------------------


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


def test_a_file_that_is_being_stored_again_is_not_deleted_meanwhile(tmp_path: Path) -> None:
    register, path = UploadRegister(), tmp_path / "folder" / "scan.nii"
    path.parent.mkdir()
    path.write_text("scan")
    register.add([str(path)])
    with register.storing():  # the same scan of someone else is on its way to the same path
        with register.reading(str(path)):
            pass
        register.add([str(path)])
    assert path.exists()
    with register.reading(str(path)):
        pass
    assert not path.parent.exists()


def test_an_address_stands_for_an_upload_of_this_app_and_for_nothing_else(tmp_path: Path) -> None:
    scan = tmp_path / "gradio" / "a b" / "scan.nii"
    for given in (str(scan), f"https://app.example/gradio_api/file={scan}".replace(" ", "%20")):
        assert own_upload(given, tmp_path / "gradio") == str(scan)
    for given in (
        "https://example.org/scan.nii",
        "https://example.org/gradio_api/file=",
        f"https://example.org/gradio_api/file={tmp_path}/secret.nii",
        f"http://example.org/gradio_api/file={tmp_path}/gradio/../secret.nii",
        f"{tmp_path}/secret.nii",
    ):
        with pytest.raises(Error, match="No address is fetched"):
            own_upload(given, tmp_path / "gradio")


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


# --- API over loopback ----------------------------------------------------------------------------


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
    assert left_in(cache) == []  # uploads once they were read, masks once they were fetched


def held_analyses() -> set[int]:
    """The identities of those in memory; open pages of other tests hold theirs."""
    gc.collect()
    return {id(thing) for thing in gc.get_objects() if type(thing) is Analysis}


def new_analyses(known: set[int], seconds: float = 20) -> set[int]:
    """Those that are still held once the server has let go of what it answered."""
    end = time.monotonic() + seconds
    while (held := held_analyses() - known) and time.monotonic() < end:
        time.sleep(0.2)
    return held


def test_fifty_requests_of_four_people_all_succeed_and_leave_neither_memory_nor_files(
    address: str, cache: Path, tmp_path: Path
) -> None:
    scans = [write_scan(tmp_path / f"scan{place}.nii.gz", place, 12, scale=5) for place in range(4)]
    clients = [connect(address, tmp_path) for _ in scans]

    def ask(place: int, count: int) -> list[Any]:
        scan = handle_file(scans[place])
        return [clients[place].predict(scan, 0.5, api_name="/segment") for _ in range(count)]

    known, memory = held_analyses(), []
    for count in (3, 10):  # of each person; the first few fill caches
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, range(4), [count] * 4))
        assert [{r["input"] for _, r in mine} for mine in answers] == [{s.name} for s in scans]
        assert not new_analyses(known)
        memory.append(psutil.Process().memory_info().rss)
    # A scan and its scores take 2 MB: forty that stay would take 80; what tests before freed, less.
    assert memory[1] - memory[0] < 60e6
    assert left_in(cache) == []


def test_what_nobody_fetches_is_deleted_by_age(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old.nii").write_text("scan")
    (tmp_path / "empty").mkdir()
    sweep(tmp_path, 900)
    assert stored(tmp_path) == ["empty", "folder", "old.nii"]
    sweep(tmp_path, -1)
    assert left_in(tmp_path, 0) == []


def test_a_bad_file_gives_one_line_and_the_app_lives_on(
    address: str, cache: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "broken.nii.gz"
    bad.write_bytes(write_scan(tmp_path / "scan.nii.gz").read_bytes()[:200])
    with pytest.raises(AppError, match=r"^broken\.nii\.gz: .*\.$"):
        segment(address, bad, tmp_path / "out")
    assert left_in(cache) == []
    assert segment(address, tmp_path / "scan.nii.gz", tmp_path / "out")[1]["slices"] == 6


def test_a_scan_of_another_sequence_is_answered_with_why_not_to_rely_on_it(
    address: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = segment(address, write_scan(tmp_path / "patient_t2.nii.gz"), out)[1]
    (reason,) = report["unfit_because"]
    assert "trained on flair, but the scan is t2" in reason
    keys = list(report)
    assert keys.index("unfit_because") < keys.index("millilitres")
    assert segment(address, write_scan(tmp_path / "a.nii.gz"), out)[1]["unfit_because"] == []


@pytest.mark.parametrize("name", scans_without_a_brain())
def test_a_scan_without_a_brain_is_refused(
    address: str, cache: Path, tmp_path: Path, name: str
) -> None:
    scan = write_slices(tmp_path / "scan.nii.gz", scans_without_a_brain()[name][0])
    with pytest.raises(AppError, match=r"^scan\.nii\.gz: a scan must show one brain"):
        segment(address, scan, tmp_path / "out")
    assert left_in(cache) == []


@pytest.mark.parametrize("threshold", [999, -1])
def test_a_threshold_outside_its_range_is_refused_and_the_scan_deleted(
    address: str, cache: Path, tmp_path: Path, threshold: float
) -> None:
    with pytest.raises(AppError, match=r"^threshold must lie in \[0, 1\], got"):
        segment(address, write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out", threshold)
    assert left_in(cache) == []


def bad_zips(folder: Path) -> dict[Path, str]:
    """Zips that must be refused, each with what the refusal says."""
    first, second = (
        write_series(folder / name, np.ones((8, 8, 4), np.int16), AFFINE) for name in "ab"
    )
    (folder / "text.zip").write_text("no zip")
    return {
        folder / "text.zip": "it is no zip archive",
        zip_bomb(folder / "bomb.zip", 5): "an archive may unpack to 300 times",
        zip_series(folder / "two.zip", first, second): "there must be one series",
        zip_files(folder / "none.zip", {"scan.nii": b"no DICOM"}): "there is no DICOM file",
        zip_files(folder / "out.zip", {"../../scan.dcm": b"x"}): "names in an archive must stay",
    }


def test_bad_zips_give_one_line_each_and_a_good_one_its_mask(
    address: str, model: Path, cache: Path, tmp_path: Path
) -> None:
    for path, sentence in bad_zips(tmp_path).items():
        with pytest.raises(AppError, match=rf"^{path.name}: {sentence}[^\n]*\.$"):
            segment(address, path, tmp_path / "out")
        assert left_in(cache) == []
    volume = read_volume(write_scan(tmp_path / "scan.nii.gz"))
    voxels = volume.slices.transpose(2, 1, 0).astype(np.int16)
    good = zip_series(tmp_path / "s.zip", write_series(tmp_path / "series", voxels, AFFINE))
    mask, report = segment(address, good, tmp_path / "out")
    expected = predict_volume(*load_model(str(model), "main", "cpu"), volume)
    assert 0 < expected.mask.sum() < expected.mask.size
    assert np.array_equal(read_mask(mask, volume), expected.mask)
    assert report["input"] == "s.zip" and left_in(cache) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1/scan.nii", "https://example.org/scan.nii.gz"])
def test_addresses_are_not_fetched(address: str, cache: Path, url: str) -> None:
    given = {"path": url, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError, match="No address is fetched"):
        connect(address).predict(given, 0.5, api_name="/segment")
    answer = httpx.get(f"{address}gradio_api/file={url}")
    assert (answer.status_code, answer.text) == (403, "No address is fetched.")
    assert left_in(cache) == []


def test_two_sessions_do_not_see_each_others_scan(address: str, tmp_path: Path) -> None:
    first, second = connect(address), connect(address)
    scan = write_scan(tmp_path / "first.nii.gz")
    given = [handle_file(scan), None, REFUSE, None, None, 0.5]
    first.predict(*given, api_name="/analyse_upload")
    assert "first.nii.gz" in first.predict(None, 0.5, api_name="/show")[0]
    assert second.predict(None, 0.5, api_name="/show")[:3] == ("", "", None)
    assert second.predict(1, 0.5, 0.5, SCORES, api_name="/draw") == ""


def test_the_api_is_documented_with_types(address: str) -> None:
    endpoints = connect(address).view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/segment"}
    parameters = endpoints["/segment"]["parameters"]
    named = {parameter["parameter_name"]: parameter for parameter in parameters}
    assert list(named) == ["scan", "threshold", "brain_mask", "strip", "model"]
    assert named["threshold"]["python_type"]["type"] == "float"
    optional = [name for name, its in named.items() if its["parameter_has_default"]]
    assert optional == ["threshold", "brain_mask", "strip", "model"]
    assert f"Literal['{REFUSE}', '{TAKE}'" in named["strip"]["python_type"]["type"]


def test_an_agent_is_told_why_not_to_rely_on_a_result_and_what_is_no_brain(
    address: str, cache: Path, tmp_path: Path
) -> None:
    _, answer = ask_as_agent(address, write_scan(tmp_path / "patient_t2.nii.gz"))
    text = answer.content[0].text
    assert text.index("trained on flair, but the scan is t2") < text.index("millilitres")
    slices, _ = next(iter(scans_without_a_brain().values()))
    _, answer = ask_as_agent(address, write_slices(tmp_path / "scan.nii.gz", slices))
    assert answer.isError and "a scan must show one brain" in answer.content[0].text
    sweep(cache, -1)  # the mask that was not fetched


def test_an_agent_finds_the_tool_and_gets_mask_and_report(
    address: str, model: Path, cache: Path, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    tools, answer = ask_as_agent(address, scan)
    assert len(tools) == 1
    assert "not a medical device" in tools[0].description
    fields = tools[0].inputSchema["properties"]
    assert fields["scan"]["description"].endswith("uploaded to this app.")
    assert fields["threshold"]["type"] == "number"
    assert fields["threshold"]["description"].endswith("null: the model's.")
    assert tools[0].inputSchema["required"] == ["scan"]
    assert not answer.isError, answer
    mask, report = ast.literal_eval(answer.content[0].text)
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(httpx.get(mask["url"]).content)
    volume = read_volume(scan)
    expected = predict_volume(*load_model(str(model), "main", "cpu"), volume)
    assert np.array_equal(read_mask(path, volume), expected.mask)
    assert report["input"] == "scan.nii.gz"
    assert left_in(cache) == []
