"""Share patients out once, to learn from, to choose by and to test on, and store it in a file."""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..files import replace_file, some
from .patient import Patient
from .persons import person_of

SPLITS = ("train", "validation", "test")
Ids = dict[str, list[str]]  # of patients, by split


def split_patients(
    patients: Sequence[Patient],
    seed: int,
    validation: int | float = 0.1,
    test: int | float = 0.2,
    folds: int = 0,
    fold: int = 0,
    file: str = "",
) -> dict[str, list[Patient]]:
    """Return {"train": ..., "validation": ..., "test": ...}, no person in two of them.

    The same patients and seed give the same split, whatever order they are listed in. Those whom a
    table of persons leaves out are in none of the three.

    Args:
        patients: all patients, each once.
        seed: of the shuffle.
        validation: how many persons (int), or which fraction (float below 1, at least one person).
        test: likewise; without meaning where there are folds.
        folds: how many test sets all persons are dealt into, each person into one; 0 for none.
        fold: which of them is the test set, from 1 on; 0 without folds.
        file: a split.json that says all this, as for `read_split`; "" for none.

    Raises:
        ValueError: too few persons for a non-empty training set beside what is asked for, or no
            such fold; or as `read_split`.
    """
    if file:
        return read_split(file, patients)
    patients = [patient for patient in patients if not patient.left_out]
    persons = sorted({patient.person for patient in patients})
    random.Random(seed).shuffle(persons)
    _check_fold(folds, fold, len(persons))
    tested = (
        persons[fold - 1 :: folds]
        if folds
        else persons[: count_persons(test, len(persons), "test")]
    )
    others = [person for person in persons if person not in set(tested)]
    checked = others[: count_persons(validation, len(persons), "validation")]
    if len(checked) == len(others):
        raise ValueError(
            f"a split needs at least one training patient, but {len(tested) + len(checked)} of "
            f"{len(persons)} are asked for validation and test; ask for fewer or add patients."
        )
    split_of = dict.fromkeys(persons, "train")
    split_of.update(dict.fromkeys(checked, "validation"))
    split_of.update(dict.fromkeys(tested, "test"))
    ordered = sorted(patients, key=lambda patient: patient.patient_id)
    return {name: [p for p in ordered if split_of[p.person] == name] for name in SPLITS}


def split_hash(split: Mapping[str, Sequence[Patient]]) -> str:
    """Return the SHA-256 (hex) of which patient_id is in which split."""
    return _hash_of(_ids(split))


def write_split(
    split: Mapping[str, Sequence[Patient]], path: str | Path, sources: Iterable[str | Path] = ()
) -> Path:
    """Return `path` after writing the split as JSON: the patient_ids by name, and their hash.

    Args:
        sources: folders of what goes into the model or the masks beside the file, such as the run
            that a network starts from; the file also names the splits that they have seen.
    """
    seen = [ids for source in sources for ids in _read_all(Path(source) / "split.json")]
    own, earlier = split_hash(split), {_hash_of(ids): ids for ids in seen}
    named = [{**ids, "sha256": digest} for digest, ids in earlier.items() if digest != own]
    content = {**_ids(split), "sha256": own, "earlier": named}
    text = json.dumps(content, indent=1) + "\n"
    return replace_file(Path(path), lambda draft: draft.write_text(text, encoding="utf-8"))


def read_split(path: str | Path, patients: Sequence[Patient]) -> dict[str, list[Patient]]:
    """Return the split stored at `path`, filled with `patients`; those it does not name are unused.

    Raises:
        ValueError: not such a file, changed since it was written, one person in two splits, or a
            patient that is not among `patients` or whom a table of persons leaves out.
    """
    ids = _read_all(path)[0]
    known = {patient.patient_id: patient for patient in patients}
    unknown = [patient_id for name in SPLITS for patient_id in ids[name] if patient_id not in known]
    if unknown:
        raise ValueError(f"{path}: {some(unknown)} not found among the {len(known)} patients here.")
    split = {name: [known[patient_id] for patient_id in ids[name]] for name in SPLITS}
    _refuse_left_out(split, path)
    _refuse_overlap(split, path)
    return split


def refuse_other_split(folder: str | Path, split: Mapping[str, Sequence[Patient]]) -> None:
    """Raise ValueError where the model in `folder` may know patients that this split holds out.

    It, and whatever it started from, may come from this very split, or from a data set with none
    of these patients, such as phantoms. Other names of theirs count as far as a table of persons
    tells them.
    """
    here = _ids(split)
    everyone = _persons(here)
    patients = [patient for part in split.values() for patient in part]
    for ids in _read_all(Path(folder) / "split.json"):
        known = _persons(ids)
        _refuse_same_persons(folder, known, patients)
        if everyone & known and _hash_of(ids) != _hash_of(here):
            raise ValueError(
                f"{folder}, or what it started from, was trained on another split of the same "
                "patients, so it may know those who are held out here; train it on this split, or "
                "on none of these patients."
            )


