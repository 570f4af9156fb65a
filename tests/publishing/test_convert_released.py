"""The command `rasalore convert-released`, and what it makes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from released_files import (
    random_prompts,
    random_rasalore,
    released_files,
    save_clip,
    save_prompts,
    save_rasalore,
)
from small_ddpt import make_slices
from transformers import AutoImageProcessor, AutoModel

from modeling_rasalore import DdptConfig, DdptModel, RasaloreConfig, RasaloreModel
from modeling_rasalore.cli import main
from modeling_rasalore.publishing.released_checkpoints import (
    load_released_ddpt,
    released_processor,
)

ROOT = Path(__file__).parents[2]


Stage2 = tuple[RasaloreModel, list[Path]]


@pytest.fixture(scope="module")
def stage2(tmp_path_factory: pytest.TempPathFactory) -> Stage2:
    """A model, and its weights as released files."""
    model = random_rasalore()
    return model, save_rasalore(tmp_path_factory.mktemp("released"), *released_files(model))


def convert(*words: Any) -> int:
    return main(["convert-released", *map(str, words)])


def stage2_words(paths: list[Path]) -> list[Any]:
    return ["--encoder", paths[0], "--decoder", paths[1], "--location-embeddings", paths[2]]


def test_the_command_writes_a_model_folder(
    stage2: Stage2, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "released"
    assert convert(*stage2_words(stage2[1]), "--out", out) == 0
    assert f"RasaloreModel is in {out}" in capsys.readouterr().out
    expected, found = stage2[0].state_dict(), AutoModel.from_pretrained(out).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert AutoImageProcessor.from_pretrained(out).rescale_factor == 255
    assert [path.name for path in out.parent.iterdir()] == ["released"]  # no draft is left


@torch.no_grad()
def test_the_command_converts_stage_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = save_clip(tmp_path / "clip", vocab_size=49408)  # CLIP's own words
    folder = save_prompts(tmp_path / "prompts", random_prompts(16, 10, 10, 32))
    words = "--ddpt", folder, "--clip", clip, "--class-token-position", "middle"
    assert convert(*words, "--out", tmp_path / "out") == 0
    assert f"DdptModel is in {tmp_path / 'out'}" in capsys.readouterr().out
    model, loaded = (
        load_released_ddpt(folder, clip, class_token_position="middle"),
        AutoModel.from_pretrained(tmp_path / "out"),
    )
    assert torch.equal(loaded(make_slices()).logits, model(make_slices()).logits)
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").size == 32


def test_the_command_says_in_one_line_what_does_not_fit(
    stage2: Stage2, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, _, table = stage2[1]
    words = stage2_words([encoder, encoder, table])
    assert convert(*words, "--out", tmp_path / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {encoder} does not fit the released layout. missing: ")
    assert "positional_encoding" in line and "surplus: adapter2.query_projections.0" in line
    assert not (tmp_path / "out").exists()


def test_the_command_converts_one_stage_at_a_time(
    stage2: Stage2, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = stage2_words(stage2[1])
    for wrong in ([*words, "--ddpt", "x", "--clip", "y"], words[:4], ["--ddpt", "x"], []):
        assert convert(*wrong, "--out", tmp_path / "out") == 1
        assert capsys.readouterr().err.startswith("error: one stage at a time: pass")


def test_the_command_never_writes_into_a_folder_that_exists(
    stage2: Stage2, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(*stage2_words(stage2[1]), "--out", tmp_path) == 1
    assert "exists; choose another folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


COMMANDS = re.findall(
    r"^rasalore (convert-released .+)$",
    (ROOT / "hub_configs" / "README.md").read_text(),
    re.MULTILINE,
)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_presets_page_are_understood(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # where the named files are not
    assert main(command.split()) == 1
    assert re.search("[Nn]o such file|must hold prompt_learner", capsys.readouterr().err)


def test_the_presets_page_shows_both_stages() -> None:
    assert ["--ddpt" in command for command in COMMANDS] == [False, True]


@pytest.mark.parametrize("stage", ["rasalore", "ddpt"])
def test_slices_are_prepared_as_for_the_published_configuration(stage: str) -> None:
    published = ROOT / "hub_configs" / f"{stage}-released" / "preprocessor_config.json"
    written = json.loads(published.read_text("utf-8"))
    with torch.device("meta"):
        model: Any = (
            RasaloreModel(RasaloreConfig.preset("released"))
            if stage == "rasalore"
            else DdptModel(DdptConfig.preset("released"))
        )
    found = released_processor(model).to_dict()
    assert {name: found[name] for name in written} == written
