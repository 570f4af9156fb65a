"""The page without a server in a real browser: the package's masks, offline, within its limits."""

import gzip
import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import odd_geometry
import pytest
from chromium import IN_CHROMIUM, visiting
from crafted_headers import REFUSED
from heads import make_head, write_slices
from space_pages import download, violations
from static_page import (
    READY,
    SOURCE,
    analyse,
    compare_with_package,
    read_in_browser,
    serving_page,
)

from modeling_rasalore.brains.anatomy import measure_anatomy
from modeling_rasalore.brains.sequences import measure_profile
from modeling_rasalore.data.phantoms import write_phantoms
from modeling_rasalore.packaged import EXAMPLE_SCAN
from modeling_rasalore.scans.volume_writing import GEOMETRY_FIELDS
from modeling_rasalore.scans.volumes import read_volume

pytestmark = IN_CHROMIUM
SIZES = [(1280, 800), (390, 844)]
MOST_DIFFERENT = 1e-3  # share of a mask's voxels
LARGEST_LOAD = 15e6  # bytes
# File in onnxruntime/ -> SHA-256 of what it holds, which is a file of the npm package.
VENDORED = {
    "ort.wasm.bundle.min.mjs": ("11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"),
    "ort-wasm-simd-threaded.wasm.gz": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
}
IMPORT = """Promise.all(['nifti', 'anatomy', 'recognition', 'sequence'].map(
  (name) => import(`/${name}.js`)))"""
MEASURE = """async (content) => {
  const { measureAnatomy, sampleScan } = await import('/anatomy.js');
  const { measureProfile } = await import('/recognition.js');
  const { readScan, unpack } = await import('/nifti.js');
  const given = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const sample = sampleScan(readScan(await unpack(given)));
  return [Object.values(measureAnatomy(sample)), measureProfile(sample)];
}"""


@pytest.fixture(scope="module")
def static_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_page(tmp_path_factory.mktemp("static") / "page") as address:
        yield address


@pytest.fixture(scope="module")
def page(browser: Any, static_address: str) -> Iterator[Any]:
    """A page whose network was cut once it had loaded."""
    with visiting(browser, static_address, READY, SIZES[0]) as page:
        page.evaluate(IMPORT)  # what is imported once is not asked for again
        page.context.set_offline(True)
        yield page


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of a healthy person and two with a tumour, at 3 mm."""
    folder = tmp_path_factory.mktemp("phantoms")
    return write_phantoms(folder, 3, 0, 1, (64, 75, 64), 3.0, processes=1)


# --- The same as the package --------------------------------------------------------------------
@pytest.mark.parametrize(("number", "sequence"), [(0, "flair"), (1, "t2"), (2, "flair")])
def test_a_phantoms_mask_is_the_packages(
    page: Any, phantoms: list[Path], number: int, sequence: str, tmp_path: Path
) -> None:
    (scan,) = phantoms[number].glob(f"*_{sequence}.nii.gz")
    difference = compare_with_package(page, scan, sequence, tmp_path)
    assert difference["share"] <= MOST_DIFFERENT and difference["millilitres"] < 0.1
    assert difference["voxels"] > 0 or number == 0  # the healthy one
    assert not page.locator(".unfit").count()


def test_a_real_scans_mask_is_the_packages(page: Any, brats2021: Path, tmp_path: Path) -> None:
    scan = sorted(brats2021.glob("*/*_flair.nii.gz"))[0]
    difference = compare_with_package(page, scan, "flair", tmp_path)
    assert difference["share"] <= MOST_DIFFERENT and difference["voxels"] > 0


def odd_files(folder: Path) -> dict[str, Path]:
    """Files that say in odd ways where their voxels lie, and how they are stored."""
    make = odd_geometry
    cases = {
        "tilted": make.write_tilted,
        "long quaternion": lambda f: make.write_long_quaternion(f, 5e-6),
        "unusable sform": lambda f: make.write_unusable_sform(f, [0.0] * 12),
        "other sizes": lambda f: make.write_other_sizes(f, 1),
        "mirrored sform": make.write_mirrored_sform,
        "millimetres called metres": lambda f: make.write_unit(f, 1),
        "five axes": make.write_five_axes,
        "no form": lambda f: make.overwrite(
            make.write_two_forms(f / "none.nii"), sform_code=[0], qform_code=[0]
        ),
        "no size of volumes": make.write_no_volumes,
    }
    for name in cases:
        (folder / name).mkdir()
    paths = {name: write(folder / name) for name, write in cases.items()}
    rng = np.random.default_rng(0)
    for dtype in ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"):
        for order in "<>":
            name = f"{'little' if order == '<' else 'big'}_{dtype}"
            paths[name] = write_turned(folder / f"{name}.nii.gz", order + dtype, rng)
    return paths


def write_turned(path: Path, dtype: str, rng: np.random.Generator) -> Path:
    """A scan of this type and byte order, turned, sheared, its axes in random order; scaled."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[rng.permutation(3)] * rng.choice((-1, 1), 3)
    turn = np.linalg.qr(np.eye(3) + rng.normal(0, 0.15, (3, 3)))
    affine[:3, :3] = turn[0] @ np.diag(np.sign(np.diag(turn[1]))) @ affine[:3, :3]
    affine[:3, :3] *= rng.uniform(2, 4, 3)
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    voxels = rng.integers(0, 120, (15, 17, 13)).astype(dtype[1:])
    kind = nib.Nifti2Image if rng.random() < 0.3 else nib.Nifti1Image
    header = kind.header_class(endianness=dtype[0])
    header.set_data_dtype(np.dtype(dtype))
    image = kind(voxels, affine, header)
    if rng.random() < 0.5:
        image.header.set_slope_inter(1.7, -3)
    nib.save(image, path)
    return path


