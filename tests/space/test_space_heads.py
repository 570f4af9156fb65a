"""Whole heads, objects and brain masks, given to the Space by hand, by program and by agent."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from heads import make_bottle, make_brain, make_head, write_slices
from space import ask_as_agent, left_in, segment

from modeling_rasalore.brains.extractors import EXTRACTORS
from modeling_rasalore.brains.reading import read_brain
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.scans.volumes import read_mask

pytest.importorskip("gradio")
from analysis import Analyst, say_nothing
from gradio_client.exceptions import AppError
from handlers import Handlers
from model_choice import Models
from scan_reading import REFUSE, TAKE, offer_ways, read_scan
from traffic import sweep

BRAIN, HEAD = make_brain(61, "flair"), make_head(61, "flair")
SENTENCE = r"^p1_flair\.nii\.gz: a scan must show the brain alone, but it shows [\d,]+ mL with a "


@pytest.fixture
def head(tmp_path: Path) -> Path:
    return write_slices(tmp_path / "p1_flair.nii.gz", HEAD)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    return write_slices(tmp_path / "masks" / "brain.nii.gz", (BRAIN > 0).astype(np.uint8))


def test_a_head_is_refused_in_the_words_of_the_command_line_with_the_ways_out_of_the_page(
    head: Path,
) -> None:
    with pytest.raises(ValueError, match=SENTENCE) as error:
        read_scan(head, "flair")
    with pytest.raises(ValueError, match="a scan must show the brain alone") as command_line:
        read_brain(head)
    said, of_command_line = (str(e.value).partition("; ")[0] for e in (error, command_line))
    assert of_command_line.endswith(said)
    told = str(error.value)
    assert "give a mask of the brain" in told and f'choose "{TAKE}"' in told
    assert "--" not in told and str(head.parent) not in told


@pytest.mark.parametrize(
    ("size", "problem"), [((180, 45), "times as tall as wide"), ((120, 80), "as a test object")]
)
def test_a_knee_and_a_bottle_are_refused(
    size: tuple[int, int], problem: str, tmp_path: Path
) -> None:
    path = write_slices(tmp_path / "p1_flair.nii.gz", make_bottle(*size))
    with pytest.raises(ValueError, match=f"^p1_flair.nii.gz: a scan must.*{problem}"):
        read_scan(path, "flair")


def test_with_its_mask_a_head_gives_the_brain_of_the_command_line_and_says_so(
    handlers: Handlers, head: Path, mask: Path
) -> None:
    _, scan = handlers.models.read(head, brain_mask=mask)
    assert np.array_equal(scan.volume.slices, read_brain(head, brain_mask=mask).slices)
    analysis = handlers.usual.analyse(scan, 0.5, say_nothing)
    assert analysis.report(0.5, "")["brain_source"] == "the mask brain.nii.gz"
    assert "told by the mask brain.nii.gz" in handlers.describe(analysis, 0.5)[0]
    assert scan.source["unfit_because"] == []


def test_a_mask_of_another_grid_is_refused_without_a_folder(
    handlers: Handlers, head: Path, tmp_path: Path
) -> None:
    other = write_slices(tmp_path / "masks" / "small.nii.gz", np.ones((4, 5, 6), np.uint8))
    with pytest.raises(ValueError, match=r"^small\.nii\.gz: a mask needs the shape of its scan"):
        handlers.models.read(head, brain_mask=other)


def test_a_head_taken_as_a_brain_has_a_red_block_that_says_who_chose_that(
    handlers: Handlers, head: Path
) -> None:
    _, scan = handlers.models.read(head, way=TAKE)
    reason, *_ = scan.source["unfit_because"]
    assert reason.startswith("taken for a brain alone as you chose, although it shows")
    analysis = handlers.usual.analyse(scan, 0.5, say_nothing)
    html = handlers.describe(analysis, 0.5)[0]
    assert html.index("taken for a brain alone") < html.index(" mL ")


def test_a_mask_and_another_way_exclude_each_other_and_unknown_ways_are_named(
    handlers: Handlers, head: Path, mask: Path
) -> None:
    with pytest.raises(ValueError, match=r"a brain mask and .* exclude each other; give one"):
        handlers.models.read(head, brain_mask=mask, way=TAKE)
    with pytest.raises(ValueError, match=f"strip must be one of {REFUSE}, {TAKE}.*, got bet2"):
        handlers.models.read(head, way="bet2")


def test_only_installed_programs_for_the_sequences_at_hand_are_offered_and_used(
    analyst: Analyst, head: Path, mask: Path, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert offer_ways(["flair"]) == [REFUSE, TAKE]
    code = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"

    def words(_: Path, made: Path) -> list[str]:
        return [sys.executable, "-c", code, str(mask), str(made)]

    for name in ("deepbet", "synthstrip"):  # the first is made for t1 alone
        program = replace(EXTRACTORS[name], command="numpy", is_package=True, words=words)
        monkeypatch.setitem(EXTRACTORS, name, program)
    assert offer_ways(["flair"]) == [REFUSE, TAKE, "extract with synthstrip"]
    assert "extract with deepbet" in offer_ways(["flair", "t1"])
    models = Models(list(handlers.models.offers.values()))
    with pytest.raises(ValueError, match='choose "extract with synthstrip", or choose "take it'):
        models.read(head)
    _, scan = models.read(head, way="extract with synthstrip")
    assert scan.source["brain_source"] == "the mask of synthstrip"
    assert np.array_equal(scan.images > 0, BRAIN > 0)


def test_a_failing_program_is_told_without_options_of_the_command_line(
    head: Path, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = replace(
        EXTRACTORS["synthstrip"],
        command="numpy",
        is_package=True,
        words=lambda *_: [sys.executable, "-c", "raise SystemExit('no licence')"],
    )
    monkeypatch.setitem(EXTRACTORS, "synthstrip", fails)
    models = Models(list(handlers.models.offers.values()))
    with pytest.raises(ValueError, match=r"synthstrip failed: no licence; .* or give a brain mask"):
        models.read(head, way="extract with synthstrip")


# --- Through a server -----------------------------------------------------------------------------


def test_a_program_is_refused_a_head_and_given_its_brain_with_the_mask(
    address: str, analyst: Analyst, cache: Path, head: Path, mask: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(AppError, match=SENTENCE):
        segment(address, head, out)
    assert left_in(cache) == []
    made, report = segment(address, head, out, brain_mask=mask)
    volume = read_brain(head, brain_mask=mask)
    expected = predict_volume(analyst.model, analyst.processor, volume).mask
    assert expected.sum() > 0 and np.array_equal(read_mask(made, volume), expected)
    assert report["brain_source"] == "the mask brain.nii.gz"
    assert left_in(cache) == []  # the mask neither


def test_what_is_no_choice_is_refused_and_its_files_are_deleted(
    address: str, cache: Path, head: Path, mask: Path, tmp_path: Path
) -> None:
    for words, sentence in (
        ({"strip": "bet2"}, "strip must be one of"),
        ({"model": "another"}, "model must be one of"),
    ):
        with pytest.raises(AppError, match=sentence):
            segment(address, head, tmp_path, brain_mask=mask, **words)
        assert left_in(cache) == []


def test_an_agent_is_refused_a_head_and_given_its_brain_with_the_mask(
    address: str, cache: Path, head: Path, mask: Path
) -> None:
    _, answer = ask_as_agent(address, head)
    assert answer.isError and "as a head with skull has" in answer.content[0].text
    assert "give a mask of the brain with the scan" in answer.content[0].text
    _, answer = ask_as_agent(address, head, mask)
    assert not answer.isError and "the mask brain.nii.gz" in answer.content[0].text
    sweep(cache, -1)  # the mask that was not fetched
