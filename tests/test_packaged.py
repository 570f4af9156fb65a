"""What comes with the package: weights that are checked before use, and a scan to try them on."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from own_model import save_own_model, use_own_model

from modeling_rasalore import load_model, read_volume
from modeling_rasalore.packaged import (
    DIGEST_FILE,
    EXAMPLE_SCAN,
    WEIGHTS,
    packaged_model,
    packaged_sequences,
)
from modeling_rasalore.scans.naming import scan_stem, sequence_of

COMMANDS = (["predict", "scan.nii.gz"], ["demo"], ["export", "--out", "x.onnx"])


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_own_model(save_own_model(tmp_path / "own" / "t2", modality="t2"), monkeypatch)


def test_without_a_name_the_model_of_the_package_is_loaded(own_model: Path) -> None:
    model, processor = load_model()
    named, _ = load_model(str(own_model))
    assert packaged_model() == packaged_model("t2") == own_model and processor.size == 16
    pairs = zip(model.parameters(), named.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_loading_prints_nothing(own_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model()
    assert capfd.readouterr() == ("", "")


def test_weights_with_one_changed_byte_are_refused_in_one_sentence(own_model: Path) -> None:
    weights = own_model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: its SHA-256 is not the one .* --model"):
        load_model()


def test_of_several_models_the_one_with_the_clearest_lesions_comes_first(own_model: Path) -> None:
    for sequence in ("t1", "flair"):
        save_own_model(own_model.parent / sequence, modality=sequence)
    assert packaged_sequences() == ("flair", "t2", "t1")
    assert load_model()[0].config.modality == "flair"
    assert load_model(modality="t1")[0].config.modality == "t1"


def test_a_sequence_without_a_model_is_refused_with_those_that_have_one(own_model: Path) -> None:
    with pytest.raises(ValueError, match=r"own models read t2, got t1ce; give such a scan, or --m"):
        packaged_model("t1ce")


@pytest.mark.parametrize("name", ["model.safetensors", DIGEST_FILE])
def test_a_package_without_weights_says_what_to_do(own_model: Path, name: str) -> None:
    (own_model / name).unlink()
    with pytest.raises(ValueError, match=r"brings no model of its own, .* give --model a folder"):
        load_model()


@pytest.mark.parametrize("words", COMMANDS)
def test_a_model_that_is_nowhere_is_told_before_anything_heavy_is_imported(
    words: list[str], tmp_path: Path
) -> None:
    program = (
        "import sys; from modeling_rasalore.cli import main; "
        "code = main(sys.argv[1:]); sys.exit(100 if 'torch' in sys.modules else code)"
    )
    command = [sys.executable, "-c", program, *words, "--model", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: --model needs an existing")
    assert not list(tmp_path.iterdir())


def test_the_example_is_a_whole_t2_brain() -> None:
    scan = read_volume(EXAMPLE_SCAN)
    assert sequence_of(scan_stem(EXAMPLE_SCAN)) == "t2"
    assert 1000 < (scan.slices > 0).sum() * 2.5**3 / 1000 < 2000  # mL


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the weights are not in this checkout")
def test_the_real_weights_fit_their_hash_and_into_a_wheel() -> None:
    from modeling_rasalore.prediction.loading import describe_model
    from modeling_rasalore.prediction.options import PredictionOptions
    from modeling_rasalore.prediction.saved_options import complete_options

    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {"config.json", "preprocessor_config.json", "README.md"} <= {f.name for f in files}
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert packaged_sequences() == ("flair", "t2")
    for sequence in packaged_sequences():
        model, _ = load_model(modality=sequence)
        options = complete_options(PredictionOptions(), (), model)
        assert model.config.modality == sequence and model.dtype == torch.float32
        assert describe_model(model)["name"] == f"rasalore-base/{sequence}"
        assert "calibrated" in options.threshold_source and "1 %" in options.threshold_source
