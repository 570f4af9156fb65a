"""slice_labels.csv from many programs: read right and said, or refused in one sentence."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import stage1
from label_files import HEAD, readable_tables, table
from prepare_slices import PrepareRecipe
from prepare_slices import main as prepare_slices

from modeling_rasalore.data.labels import count_edits, nearest_id
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.recipes import describe_script, load_recipe
from modeling_rasalore.scans.volume_writing import write_nifti

SLICES = 6
IDS = ("001", "002")
ROWS = [
    (name, index, "unhealthy" if index in (2, 3) else "healthy")
    for name in IDS
    for index in range(SLICES)
]
LABELS = {index: int(index in (2, 3)) for index in range(SLICES)}
TABLES = readable_tables(ROWS)


def write_scans(root: Path, ids: tuple[str, ...] = IDS, slices: int = SLICES) -> Path:
    """Return `root` with a scan per patient and no mask."""
    data = np.zeros((12, 10, slices), np.float32)
    data[1:-1, 1:-1] = np.arange(1, slices + 1)
    for name in ids:
        (root / name).mkdir(parents=True)
        write_nifti(root / name / f"{name}_t2.nii.gz", data, np.diag([-2.0, -2, 2, 1]))
    return root


def put_table(root: Path, content: bytes | str) -> Path:
    path = root / "slice_labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def prepare(root: Path) -> int:
    words = [f"root={root}", f"out={root.parent / 'slices'}", "processes=1"]
    return prepare_slices(load_recipe(PrepareRecipe, words))


def prepared_labels(root: Path) -> dict[str, dict[int, int]]:
    """Return the labels of a patient's slices in the files of train/prepare_slices.py."""
    assert prepare(root) == 0
    labels: dict[str, dict[int, int]] = {}
    for row in pq.read_table(root.parent / "slices" / "index.parquet").to_pylist():
        labels.setdefault(row["patient_id"], {})[row["slice_index"]] = row["label"]
    return labels


def refusal(root: Path, content: bytes | str) -> str:
    """Return the sentence with which both doors refuse a table; it names the file."""
    path = put_table(root, content)
    sentences = []
    for door in (find_patients, prepare):
        with pytest.raises(ValueError) as error:
            door(root)
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1] and str(path) in sentences[0] and "\n" not in sentences[0]
    assert len(sentences[0]) < len(str(path)) + 400
    return sentences[0]


@pytest.mark.parametrize("way", TABLES)
def test_one_table_written_in_many_ways_gives_one_set_of_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    content, said = TABLES[way]
    path = put_table(write_scans(tmp_path / "scans"), content)
    patients = find_patients(tmp_path / "scans")
    assert {p.patient_id: p.slice_labels for p in patients} == dict.fromkeys(IDS, LABELS)
    assert (str(path) in caplog.text, said in caplog.text) == (bool(said), True)
    assert prepared_labels(tmp_path / "scans") == dict.fromkeys(IDS, LABELS)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-16"])
def test_a_patient_with_an_accent_is_known_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    root = write_scans(tmp_path / "scans", ("Mu\u0308ller",))  # as macOS stores the letter
    put_table(root, table([("Müller", 3, "healthy")]).encode(encoding))
    (patient,) = find_patients(root)
    assert patient.slice_labels == {3: 0}


LONG = "x" * 200_000
REFUSED = {
    "Latin-1": (table([("Müller", 3, 1)]).encode("latin-1"), "names .*'Müller'.*; save as UTF-8"),
    "damaged UTF-16": (table(ROWS).encode("utf-16")[:-1], "damaged UTF-16; save it as CSV in UTF"),
    "workbook": (b"PK\x03\x04\x14\0\6\0", "is a workbook .*; save it as CSV in UTF-8"),
    "bytes": (b"volume,slice_index,label" + b" " * 60 + b"\0" * 9, "holds bytes that are no text"),
    "nothing": (b"", "the first line must name the columns .* commas, semicolons or tabs; volume"),
    "header alone": (table([]), "names no slice; add a line per labelled slice"),
    "no label": ("volume;slice_index\n001;3\n", "label not found in 'volume;slice_index'"),
    "two labels": (table([], [*HEAD, "Label"]), "names label twice"),
    "never ending": (f'{table([])}"{LONG}', r"a value or a quote never ends"),
    "decimal comma": (table([("001", "3,0", "unhealthy")]), "line 2: a row needs .* 3 columns"),
    "half a slice": (table([("001", 3.5, "healthy")]), "line 2: a row needs .*'3.5'"),
    "huge index": (table([("001", "9" * 5000, "healthy")]), "line 2: a row needs .*'9999"),
    "two": (table([("001", 3, "2")]), "line 2: a row needs .*'2'"),
    "other word": (table([("001", 3, "lesion")]), "line 2: a row needs .*'lesion'"),
    "no volume": (table([("", 3, "healthy")]), "line 2: a row needs a volume"),
    "both labels": (table([*ROWS, ("001", 3, "healthy")]), "line 14: slice 3 of 001 is both"),
    "both by two names": (table([("001", 3, 1), ("001_t2.nii", 3, 0)]), "line 3: slice 3 .* both"),
    "lost zeros": (table([(2, 3, 1), (1, 3, 1)]), r"'2' is no .*\(neither is 1\); .* one is '002'"),
    "long stranger": (table([("7" * 5000, 3, 1)]), "'7+' is no patient .* is '001'"),
    "stranger": (table([("12_t2.nii.gz", 3, 1)]), "'12_t2.nii.gz' is no patient .* is '002'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_for_certain_is_refused_in_one_sentence(
    tmp_path: Path, case: str
) -> None:
    content, sentence = REFUSED[case]
    assert re.search(sentence, refusal(write_scans(tmp_path / "scans"), content))


@pytest.mark.parametrize(
    ("volume", "known", "nearest"),
    [
        ("001_t2", {"001", "002"}, "001"),
        ("scan 2", {"001", "002"}, "002"),
        ("pat12", {"pat21", "pat120", "pat012"}, "pat012"),
        ("BraTS2021_0001", {"BraTS2021_00001", "BraTS2021_00011"}, "BraTS2021_00001"),
        ("Mueller", {"muller", "miller"}, "muller"),
        ("pat13", {"pat14", "anna"}, "pat14"),
        ("7" * 5000, {"777", "77"}, "777"),
    ],
)
def test_the_nearest_patient_has_the_same_numbers(
    volume: str, known: set[str], nearest: str
) -> None:
    assert nearest_id(volume, known) == nearest


def test_edits_are_counted_as_levenshtein_counts_them() -> None:
    words = [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)]
    assert [count_edits(first, second) for first, second, _ in words] == [3, 3, 0, 2]


