"""The Space without a browser: its handlers, and its API over loopback."""

import ast
import asyncio
import base64
import gc
import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from space import SPACE, make_handlers, save_model, serving, stored, write_scan

from modeling_rasalore import __version__
from modeling_rasalore.model_loading import load_model
from modeling_rasalore.prediction import VolumePrediction, predict_volume
from modeling_rasalore.volumes import read_mask, read_volume, write_nifti

pytest.importorskip("gradio")
from analysis import Analysis, measure_findings, read_scan
from drawing import draw_slice, write_table
from gradio.exceptions import Error
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from handlers import DOUBT, SCORES, Handlers
from traffic import stored_paths, sweep
from uploads import UploadRegister, own_upload


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
def address(model: Path, cache: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        with serving(model) as address:
            yield address


def connect(address: str, out: Path | None = None) -> Client:
    """A client that waits longer than its 5 seconds: the machine may be busy."""
    return Client(
        address,
        verbose=False,
        download_files=str(out) if out else False,
        httpx_kwargs={"timeout": 120},
    )


def segment(address: str, scan: Path, out: Path, threshold: float = 0.5) -> tuple[str, Any]:
    client = connect(address, out)
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


def test_the_3_d_view_gets_the_scan_and_its_mask_on_one_grid(
    handlers: Handlers, analysis: Analysis, tmp_path: Path
) -> None:
    packed = handlers.pack_view(analysis, 0.5)
    paths = [tmp_path / file["name"] for file in packed]
    for path, file in zip(paths, packed, strict=True):
        path.write_bytes(base64.b64decode(file["content"]))
    greys = read_volume(paths[0])
    assert np.array_equal(greys.affine, analysis.scan.volume.affine)
    expected = np.clip(analysis.images / analysis.white * 255, 0, 255)
    assert np.abs(greys.slices - expected).max() <= 0.5
    assert np.array_equal(read_mask(paths[1], greys), analysis.at(0.5).mask)


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
    assert stored(cache) == []  # uploads once they were read, masks once they were fetched


def test_fifty_requests_of_four_people_all_succeed_and_leave_neither_memory_nor_files(
    address: str, cache: Path, tmp_path: Path
) -> None:
    scans = [write_scan(tmp_path / f"scan{place}.nii.gz", place, 12, scale=5) for place in range(4)]
    clients = [connect(address, tmp_path) for _ in scans]

    def ask(place: int, count: int) -> list[Any]:
        scan = handle_file(scans[place])
        return [clients[place].predict(scan, 0.5, api_name="/segment") for _ in range(count)]

    memory = []
    for count in (3, 10):  # of each person; the first few fill caches
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, range(4), [count] * 4))
        assert [{r["input"] for _, r in mine} for mine in answers] == [{s.name} for s in scans]
        gc.collect()
        memory.append(psutil.Process().memory_info().rss)
        held = sum(type(thing) is Analysis for thing in gc.get_objects())
    assert held <= 1  # the one of this module's fixture
    # A scan and its scores take 2 MB: forty that stay would take 80.
    assert memory[1] - memory[0] < 40e6
    assert stored(cache) == []


def test_what_nobody_fetches_is_deleted_by_age(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old.nii").write_text("scan")
    (tmp_path / "empty").mkdir()
    sweep(tmp_path, 900)
    assert stored(tmp_path) == ["empty", "folder", "old.nii"]
    sweep(tmp_path, -1)
    assert stored(tmp_path) == []


def test_a_bad_file_gives_one_line_and_the_app_lives_on(
    address: str, cache: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "broken.nii.gz"
    bad.write_bytes(write_scan(tmp_path / "scan.nii.gz").read_bytes()[:200])
    with pytest.raises(AppError, match=r"^broken\.nii\.gz: .*\.$"):
        segment(address, bad, tmp_path / "out")
    assert stored(cache) == []
    assert segment(address, tmp_path / "scan.nii.gz", tmp_path / "out")[1]["slices"] == 6


@pytest.mark.parametrize("url", ["http://127.0.0.1/scan.nii", "https://example.org/scan.nii.gz"])
def test_addresses_are_not_fetched(address: str, cache: Path, url: str) -> None:
    given = {"path": url, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError, match="No address is fetched"):
        connect(address).predict(given, 0.5, api_name="/segment")
    answer = httpx.get(f"{address}gradio_api/file={url}")
    assert (answer.status_code, answer.text) == (403, "No address is fetched.")
    assert stored(cache) == []


def test_two_sessions_do_not_see_each_others_scan(address: str, tmp_path: Path) -> None:
    first, second = connect(address), connect(address)
    scan = write_scan(tmp_path / "first.nii.gz")
    first.predict(handle_file(scan), 0.5, api_name="/analyse_upload")
    assert "first.nii.gz" in first.predict(0.5, api_name="/describe")[0]
    assert second.predict(0.5, api_name="/describe") == ("", "")
    assert second.predict(1, 0.5, 0.5, SCORES, api_name="/draw") is None


def test_the_api_is_documented_with_types(address: str) -> None:
    endpoints = connect(address).view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/segment"}
    parameters = endpoints["/segment"]["parameters"]
    assert [one["parameter_name"] for one in parameters] == ["scan", "threshold"]
    assert parameters[1]["python_type"]["type"] == "float"


def test_an_agent_finds_the_tool_and_gets_mask_and_report(
    address: str, model: Path, cache: Path, tmp_path: Path
) -> None:
    mcp = pytest.importorskip("mcp", reason="the endpoint for agents needs mcp")
    from mcp.client.streamable_http import streamable_http_client

    scan = write_scan(tmp_path / "scan.nii.gz")

    async def talk() -> tuple[Any, Any]:
        route = f"{address}gradio_api/mcp/"
        async with (
            streamable_http_client(route) as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            with scan.open("rb") as file:
                sent = httpx.post(f"{address}gradio_api/upload", files={"files": file})
            given = {"scan": f"{address}gradio_api/file={sent.json()[0]}", "threshold": 0.5}
            return tools, await session.call_tool(tools[0].name, given)

    tools, answer = asyncio.run(talk())
    assert len(tools) == 1
    assert "not a medical device" in tools[0].description
    fields = tools[0].inputSchema["properties"]
    assert fields["scan"]["description"].endswith("uploaded to this app.")
    assert fields["threshold"]["type"] == "number"
    assert fields["threshold"]["description"].endswith("0.5 is usual.")
    assert not answer.isError, answer
    mask, report = ast.literal_eval(answer.content[0].text)
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(httpx.get(mask["url"]).content)
    volume = read_volume(scan)
    expected = predict_volume(*load_model(str(model), "main", "cpu"), volume)
    assert np.array_equal(read_mask(path, volume), expected.mask)
    assert report["input"] == "scan.nii.gz"
    assert stored(cache) == []


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


def test_the_3_d_viewer_is_its_authors_file_and_comes_with_its_licences() -> None:
    viewer = (SPACE / "niivue" / "niivue.umd.js").read_bytes()
    digest = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"  # npm, 0.69.0
    assert hashlib.sha256(viewer).hexdigest() == digest
    licences = (SPACE / "niivue" / "LICENSES.txt").read_text("utf-8")
    assert licences.count("Permission is hereby granted") >= 10
    assert "Copyright (c) 2021, Niivue" in licences
