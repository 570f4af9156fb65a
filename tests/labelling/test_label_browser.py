"""The page in a real browser: twelve phantoms by keyboard alone, suggestions, access, errors."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import IN_CHROMIUM, SIZES, browsing, visiting
from labelled_scans import make_patients, serving
from space import save_model

from modeling_rasalore.data.label_table import read_label_table
from modeling_rasalore.data.labels import labels_by_patient
from modeling_rasalore.data.layouts import find_scanned_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.phantoms import write_phantoms
from modeling_rasalore.data.slices import read_images
from modeling_rasalore.labelling.desk import LabelDesk
from modeling_rasalore.labelling.journal import journal_of
from modeling_rasalore.labelling.marks import ranges_of
from modeling_rasalore.labelling.pictures import span_of_brain
from modeling_rasalore.labelling.session import LabelSession, labelling
from modeling_rasalore.labelling.suggestion import Adviser
from modeling_rasalore.scans.volumes import read_mask

pytestmark = IN_CHROMIUM


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Patient]:
    """Twelve synthetic patients, three of them healthy, with all four sequences."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 12, 0, 3, (48, 56, 48), 4.0, processes=1)
    return find_scanned_patients(folder)


def suggest_with(folder: Path) -> Adviser:
    from modeling_rasalore.prediction.loading import load_model

    return Adviser(*load_model(str(folder), device="cpu"))


@contextmanager
def served(patients: list[Patient], table: Path, model: Path | None = None) -> Iterator[str]:
    """The page's address."""
    with labelling(table, patients, "kim") as book:
        adviser = None if model is None else lambda: suggest_with(model)
        with serving(LabelDesk(LabelSession(book, patients), None, adviser)) as address:
            yield address


def visit(browser: Any, address: str, size: tuple[int, int] = SIZES[0]) -> Any:
    """A page in a browser session of its own."""
    return visiting(browser, address, "#pictures canvas", size)


class Keyboard:
    """Presses keys as a person does, and counts them; a key that is held is one press."""

    def __init__(self, page: Any) -> None:
        self.page, self.presses = page, 0

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.presses += 1

    def hold_until(self, index: int) -> None:
        """Hold an arrow key until a slice is shown."""
        shown = self.current()
        if shown == index:
            return
        key = "ArrowRight" if index > shown else "ArrowLeft"
        for _ in range(abs(index - shown)):
            self.page.keyboard.down(key)  # the first one presses it, the others repeat
        self.page.keyboard.up(key)
        self.presses += 1
        self.page.wait_for_selector(f"#filmstrip[aria-valuenow='{index}']")

    def current(self) -> int:
        return int(self.page.get_attribute("#filmstrip", "aria-valuenow"))


def true_labels(patient: Patient) -> dict[int, int]:
    """Slice -> 1 where the mask has any lesion, between the first and last slice with brain."""
    volume, images = read_images(patient, "flair")
    assert patient.mask
    first, last = span_of_brain(images, volume.path)
    lesion = read_mask(patient.mask, volume) > 0
    return {k: int(lesion[k].any()) for k in range(first, last + 1)}


def label_scan(page: Any, labels: dict[int, int]) -> int:
    """Label the scan that is shown from the truth; returns the key presses."""
    keyboard = Keyboard(page)
    ranges = ranges_of(index for index, label in labels.items() if label)
    for first, last in ranges:
        keyboard.hold_until(first)
        keyboard.press("s")
        keyboard.hold_until(last)
        keyboard.press("e")
    if not ranges:
        keyboard.press("h")
    keyboard.press("Enter")
    return keyboard.presses


def read(table: Path) -> dict[str, dict[int, int]]:
    rows = read_label_table(table)
    return labels_by_patient(rows, {row.volume: row.volume for row in rows.rows})


def test_twelve_phantoms_are_labelled_by_keyboard_alone(
    browser: Any, phantoms: list[Patient], tmp_path: Path
) -> None:
    truth = {patient.patient_id: true_labels(patient) for patient in phantoms}
    table, presses = tmp_path / "slice_labels.csv", {}
    with served(phantoms, table) as address, visit(browser, address) as page:
        for patient_id, labels in truth.items():
            page.wait_for_selector(f"#scan >> text={patient_id}")
            presses[patient_id] = label_scan(page, labels)
        page.wait_for_selector("#status >> text=Nothing is left to label")
        assert "12 of 12" in page.inner_text("#progress")
    assert read(table) == truth
    ranges = {
        name: len(ranges_of(k for k in labels if labels[k])) for name, labels in truth.items()
    }
    assert sorted(set(ranges.values()))[:2] == [0, 1]
    assert max(presses[name] for name in truth if ranges[name] == 1) <= 6
    assert {presses[name] for name in truth if ranges[name] == 0} == {2}


def test_keys_that_are_typed_fast_reach_the_scan_that_was_shown(
    browser: Any, phantoms: list[Patient], tmp_path: Path
) -> None:
    table = tmp_path / "slice_labels.csv"
    with served(phantoms, table) as address, visit(browser, address) as page:
        for key in ("h", "Enter", "s", "ArrowRight", "e", "Enter", "h", "Enter"):
            page.keyboard.press(key)  # without waiting for anything
        page.wait_for_selector("#progress >> text=3 of 12")
    labelled = read(table)
    first, second, third = (labelled[patient.patient_id] for patient in phantoms[:3])
    assert set(first.values()) == set(third.values()) == {0}
    lowest = min(second)
    assert [k for k, label in second.items() if label] == [lowest, lowest + 1]


