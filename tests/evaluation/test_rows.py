"""Rows of results against hand-computed cases, limit cases and slow, obvious versions."""

import json
from typing import Any

import numpy as np
import pytest
from small_scores import LABEL_FREE, SHAPE, ball, evaluate, find, make_patient

from modeling_rasalore.evaluation.metrics import (
    average_precision,
    dice,
    dice_curve,
    score_histograms,
)
from modeling_rasalore.evaluation.patient_scores import PatientScores
from modeling_rasalore.evaluation.rows import (
    Row,
    ScoredRun,
    Thresholds,
    evaluate_runs,
    evaluate_system,
)
from modeling_rasalore.evaluation.scan_thresholds import Promise

# The keys every consumer of results.json may rely on.
PROMISED = (
    "system modality view threshold patients slices dice dice_low dice_high average_precision "
    "auroc false_alarms_per_healthy_slice seconds peak_mib weights"
)


@pytest.fixture(scope="module")
def scored_patients() -> list[PatientScores]:
    return [make_patient(name) for name in "abcd"] + [
        make_patient("e", truth=np.zeros(SHAPE, bool))
    ]


@pytest.fixture(scope="module")
def rows(scored_patients: list[PatientScores]) -> list[Row]:
    return evaluate(*scored_patients)


# Rows


def test_there_is_one_row_per_view_and_threshold(rows: list[Row]) -> None:
    found = [(row["view"], row["threshold"]) for row in rows]
    columns = ("0.5", "label_free", "oracle")
    assert found == [(view, column) for view in ("paper", "volume") for column in columns]


def test_every_row_has_every_promised_key(rows: list[Row]) -> None:
    assert all(set(row) >= set(PROMISED.split()) for row in rows)


def test_rows_are_json_without_nan(rows: list[Row]) -> None:
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_every_mean_lies_in_its_interval(rows: list[Row]) -> None:
    for row in rows:
        for name in [key.removesuffix("_low") for key in row if key.endswith("_low")]:
            if row[f"{name}_low"] is not None:
                assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"], name


def test_rows_state_cost_and_where_the_threshold_came_from(rows: list[Row]) -> None:
    row = find(rows, "volume", "label_free")
    assert (row["seconds"], row["peak_mib"], row["weights"]) == (1.5, 20.0, "trained")
    assert (row["threshold_value"], row["false_alarm_rate"]) == (0.37, 0.02)
    assert "healthy validation" in row["threshold_source"]
    assert "never a result" in find(rows, "paper", "oracle")["threshold_source"]


def test_views_count_their_own_patients_and_slices(
    rows: list[Row], scored_patients: list[PatientScores]
) -> None:
    paper, volume = find(rows, "paper"), find(rows, "volume")
    shown = sum((p.truth.sum((1, 2)) * 4 > 200).sum() for p in scored_patients)
    assert (paper["patients"], paper["slices"]) == (4, shown)
    assert (volume["patients"], volume["slices"], volume["healthy_scans"]) == (5, 5 * 14, 1)


def test_the_weakest_promise_of_all_runs_is_the_row_s() -> None:
    promises = Promise(0.3, 9, 1), Promise(0.2, 4, 1)
    runs = [
        ScoredRun([make_patient(name)], Thresholds(promise.threshold, 0.02, promise))
        for name, promise in zip("ab", promises, strict=True)
    ]
    words = "in at most 1 of 5 scans is more than 2 % of healthy brain marked"
    for row in evaluate_runs("ae", runs, "t2"):
        stated = {"rank": 1, "scans": 4, "in_words": words}
        assert row["promise"] == (stated if row["threshold"] == "label_free" else None)
    assert find(evaluate(make_patient("a")), "volume", "label_free")["promise"] is None


def test_without_a_label_free_threshold_its_column_is_absent() -> None:
    found = evaluate(make_patient(), thresholds=Thresholds())
    assert [row["threshold"] for row in found] == ["0.5", "oracle"] * 2


