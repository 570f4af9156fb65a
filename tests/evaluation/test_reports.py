"""Tables and figures are checked on hand-made rows."""

from PIL import Image

from modeling_rasalore.evaluation.tables import overview_table, results_figure, results_table


def row(**values):
    return {
        "system": "rasalore",
        "title": "RASALoRE",
        "modality": "t2",
        "view": "paper",
        "threshold": "0.5",
        "patients": 6,
        "slices": 210,
        "dice": 0.7123,
        "dice_low": 0.65,
        "dice_high": 0.773,
        "average_precision": None,
        "auroc": 0.9,
        "weights": "trained",
        **values,
    }


def test_a_table_line_by_hand():
    line = results_table([row()]).splitlines()[2]
    assert line == (
        "| RASALoRE | t2 | paper | 0.5 | 71.2 [65.0, 77.3] | – | 90.0 | – | 6 | 210 |"  # noqa: RUF001
    )


def test_a_table_names_stand_in_weights_and_the_oracle():
    title = "MedSAM + DDPT (box)"
    table = results_table([row(title=title, weights="stand-in", threshold="oracle")])
    assert "MedSAM + DDPT (box) (stand-in weights)" in table
    assert "oracle (no claim)" in table


def test_a_mean_without_an_interval_stands_alone():
    assert "| 71.2 |" in results_table([row(dice_low=None, dice_high=None)])


def test_every_table_line_has_as_many_columns():
    table = results_table([row(), row(view="volume", false_alarms_per_healthy_slice=0.2)])
    assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "| 0.20 |" in table


def test_a_figure_is_written_even_with_missing_values(tmp_path):
    rows = [row(), row(system="chance", dice=None), row(view="volume", dice_low=None)]
    path = results_figure([*rows, row(system="unheard_of", threshold="0.7")], tmp_path / "f.png")
    assert Image.open(path).size[0] == 1650


def test_the_overview_has_a_line_per_system_with_every_threshold() -> None:
    rows = [
        row(threshold=threshold, dice=dice, view=view, false_alarms_per_healthy_slice=alarms)
        | {"healthy_brain_marked": 0.012, "scans_above_rate": 0.25}
        for view, alarms in (("paper", None), ("volume", 0.5))
        for threshold, dice in (("0.5", 0.1), ("label_free", 0.2), ("oracle", 0.3))
    ]
    *_, line = overview_table([*rows, row(system="ae") | {"failure": "killed"}]).splitlines()
    cells = [cell.strip().split(" ")[0] for cell in line.strip("|").split("|")]
    assert cells[1:4] == ["10.0", "20.0", "30.0"] and cells[5:] == ["20.0", "0.50", "1.2", "25.0"]
    assert "AE" not in line
