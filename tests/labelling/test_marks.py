"""What each key changes, by hand-made cases."""

import pytest

from modeling_rasalore.labelling.marks import Marks, ranges_of

SCAN = Marks((2, 9))


def press(*keys: tuple[str, int], marks: Marks = SCAN) -> Marks:
    for action, index in keys:
        marks = marks.after(action, index)
    return marks


def test_nothing_is_known_before_the_first_key() -> None:
    assert SCAN.labels == {} and not SCAN.finished


def test_a_range_counts_with_both_its_ends_and_the_rest_is_healthy_once_it_is_said() -> None:
    marked = press(("begin", 4), ("end", 6))
    assert marked.labels == {4: 1, 5: 1, 6: 1}
    done = press(("finish", 6), marks=marked)
    assert done.labels == {2: 0, 3: 0, 4: 1, 5: 1, 6: 1, 7: 0, 8: 0, 9: 0}
    assert done.finished


def test_a_range_may_be_marked_from_above() -> None:
    assert press(("begin", 6), ("end", 4)) == press(("begin", 4), ("end", 6))


def test_several_ranges_stand_side_by_side() -> None:
    marked = press(("begin", 2), ("end", 3), ("begin", 7), ("end", 7))
    assert ranges_of(marked.lesion) == [[2, 3], [7, 7]]


def test_the_first_slice_of_a_range_is_unhealthy_before_its_last_is_known() -> None:
    assert press(("begin", 4)).labels == {4: 1}


def test_an_unsure_slice_has_no_label_within_a_range_or_in_a_healthy_scan() -> None:
    assert press(("begin", 4), ("end", 6), ("unsure", 5)).labels == {4: 1, 6: 1}
    healthy = press(("healthy", 2), ("unsure", 5))
    assert healthy.labels == dict.fromkeys([2, 3, 4, 6, 7, 8, 9], 0)
    assert press(("unsure", 5), marks=healthy) == press(("healthy", 2))


def test_healthy_takes_back_lesions_but_no_doubt() -> None:
    healthy = press(("begin", 4), ("end", 6), ("unsure", 8), ("begin", 9), ("healthy", 3))
    assert healthy.labels == dict.fromkeys([2, 3, 4, 5, 6, 7, 9], 0)


def test_clear_takes_back_the_range_around_a_slice_alone() -> None:
    marked = press(("begin", 2), ("end", 3), ("begin", 7), ("end", 9), ("clear", 8))
    assert marked.labels == {2: 1, 3: 1}
    with pytest.raises(ValueError, match="slice 5 has no mark"):
        press(("clear", 5))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ([("end", 4)], "first slice with S before"),
        ([("finish", 4)], "H says that the whole scan is healthy"),
        ([("unsure", 4), ("finish", 4)], "no lesion is marked"),
        ([("begin", 4), ("finish", 5)], "begins in slice 4 has no last slice"),
        ([("begin", 1)], "slices 2 to 9 can be marked here, got slice 1"),
        ([("delete", 4)], "got 'delete'"),
    ],
)
def test_a_key_that_makes_no_sense_is_a_sentence(
    keys: list[tuple[str, int]], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        press(*keys)


@pytest.mark.parametrize(
    "labels",
    [{}, {4: 1, 5: 1}, {2: 0, 3: 0, 9: 0}, {2: 0, 4: 1, 12: 0}, {0: 1}, {3: 0, 4: 1, 5: 0}],
)
def test_marks_of_any_table_give_its_labels_again(labels: dict[int, int]) -> None:
    assert Marks.of_labels((2, 9), labels).labels == labels


def test_marks_survive_json() -> None:
    marks = press(("begin", 4), ("end", 6), ("unsure", 5), ("begin", 8))
    assert Marks.of_json(marks.as_json()) == marks
    assert marks.as_json()["lesion"] == [[4, 6]]
