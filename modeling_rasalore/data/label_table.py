"""Read slice_labels.csv however spreadsheets, R and pandas left it, and never guess.

Separator, case, quotes and encoding may differ from the documented form; what was read in another
way than it stands there is said in a warning, what has two meanings is refused.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNHEALTHY, HEALTHY = 1, 0
COLUMNS = ("volume", "slice_index", "label")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}
LABEL_WORDS = {"healthy": HEALTHY, "0": HEALTHY, "unhealthy": UNHEALTHY, "1": UNHEALTHY}
YES_AND_NO = {
    **dict.fromkeys(("false", "no", "normal"), HEALTHY),
    **dict.fromkeys(("true", "yes", "abnormal"), UNHEALTHY),
}
WHOLE_NUMBER = r"(\d{1,9})(?:[.,]0*)?"  # 3, and 3.0 or 3,0 as a column with gaps is written
SAVE = "save it as CSV in UTF-8"
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods, .xls
MARKS = {  # bytes at the start of a file -> its encoding; the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class LabelRow:
    """One line of the table: a slice of a volume and its label, 1 unhealthy or 0 healthy."""

    line: int
    volume: str
    slice_index: int
    label: int


@dataclass(frozen=True)
class LabelTable:
    """The rows of slice_labels.csv.

    Attributes:
        path: the file.
        rows: in the file's order.
        encoding: of its text; "latin-1" stands for any old one with a byte per letter.
        notes: what was read in another way than the documented one.
    """

    path: Path
    rows: list[LabelRow]
    encoding: str
    notes: list[str]


def read_label_table(path: Path) -> LabelTable:
    """Return the rows of the table at `path`.

    Raises:
        ValueError: no text, a column is missing or there twice, no row, or a row without a volume,
            an index or a label.
    """
    text, encoding = _decode(path)
    try:
        lines, separator, header = _split_header(text, path)
        cells = list(_read_cells(lines, separator))
    except csv.Error as error:
        raise ValueError(f"{path}: a value or a quote never ends ({error}); {SAVE}.") from error
    notes = []
    if encoding != "utf-8":
        notes.append(f"the text is {encoding.upper()}, not UTF-8")
    if separator != ",":
        notes.append(f"columns are separated by {SEPARATORS.get(separator, repr(separator))}")
    if _has_row_names(cells, header):
        header = ["", *header]
        notes.append("the first column, which has no name, holds row numbers")
    words: set[str] = set()
    rows = [_read_row(path, line, row, header, words) for line, row in cells]
    if not rows:
        raise ValueError(f"{path} names no slice; add a line per labelled slice, or delete it.")
    if words:
        meant = [f"{word} as {'un' * (YES_AND_NO[word] == UNHEALTHY)}healthy" for word in words]
        notes.append(f"{' and '.join(sorted(meant))}")
    return LabelTable(path, rows, encoding, notes)


def _decode(path: Path) -> tuple[str, str]:
    """Return the text of a file and its encoding."""
    data = path.read_bytes()
    if data.startswith(WORKBOOKS):
        raise ValueError(f"{path} is a workbook of a spreadsheet program, not text; {SAVE}.")
    encoding = next((MARKS[mark] for mark in MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:64]:  # UTF-16 that does not say so
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or data.startswith(codecs.BOM_UTF8):
            raise ValueError(f"{path}: the text is damaged {encoding.upper()}; {SAVE}.") from error
        text, encoding = data.decode("latin-1"), "latin-1"
    if "\0" in text:
        raise ValueError(f"{path} holds bytes that are no text; {SAVE}.")
    return text.replace("\ufeff", ""), encoding


def _split_header(text: str, path: Path) -> tuple[Iterator[tuple[int, str]], str, list[str]]:
    """Return the lines below the header with their numbers, the separator and the column names."""
    lines = enumerate(io.StringIO(text, newline=""), 1)
    line = next((line for _, line in lines if line.strip()), "")
    if declared := re.fullmatch(r'"?sep=(.)"?\s*', line, re.IGNORECASE):  # a hint for Excel
        line = next((line for _, line in lines if line.strip()), "")
    candidates = dict.fromkeys([*(declared.groups() if declared else ()), *SEPARATORS])
    headers = {separator: _column_names(line, separator) for separator in candidates}
    separator = max(headers, key=lambda key: len({*COLUMNS} & {*headers[key]}))
    header = headers[separator]
    if missing := [name for name in COLUMNS if name not in header]:
        raise ValueError(
            f"{path}: the first line must name the columns volume, slice_index and label, "
            f"separated by commas, semicolons or tabs; {', '.join(missing)} not found in "
            f"{line.strip()[:200]!r}."
        )
    if double := [name for name in COLUMNS if header.count(name) > 1]:
        raise ValueError(f"{path}: the first line names {double[0]} twice; keep one such column.")
    return lines, separator, header


def _column_names(line: str, separator: str) -> list[str]:
    """Return the names in a header line; Slice Index is slice_index."""
    names = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    return [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in names]


def _read_cells(
    lines: Iterator[tuple[int, str]], separator: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield number and values of each line that holds any, without empty ones at its end."""
    number = 0

    def texts() -> Iterator[str]:
        nonlocal number
        for number, line in lines:  # noqa: B007 - the reader may take several lines per row
            yield line

    for row in csv.reader(texts(), delimiter=separator, skipinitialspace=True):
        values = [value.strip() for value in row]
        while values and not values[-1]:
            values.pop()
        if values:
            yield number, values


def _has_row_names(cells: list[tuple[int, list[str]]], header: list[str]) -> bool:
    """Whether each row starts with its number, for which there is no column, as R writes them."""
    return len(cells) > 0 and all(
        len(row) == len(header) + 1 and row[0] == str(number)
        for number, (_, row) in enumerate(cells, 1)
    )


def _read_row(
    path: Path, line: int, values: list[str], header: list[str], words: set[str]
) -> LabelRow:
    """Return one row; a yes or a no in place of a label is added to `words`."""
    named = dict(zip(header, values, strict=False))
    volume, index, word = (named.get(column, "") for column in COLUMNS)
    number, digit = (re.fullmatch(WHOLE_NUMBER, text) for text in (index, word))
    label = {**LABEL_WORDS, **YES_AND_NO}.get(digit[1] if digit else word.lower())
    if len(values) > len(header) or not volume or number is None or label is None:
        raise ValueError(
            f"{path}, line {line}: a row needs a volume, a slice_index counted from 0 and a label "
            f"healthy or unhealthy (or 0 or 1), in the {len(header)} columns of the first line, "
            f"got {str(values)[:200]}."
        )
    if word.lower() in YES_AND_NO:
        words.add(word.lower())
    return LabelRow(line, volume, int(number[1]), label)