@pytest.mark.parametrize("view", ["paper", "volume"])
def test_the_oracle_is_never_below_another_column(rows: list[Row], view: str) -> None:
    best = find(rows, view, "oracle")["dice"]
    assert best >= find(rows, view, "0.5")["dice"]
    assert best >= find(rows, view, "label_free")["dice"]


def test_the_oracle_takes_a_label_free_threshold_between_two_of_its_grid() -> None:
    edge = np.float32(0.3)  # no edge of a bin, so the grid cannot tell it from the next number
    truth = ball(6)
    patient = make_patient(scores=np.where(truth, np.nextafter(edge, np.float32(1)), edge))
    assert dice_curve(score_histograms(patient.scores, patient.truth).sum(0)).max() < 1
    patient = make_patient(scores=patient.scores, truth=truth)
    found = evaluate(patient, thresholds=Thresholds(float(edge), 0.01))
    assert find(found, "paper", "oracle")["dice"] == 1.0


# Values


def test_paper_view_equals_a_loop_over_slices(
    rows: list[Row], scored_patients: list[PatientScores]
) -> None:
    pairs = [
        (scores, truth)
        for patient in scored_patients
        for scores, truth in zip(patient.scores, patient.truth, strict=True)
        if truth.sum() * 4 > 200
    ]
    row = find(rows, "paper", "label_free")
    assert row["dice"] == pytest.approx(np.mean([dice(s > 0.37, t) for s, t in pairs]))
    assert row["average_precision"] == pytest.approx(
        np.mean([average_precision(s, t) for s, t in pairs])
    )


def test_volume_view_pools_the_voxels_of_all_patients(
    rows: list[Row], scored_patients: list[PatientScores]
) -> None:
    scores = np.stack([patient.scores for patient in scored_patients])
    truth = np.stack([patient.truth for patient in scored_patients])
    brain = np.stack([patient.brain for patient in scored_patients])
    row = find(rows, "volume")
    assert row["average_precision"] == pytest.approx(average_precision(scores, truth), abs=2e-3)
    assert row["average_precision_brain"] == pytest.approx(
        average_precision(scores[brain], truth[brain]), abs=2e-3
    )
    assert row["dice"] == pytest.approx(
        np.mean([dice(s > 0.5, t) for s, t in zip(scores, truth, strict=True) if t.any()])
    )


def test_a_perfect_map_gets_perfect_rows() -> None:
    truth = ball(6)
    perfect = np.where(truth, 0.9, 0.1)
    found = evaluate(*(make_patient(name, scores=perfect, truth=truth) for name in "ab"))
    for row in found:
        assert row["dice"] == row["average_precision"] == row["auroc"] == 1.0
        assert row["average_precision_brain"] == 1.0
    volume = find(found, "volume")
    assert (volume["lesion_dice"], volume["lesion_hd95"]) == (1.0, 0.0)
    assert volume["false_alarms_per_healthy_slice"] == volume["ml_per_healthy_slice"] == 0.0


def test_a_constant_map_gets_the_prevalence_and_no_dice() -> None:
    patient = make_patient(scores=np.full(SHAPE, 0.4), truth=ball(6))
    row = find(evaluate(patient), "volume")
    assert row["average_precision"] == pytest.approx(patient.truth.mean())
    assert row["average_precision_brain"] == pytest.approx(ball(6).sum() / patient.brain.sum())
    assert (row["dice"], row["auroc"], row["lesion_hd95"]) == (0.0, 0.5, 374.0)


@pytest.mark.parametrize(("pixels", "slices"), [(200, 0), (201, 1)])
def test_the_paper_view_starts_above_200_mm2(pixels: int, slices: int) -> None:
    truth = np.zeros(SHAPE, bool)
    truth[3].flat[:pixels] = True
    for side in (np.float32(1.0000001), 1.0, 0.9999999):  # as headers in float32 have it
        row = find(evaluate(make_patient(truth=truth, spacing=(5.0, 1.0, float(side)))), "paper")
        assert row["slices"] == slices