def test_files_are_read_as_the_package_reads_them(page: Any, tmp_path: Path) -> None:
    for name, path in odd_files(tmp_path).items():
        volume, read = read_volume(path), read_in_browser(page, path)
        assert "refused" not in read, (name, read)
        slices = np.frombuffer(b64decode(read["slices"]), np.float32).reshape(read["shape"])
        assert np.array_equal(slices, volume.slices), name
        assert read["spacing"] == pytest.approx(volume.spacing, rel=1e-6), name
        frame = volume.geometry.slice_affine[:3]
        assert np.allclose(read["frame"], frame, atol=1e-4), name
        assert len(read["warnings"]) <= len(volume.warnings) + 1, (name, read["warnings"])


def test_masks_lie_where_their_scan_does(page: Any, tmp_path: Path) -> None:
    for name, path in odd_files(tmp_path).items():
        mask = tmp_path / "mask.nii"
        mask.write_bytes(b64decode(read_in_browser(page, path)["mask"]))
        scan, written = read_volume(path), nib.load(mask)
        voxels = scan.geometry.in_own_order(scan.slices)
        assert np.array_equal(np.asarray(written.dataobj), voxels > 100), name
        assert written.get_data_dtype() == np.uint8
        for field in GEOMETRY_FIELDS:
            assert np.allclose(written.header[field], scan.header[field], 1e-6), (name, field)
        assert written.header["descrip"].item() == b"rasalore result"


def test_hostile_and_damaged_files_are_refused_in_one_sentence(page: Any, tmp_path: Path) -> None:
    for case, (name, make, _) in REFUSED.items():
        is_large, by_content = "GiB" in case, case in ("plain file named .gz", "gzip named .nii")
        if is_large or by_content or not name.endswith((".nii", ".nii.gz")):
            continue  # the page goes by a file's content, not by its ending
        path = tmp_path / name
        path.write_bytes(make())
        read = read_in_browser(page, path)
        assert read.get("kind") == "ScanError", (case, read)
        assert read["refused"].endswith(".") and "\n" not in read["refused"], (case, read)


def test_shape_and_depths_of_a_brain_are_measured_as_in_the_package(
    page: Any, tmp_path: Path
) -> None:
    head = write_slices(tmp_path / "head.nii.gz", make_head(0, "t2"))
    for path in (EXAMPLE_SCAN, head):
        volume = read_volume(path)
        figures, profile = page.evaluate(MEASURE, b64encode(path.read_bytes()).decode())
        anatomy = measure_anatomy(volume.slices, volume.spacing)
        assert anatomy is not None
        assert figures == pytest.approx(list(vars(anatomy).values()), rel=1e-4)
        expected = measure_profile(volume.slices, volume.spacing)
        assert expected is not None and profile == pytest.approx(expected.tolist(), abs=1e-4)