def test_undo_doubt_and_buttons(browser: Any, tmp_path: Path) -> None:
    patients = make_patients(tmp_path / "scans")
    table = tmp_path / "slice_labels.csv"
    with served(patients, table) as address, visit(browser, address) as page:
        page.click("text=Whole scan healthy")
        page.keyboard.press("u")
        page.wait_for_selector("#status >> text=Unsure of 2")
        page.keyboard.press("Enter")
        page.wait_for_selector("#scan >> text=bob")
        page.keyboard.press("Enter")
        page.wait_for_selector("#problem >> text=H says that the whole scan is healthy")
        page.keyboard.press("Control+z")
        page.wait_for_selector("#scan >> text=ann")
        page.click("#filmstrip div:nth-child(4)")
        assert page.get_attribute("#filmstrip", "aria-valuenow") == "5"
    assert read(table) == {"ann": dict.fromkeys(range(3, 12), 0)}


def test_window_and_level_follow_a_drag(browser: Any, tmp_path: Path) -> None:
    look = "document.querySelector('#pictures canvas').style.filter"
    with (
        served(make_patients(tmp_path / "scans"), tmp_path / "t.csv") as address,
        visit(browser, address) as page,
    ):
        before = page.evaluate(look)
        page.mouse.move(400, 300)
        page.mouse.down()
        page.mouse.move(500, 340)
        page.mouse.up()
        assert page.evaluate(look) != before
        page.dblclick("#pictures canvas >> nth=0")
        assert page.evaluate(look) == before


def test_an_unreadable_scan_is_listed_and_the_page_goes_on(browser: Any, tmp_path: Path) -> None:
    patients = make_patients(tmp_path / "scans")
    next((tmp_path / "scans").glob("ann/*")).write_bytes(b"no scan")
    table = tmp_path / "slice_labels.csv"
    with served(patients, table) as address, visit(browser, address) as page:
        page.wait_for_selector("#scan >> text=bob")
        assert "ann" in page.inner_text("#skipped")
        for key in ("h", "Enter", "h", "Enter"):
            page.keyboard.press(key)
        page.wait_for_selector("#status >> text=Nothing is left to label")
    assert sorted(read(table)) == ["bob", "cid"]


def test_a_suggestion_is_off_until_it_is_asked_for_and_then_recorded(
    browser: Any, tmp_path: Path
) -> None:
    patients = make_patients(tmp_path / "scans")
    table, model = tmp_path / "slice_labels.csv", save_model(tmp_path / "model")
    drawn = "document.querySelector('canvas.tint').getContext('2d').getImageData(0, 0, 99, 99).data"
    with served(patients, table, model) as address, visit(browser, address) as page:
        assert not page.evaluate(f"{drawn}.some((value) => value)")
        page.keyboard.press("s")
        page.keyboard.press("t")
        page.wait_for_selector("[data-key=t][aria-pressed=true]")
        page.keyboard.press("ArrowRight")
        assert page.evaluate(f"{drawn}.some((value) => value)")
        page.keyboard.press("e")
        page.keyboard.press("Enter")
        page.wait_for_selector("#scan >> text=bob")
        page.wait_for_selector("[data-key=t][aria-pressed=false]")
        page.keyboard.press("h")
        page.wait_for_selector("#status >> text=healthy")
    lines = [json.loads(line) for line in journal_of(table).read_text().splitlines()][1:]
    assert [line["suggestion"] for line in lines] == [False, True, True, False]


def test_a_server_that_ended_is_said(browser: Any, tmp_path: Path) -> None:
    table = tmp_path / "slice_labels.csv"
    patients = make_patients(tmp_path / "scans")
    with (
        ExitStack() as server,
        visit(browser, server.enter_context(served(patients, table))) as page,
    ):
        page.keyboard.press("s")
        page.wait_for_selector("#status >> text=A lesion begins")
        server.close()
        page.keyboard.press("e")
        page.wait_for_selector("#problem >> text=The server does not answer")
    assert read(table) == {"ann": {2: 1}}


def test_a_page_of_another_name_is_refused(tmp_path: Path) -> None:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    with served(make_patients(tmp_path / "scans"), tmp_path / "t.csv") as address:
        with pytest.raises(HTTPError, match="400"):
            urlopen(Request(f"{address}label/open", headers={"Host": "elsewhere.org"}))
        plain = Request(f"{address}label/press", b"{}", {"Content-Type": "text/plain"})
        with pytest.raises(HTTPError, match="422"):
            urlopen(plain)


@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_the_screen_is_accessible_and_loads_nothing_from_elsewhere(
    browser: Any, phantoms: list[Patient], tmp_path: Path, size: tuple[int, int]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with (
        served(phantoms[:3], tmp_path / "t.csv") as address,
        visit(browser, address, size) as page,
    ):
        elsewhere: list[str] = []
        page.on("request", lambda request: elsewhere.append(request.url))
        page.reload()
        page.wait_for_selector("#pictures canvas")
        page.keyboard.press("s")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("e")
        page.wait_for_selector("#status >> text=Lesion in slices")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= size[0]
        assert "not a medical device" in page.inner_text("#warning")
        pictures = page.query_selector_all("#pictures figure")
        assert [figure.inner_text() for figure in pictures] == ["FLAIR", "T1", "T1CE", "T2"]
        serious = [
            (rule["id"], node["html"][:200])
            for rule in axe.Axe().run(page).response["violations"]
            for node in rule["nodes"]
            if rule["impact"] in ("serious", "critical")
        ]
        assert serious == []
        assert [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))] == []