def test_the_area_rule_counts_mm2_not_pixels() -> None:
    truth = np.zeros(SHAPE, bool)
    truth[3].flat[:60] = True
    assert find(evaluate(make_patient(truth=truth)), "paper")["slices"] == 1
    assert find(evaluate(make_patient(truth=truth, spacing=(1, 1, 1))), "paper")["slices"] == 0


def test_false_alarms_are_components_of_healthy_slices() -> None:
    scores = np.zeros(SHAPE)
    scores[0, 5, 5] = scores[0, 6, 6] = scores[0, 20, 20] = 0.9  # two components, one diagonal
    scores[7, 10, 10] = 0.9  # in a slice with lesion: no false alarm of a healthy slice
    row = find(evaluate(make_patient(scores=scores, truth=ball(3))), "volume")
    assert row["healthy_slices"] == 14 - 7
    assert row["false_alarms_per_healthy_slice"] == pytest.approx(2 / 7)
    assert row["ml_per_healthy_slice"] == pytest.approx(3 * 4 / 1000 / 7)
    assert row["ml_per_healthy_scan"] is None


def test_the_share_of_healthy_brain_that_is_marked_is_of_all_its_voxels() -> None:
    brain = np.zeros(SHAPE, bool)
    brain[:2, :10, :10] = brain[2, :5, :10] = True  # 250 voxels in three slices
    scores = np.zeros(SHAPE)
    scores[0, 0, :5] = scores[0, 20, 20] = 0.4  # five of them, and one outside the brain
    healthy = make_patient("a", scores=scores, truth=np.zeros(SHAPE, bool), brain=brain)
    clear = make_patient("b", scores=0 * scores, truth=np.zeros(SHAPE, bool), brain=brain)
    found = evaluate(healthy, clear)  # the label-free threshold is 0.37
    row = find(found, "volume", "label_free")
    assert row["healthy_brain_marked"] == pytest.approx(5 / 500)
    assert row["healthy_brain_marked_low"] <= 5 / 500 <= row["healthy_brain_marked_high"]
    assert find(found, "volume")["healthy_brain_marked"] == 0
    assert row["scans_above_rate"] == 0 and "scans_above_rate" not in find(found, "volume")
    less = evaluate(healthy, clear, thresholds=Thresholds(0.37, 0.001))
    assert find(less, "volume", "label_free")["scans_above_rate"] == 0.5
    ill = make_patient(truth=np.ones(SHAPE, bool))  # no healthy slice
    assert find(evaluate(ill), "volume")["healthy_brain_marked"] is None


def test_a_healthy_scan_states_its_predicted_millilitres() -> None:
    scores = np.zeros(SHAPE)
    scores[:, 10:20, 10:20] = 0.9
    healthy = make_patient("h", scores=scores, truth=np.zeros(SHAPE, bool))
    row = find(evaluate(make_patient(), healthy), "volume")
    assert row["ml_per_healthy_scan"] == pytest.approx(14 * 100 * 4 / 1000)


def test_slices_without_brain_are_no_healthy_slices() -> None:
    brain = np.zeros(SHAPE, bool)
    brain[4:8] = True
    patient = make_patient(truth=np.zeros(SHAPE, bool), brain=brain)
    assert find(evaluate(patient), "volume")["healthy_slices"] == 4


def test_calibration_looks_inside_the_brain_only() -> None:
    truth = ball(4)
    inside = np.where(truth, 0.9, 0.1)
    patient = make_patient(scores=inside, truth=truth)
    outside = make_patient(scores=np.where(patient.brain, inside, 1.0), truth=truth)
    row, other = (find(evaluate(p), "volume") for p in (patient, outside))
    assert row["brier"] == other["brier"] == pytest.approx(0.01)
    assert row["expected_calibration_error"] == pytest.approx(0.1)