# --- What it says ---------------------------------------------------------------------------------
def test_an_error_stays_in_one_sentence_and_the_next_scan_is_read(
    page: Any, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged_t2.nii.gz"
    damaged.write_bytes(EXAMPLE_SCAN.read_bytes()[:5000])
    page.set_input_files("#file", str(damaged))
    page.wait_for_selector("#chosen >> text=damaged_t2.nii.gz")
    page.click("#analyse")
    message = page.wait_for_selector("#message:not([hidden])").inner_text()
    assert message.startswith("damaged_t2.nii.gz: ") and "unpack" in message
    assert page.evaluate("document.activeElement.id") == "message"
    assert not page.is_visible("#results") and violations(page) == set()
    analyse(page, EXAMPLE_SCAN, "t2")
    assert not page.is_visible("#message")


def test_a_head_and_another_sequence_are_told_in_red_above_the_numbers(
    page: Any, tmp_path: Path
) -> None:
    analyse(page, EXAMPLE_SCAN, "flair")  # its name and its image say T2
    words = page.inner_text(".unfit")
    assert "name says T2, but it was read as FLAIR" in words
    assert "image looks like a T2, but it was read as FLAIR" in words
    block, headline = (page.locator(name).bounding_box() for name in (".unfit", "#headline"))
    assert block["y"] + block["height"] <= headline["y"] and violations(page) == set()
    analyse(page, write_slices(tmp_path / "head_t2.nii.gz", make_head(0, "t2")), "t2")
    assert "as a head with skull has" in page.inner_text(".unfit")


def test_the_sequence_is_guessed_from_the_name_or_asked_for(page: Any, tmp_path: Path) -> None:
    guesses = {
        "p1_flair.nii.gz": "flair",
        "p1_T2_FLAIR.nii": "flair",
        "sub-1_T2w.nii.gz": "t2",
        "p1-t1ce.nii.gz": "t1ce",
        "x_T1w.nii": "t1",
        "scan.nii.gz": None,
    }
    script = "async (name) => (await import('/sequence.js')).guessSequence(name)"
    assert {name: page.evaluate(script, name) for name in guesses} == guesses
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(EXAMPLE_SCAN.read_bytes())
    page.set_input_files("#file", str(scan))
    page.wait_for_selector("#chosen >> text=scan.nii.gz")
    assert page.is_disabled("#analyse")
    assert "does not tell its sequence" in page.inner_text("#guess")
    page.check("[name=sequence][value=t2]")
    assert page.is_enabled("#analyse")


def test_a_run_is_stopped_and_says_so(page: Any) -> None:
    page.click("#example")
    page.wait_for_selector("#slices-told >> text=s left")
    page.click("#stop")
    assert "Stopped: nothing of this scan" in page.wait_for_selector("#message").inner_text()
    assert not page.is_visible("#results")


def test_presets_and_threshold_change_mask_findings_and_numbers(page: Any, tmp_path: Path) -> None:
    analyse(page, EXAMPLE_SCAN, "t2")
    first = json.loads(download(page, "numbers", tmp_path).read_text("utf-8"))
    before = page.inner_text("#headline")
    page.check("#presets input >> nth=1")
    page.wait_for_function(
        "before => document.querySelector('#headline').textContent !== before", arg=before
    )
    second = json.loads(download(page, "numbers", tmp_path).read_text("utf-8"))
    assert second["threshold"] < first["threshold"]
    assert second["millilitres"] == pytest.approx(first["millilitres_at_rates"]["0.05"])
    assert second["millilitres"] > first["millilitres"]
    assert sum(row["millilitres"] for row in second["findings"]) == pytest.approx(
        second["millilitres"]
    )
    page.click("#presets-box summary")
    page.focus("#threshold")
    page.keyboard.press("End")
    page.wait_for_selector("#headline >> text=No anomaly found. This does not exclude disease.")


# --- The page itself ------------------------------------------------------------------------------
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_it_loads_little_and_shows_a_scan_on_one_screen_without_a_network(
    browser: Any, static_address: str, size: tuple[int, int]
) -> None:
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    context.set_default_timeout(120_000)
    page, answers = context.new_page(), list[Any]()
    page.on("response", lambda answer: answers.append(answer))
    page.goto(static_address)
    page.wait_for_selector(READY)
    load = sum(int(answer.headers["content-length"]) for answer in answers)
    assert 5e6 < load < LARGEST_LOAD
    assert {answer.status for answer in answers} == {200}
    assert all(answer.url.startswith((static_address, "data:")) for answer in answers)
    assert violations(page) == set()
    context.set_offline(True)
    page.focus("#example")
    page.keyboard.press("Enter")
    page.wait_for_selector("#planes[data-volumes]")
    assert page.evaluate("document.activeElement.id") == "result"
    warning, headline, picture, slider = (
        page.locator(name).bounding_box()
        for name in ("#warning", "#headline", "#planes", "#plane-slice")
    )
    assert warning["y"] == 0 and headline["y"] >= warning["height"]
    assert picture["y"] > headline["y"] and picture["height"] > 0.4 * size[1]
    assert slider["y"] + slider["height"] <= size[1]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= size[0]
    assert page.locator("#findings tr[aria-current]").count() == 1
    shown = page.locator("#planes").screenshot()
    page.keyboard.press("h")
    assert page.locator("#planes").screenshot() != shown
    assert violations(page) == set()
    context.close()


def test_vendored_files_are_those_of_the_npm_package() -> None:
    folder = SOURCE / "onnxruntime"
    contents = {name: (folder / name).read_bytes() for name in VENDORED}
    contents = {
        name: gzip.decompress(content) if name.endswith(".gz") else content
        for name, content in contents.items()
    }
    assert {name: hashlib.sha256(c).hexdigest() for name, c in contents.items()} == VENDORED
    assert "MIT License" in (folder / "LICENSE").read_text("utf-8")
