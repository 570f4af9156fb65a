"""The labelling server, killed at random moments while keys are pressed: nothing may be lost.

    python tests/helpers/killed_labelling.py FOLDER 50

prints JSON: how many kills, key presses and answers there were, and every table that was not that
of the last answered press, or of the one under way. Servers are forked from a process that has
imported everything, so each starts at once.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any

import gradio  # noqa: F401 - before the first fork
from labelled_scans import SHOWN, ask, make_patients, serving

from modeling_rasalore.data.label_table import read_label_table
from modeling_rasalore.data.labels import labels_by_patient
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.labelling.desk import LabelDesk
from modeling_rasalore.labelling.marks import ACTIONS, Marks
from modeling_rasalore.labelling.session import LabelSession, labelling


def start(table: Path, patients: list[Patient], notice: Path) -> int:
    """Process id of a server that writes its address into a file and serves until it is killed."""
    pid = os.fork()
    if pid:
        return pid
    try:
        with (
            labelling(table, patients, "kim") as book,
            serving(LabelDesk(LabelSession(book, patients))) as address,
        ):
            notice.with_suffix(".draft").write_text(address)
            os.replace(notice.with_suffix(".draft"), notice)
            threading.Event().wait()
    finally:
        os._exit(1)


def read_table(table: Path) -> dict[str, dict[int, int]]:
    """The labels on disk, as training would read them."""
    if not table.exists():
        return {}
    rows = read_label_table(table)
    return labels_by_patient(rows, {row.volume: row.volume for row in rows.rows})


def labels_of(marks: list[Marks], patients: list[Patient]) -> dict[str, dict[int, int]]:
    told = {p.patient_id: m.labels for p, m in zip(patients, marks, strict=True)}
    return {name: labels for name, labels in told.items() if labels}


def choose_key(rng: random.Random, marks: list[Marks]) -> tuple[int, str, int, Marks]:
    """Scan, action and slice of a key that makes sense, and the marks after it."""
    while True:
        number, index = rng.randrange(len(marks)), rng.randint(*SHOWN)
        action = rng.choice(list(ACTIONS))
        try:
            return number, action, index, marks[number].after(action, index)
        except ValueError:
            continue


def main(folder: Path, kills: int) -> dict[str, Any]:
    rng = random.Random(0)
    patients = make_patients(folder / "scans")
    table, notice = folder / "slice_labels.csv", folder / "address"
    marks = [Marks(SHOWN) for _ in patients]
    result: dict[str, Any] = {"kills": 0, "pressed": 0, "answered": 0, "lost": []}
    for _ in range(kills):
        notice.unlink(missing_ok=True)
        pid = start(table, patients, notice)
        while not notice.exists():
            time.sleep(0.01)
        address = notice.read_text()
        window = ask(address, "open")["window"]
        for number in range(len(patients)):
            shown = ask(address, f"scan/{number}")["marks"]
            if Marks.of_json(shown) != marks[number]:
                result["lost"].append(f"scan {number} was {marks[number]}, is shown as {shown}")
        threading.Timer(rng.uniform(0, 0.6), os.kill, (pid, signal.SIGKILL)).start()
        while True:
            number, action, index, after = choose_key(rng, marks)
            press = {"window": window, "action": action, "number": number, "slice": index}
            result["pressed"] += 1
            try:
                answer = ask(address, "press", press)
            except (OSError, HTTPException):  # no answer, or half of one
                break
            assert answer["marks"] == after.as_json(), answer
            result["answered"] += 1
            marks[number] = after
        os.waitpid(pid, 0)
        result["kills"] += 1
        under_way = [*marks[:number], after, *marks[number + 1 :]]
        on_disk = read_table(table)
        if on_disk not in (labels_of(marks, patients), labels_of(under_way, patients)):
            result["lost"].append(f"on disk: {on_disk}, answered: {labels_of(marks, patients)}")
        with labelling(table, patients, "kim") as book:  # the lock went with the process
            known = [book.history.marks.get(p.patient_id, Marks(SHOWN)) for p in patients]
        if known not in (marks, under_way) or read_table(table) != labels_of(known, patients):
            result["lost"].append(f"opened again: {known}, answered: {marks}")
        marks = known
    return result


if __name__ == "__main__":
    told = main(Path(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps(told))
    os._exit(0)