def test_average_precision_of_the_brain_ignores_what_lies_outside() -> None:
    truth = ball(6)
    scores = np.where(truth, 0.9, 0.1)
    scores[:, :2] = 1.0
    for row in evaluate(make_patient(scores=scores, truth=truth)):
        assert row["average_precision"] < 0.8
        assert row["average_precision_brain"] == 1.0


def test_quartiles_of_lesion_area_are_scored_apart() -> None:
    truth, scores = np.zeros((2, *SHAPE), bool)
    for index, (size, hit) in enumerate([(60, 60), (120, 60), (180, 180), (300, 0)]):
        truth[index].flat[:size] = True
        scores[index].flat[:hit] = True
    row = find(evaluate(make_patient(scores=0.8 * scores, truth=truth)), "paper")
    quartiles = [row[f"dice_quartile_{quartile}"] for quartile in (1, 2, 3, 4)]
    assert quartiles == pytest.approx([1, 120 / 180, 1, 0])
    assert row["lesion_area_quartiles_mm2"] == pytest.approx([420, 600, 840])


def test_healthy_scans_do_not_make_finding_nothing_the_oracle() -> None:
    healthy = [make_patient(name, truth=np.zeros(SHAPE, bool)) for name in "efghi"]
    row = find(evaluate(make_patient("a"), *healthy), "volume", "oracle")
    alone = find(evaluate(make_patient("a")), "volume", "oracle")
    assert (row["dice"], row["threshold_value"]) == (alone["dice"], alone["threshold_value"])
    assert (row["patients"], row["healthy_scans"]) == (6, 5)


# Limits


def test_one_patient_has_no_intervals(rows: list[Row]) -> None:
    for row in evaluate(make_patient()):
        bounds = [value for key, value in row.items() if key.endswith(("_low", "_high"))]
        assert bounds and set(bounds) == {None}


def test_a_scored_patients_without_lesions_has_an_empty_paper_view() -> None:
    healthy = [make_patient(name, truth=np.zeros(SHAPE, bool)) for name in "ab"]
    found = evaluate(*healthy)
    paper = find(found, "paper", "oracle")
    assert (paper["patients"], paper["slices"], paper["dice"]) == (0, 0, None)
    assert find(found, "volume")["average_precision"] is None


def test_a_binary_map_has_dice_but_no_average_precision() -> None:
    truth = ball(6)
    for row in evaluate(make_patient(scores=truth, truth=truth)):
        assert row["dice"] == 1.0
        assert row["average_precision"] is row["average_precision_brain"] is row["auroc"] is None


def test_a_generator_gives_the_rows_of_a_list(
    rows: list[Row], scored_patients: list[PatientScores]
) -> None:
    generator = (patient for patient in scored_patients)
    assert evaluate_system("ae", generator, LABEL_FREE, "t2", 1.5, 20.0) == rows


def test_an_iterable_that_reads_maps_again_holds_one_patient_at_a_time() -> None:
    class Stored:
        passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            return (make_patient(name) for name in "ab")

    stored = Stored()
    assert len(evaluate_system("ae", stored, LABEL_FREE, "t2")) == 6
    assert stored.passes == 2


def test_scores_and_truth_are_left_as_they_are() -> None:
    patient = make_patient()
    before = patient.scores.copy(), patient.truth.copy()
    evaluate(patient)
    assert np.array_equal(patient.scores, before[0]) and np.array_equal(patient.truth, before[1])


def test_an_interpolated_or_labelled_truth_is_refused() -> None:
    for dtype in (np.float32, np.uint8):
        with pytest.raises(TypeError, match="truth must be bool"):
            make_patient(truth=ball(6).astype(dtype))


def test_a_truth_on_another_grid_than_the_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="scan's own grid"):
        make_patient(scores=np.zeros((14, 64, 64)))


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan, np.inf])
def test_scores_outside_0_to_1_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        make_patient(scores=np.where(ball(1), value, 0.5))


def test_no_patients_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        evaluate()


def test_the_same_patient_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="got a in test and test"):
        evaluate(make_patient("a"), make_patient("a"))