# --- Where counting starts ------------------------------------------------------------------------
def test_a_table_of_slices_1_to_6_of_6_is_read_as_counted_from_1(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(name, index + 1, label) for name, index, label in ROWS[:-2]]  # 002 to slice 4 only
    put_table(write_scans(tmp_path / "scans"), table(rows))
    labels = prepared_labels(tmp_path / "scans")
    assert labels["001"] == LABELS
    assert labels["002"] == {**LABELS, 4: -1, 5: -1}
    assert "slices are counted from 1, to 6 of 6 in 001: 1 was subtracted" in caplog.text


def test_a_table_that_may_count_from_1_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    root = write_scans(tmp_path / "scans")
    sentence = refusal(root, table([("001", 6, "healthy"), ("002", 2, "unhealthy")]))
    assert "names slice 6 of 001, whose scan has slices 0 to 5, and no slice 0" in sentence
    assert "subtract 1 from every slice_index, else correct that line" in sentence


@pytest.mark.parametrize("rows", [[("001", 0, 0), ("001", 6, 0)], [("001", 1, 0), ("001", 7, 0)]])
def test_a_slice_beyond_a_scan_that_counting_from_1_does_not_explain_is_left_out_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[tuple[str, int, int]]
) -> None:
    put_table(write_scans(tmp_path / "scans"), table([*rows, ("002", 1, 1)]))
    assert prepare(tmp_path / "scans") == 1
    printed = capsys.readouterr().out
    assert f"left out: 001: slice_labels.csv names slice {rows[1][1]} of 001, whose scan" in printed
    assert "done: 1 of 2 patients" in printed


def test_scans_that_cannot_be_read_do_not_say_where_counting_starts(tmp_path: Path) -> None:
    root = write_scans(tmp_path / "scans")
    (root / "001" / "001_t2.nii.gz").write_bytes(b"no scan")
    put_table(root, table([("001", 6, 0), ("001", 1, 0), ("002", 2, 1)]))
    assert [p.slice_labels for p in find_patients(root)] == [{6: 0, 1: 0}, {2: 1}]


# --- Patients without labels ----------------------------------------------------------------------
def test_patients_of_whom_no_slice_is_labelled_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    put_table(write_scans(tmp_path / "scans"), table([("001", 0, 0), ("001", 3, 1)]))
    assert prepare(tmp_path / "scans") == 0
    assert "slice_labels.csv names no slice of 002" in caplog.text
    assert "without a labelled slice, so nothing is learned from them: 002" in (
        capsys.readouterr().out
    )


def test_where_nobody_can_be_prepared_there_is_an_error_and_no_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_table(write_scans(tmp_path / "scans"), table([(name, 9, 1) for name in IDS]))
    with pytest.raises(ValueError, match="none of 2 patients could be prepared"):
        prepare(tmp_path / "scans")
    assert capsys.readouterr().out.count("left out: 00") == 2
    assert not (tmp_path / "slices" / "slices.json").exists()


def test_the_form_of_the_table_stands_in_the_help_and_in_the_readme() -> None:
    root = Path(__file__).parents[2]
    texts = [(root / path).read_text() for path in ("README.md", "train/README.md")]
    texts.append(describe_script(stage1.__doc__ or "", stage1.Stage1Recipe))
    assert all("volume,slice_index,label" in text for text in texts)