def refuse_known_persons(folder: str | Path, scored: Sequence[Patient]) -> None:
    """Raise ValueError where the model in `folder` learned from somebody who is to be scored.

    Under another name, in another data set, as far as a table of persons tells; so may whatever it
    started from.
    """
    for ids in _read_all(Path(folder) / "split.json"):
        _refuse_same_persons(folder, _persons(ids), scored)


def _refuse_same_persons(folder: str | Path, known: set[str], patients: Sequence[Patient]) -> None:
    """Raise ValueError where patients have another name among the known persons."""
    same = {p.patient_id: sorted(known & {*p.other_names}) for p in patients}
    if pairs := [
        f"{name} ({', '.join(others)})" for name, others in sorted(same.items()) if others
    ]:
        raise ValueError(
            f"{folder}, or what it started from, was trained on a split with scans of the same "
            f"persons: {some(pairs)}; train it with data.same_person=<the table that says so>, "
            "which leaves them out."
        )


def _read_all(path: str | Path) -> list[Ids]:
    """Return the split of a file, then the earlier ones that it names; raises as `read_split`."""
    if not Path(path).is_file():
        raise ValueError(
            f"{path}: there is no such file; every run of train/stage1.py, train/stage2.py and "
            "train/make_pseudo_masks.py leaves one in its folder, so name such a folder."
        )
    try:
        content = json.loads(Path(path).read_text())
        splits = [content, *content.get("earlier", [])]
        named = [{name: list(map(str, split[name])) for name in SPLITS} for split in splits]
        hashes = [split["sha256"] for split in splits]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        keys = ", ".join((*SPLITS, "sha256"))
        raise ValueError(f"{path}: a split file is JSON with the keys {keys}.") from error
    if hashes != [_hash_of(ids) for ids in named]:
        raise ValueError(
            f"{path}: the patients do not match the file's sha256, so it was edited; split anew."
        )
    return named


def count_persons(amount: int | float, total: int, name: str) -> int:
    """Return how many of `total` persons a count or a fraction stands for."""
    if amount < 0 or (isinstance(amount, float) and amount >= 1):
        raise ValueError(
            f"{name} must be a number of patients or a fraction from 0 to below 1, got {amount}."
        )
    if isinstance(amount, float):
        return max(1, round(amount * total)) if amount > 0 else 0
    return amount


def _check_fold(folds: int, fold: int, persons: int) -> None:
    """Raise ValueError unless there is such a fold, or none is asked for."""
    if not folds and not fold:
        return
    if not 2 <= folds <= persons:
        raise ValueError(
            f"split.folds must be 2 to the number of patients, {persons}, or 0 for none, got "
            f"{folds} and split.fold={fold}."
        )
    if not 1 <= fold <= folds:
        raise ValueError(f"split.fold must be 1 to {folds}, the number of folds, got {fold}.")


def _ids(split: Mapping[str, Sequence[Patient]]) -> Ids:
    return {name: [patient.patient_id for patient in split[name]] for name in SPLITS}


def _persons(ids: Ids) -> set[str]:
    return {person_of(patient_id) for part in ids.values() for patient_id in part}


def _hash_of(ids: Mapping[str, Sequence[str]]) -> str:
    content = {name: sorted(ids[name]) for name in SPLITS}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refuse_left_out(split: Mapping[str, Sequence[Patient]], path: str | Path) -> None:
    left_out = [p for part in split.values() for p in part if p.left_out]
    if left_out:
        pairs = [f"{p.patient_id} ({', '.join(p.other_names)})" for p in left_out]
        raise ValueError(
            f"{path} holds persons whom data.same_person leaves out, since another data set shows "
            f"them as well: {some(pairs)}; make a new split with that table."
        )


def _refuse_overlap(split: Mapping[str, Sequence[Patient]], path: str | Path) -> None:
    split_of: dict[str, tuple[str, Patient]] = {}
    for name in SPLITS:
        for patient in split[name]:
            first, other = split_of.setdefault(patient.person, (name, patient))
            if first != name:
                names = sorted({person_of(p.patient_id) for p in (patient, other)})
                both = f" (the same person as {names[1]})" if len(names) > 1 else ""
                raise ValueError(
                    f"{path}: {names[0]}{both} is in {first} and in {name}; a patient may be in "
                    "one split only, so make a new split."
                )
