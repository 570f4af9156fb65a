"""Publishing, over real HTTP: what a stranger loads from the Hub is what was trained."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import push_to_hub
import pytest
import torch
from loopback_hub import LoopbackHub, use_hub
from omegaconf import OmegaConf
from PIL import Image
from saved_defaults import stored_threshold
from torch import Tensor

import modeling_rasalore
from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.data.splits import split_patients, write_split
from modeling_rasalore.prediction.loading import load_model, load_network
from modeling_rasalore.prediction.volume import describe_model, predict_slices
from modeling_rasalore.publishing.checks import outputs_without_package
from modeling_rasalore.publishing.repository import local_files
from modeling_rasalore.recipes import run_script
from modeling_rasalore.scans.volume_writing import write_nifti

pytestmark = [
    pytest.mark.slow,  # strangers are processes of their own
    pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning"),  # within huggingface_hub
]
ROOT = Path(__file__).parents[2]
TINY = ROOT / "hub_configs" / "rasalore-tiny"
SLICES = np.random.default_rng(1).random((2, 60, 50), dtype=np.float32)
SLICES[:, :10] = 0  # background
# Steps whose check would start a process more; the tests load what they publish.
UNCHECKED = ("model again", "new model")
FACTS = ["data_name=synthetic brains", "data_license=cc-by-4.0"]

# What someone with `datasets` and `evaluate` runs on what was published.
READER = """
import json, sys
import numpy as np
from datasets import load_dataset
from evaluate import load
stream = load_dataset("me/slices", split="train", streaming=True)
rows = list(stream)
np.savez(sys.argv[1], *[np.asarray(row.pop("t2"), np.float32) for row in rows])
metric = load("me/anomaly_segmentation", module_type="metric")
truth = np.zeros((2, 8, 8)); truth[1, 2:5, 2:5] = 1
metric.add_scan(truth * 0.9, truth)
assert "modeling_rasalore" not in sys.modules
print(json.dumps({"rows": rows, "dice": metric.compute()["dice"]}))
"""


def write_run(folder: Path, seed: int, weight: float | None = None) -> RasaloreModel:
    """The files that a finished stage 2 leaves, with random weights, or one for all."""
    torch.manual_seed(seed)
    config = RasaloreConfig.preset("tiny")
    model = RasaloreModel(config).eval()
    for parameter in model.parameters() if weight is not None else []:
        parameter.data.fill_(weight)
    model.save_pretrained(folder)
    RasaloreImageProcessor(config.image_size, config.num_channels).save_pretrained(folder)
    words = [f"out={folder}", "data.root=/secret/scans", "pseudo_masks=/secret/masks",
             "initial_weights=/secret/start", "split.file=/secret/split.json"]  # fmt: skip
    recipe = OmegaConf.merge(OmegaConf.load(TINY / "training.yaml"), OmegaConf.from_dotlist(words))
    OmegaConf.save(recipe, folder / "recipe.yaml")
    masks = {"segmenter": None, "networks": ["/secret/start"]}
    run = {"split_sha256": "abc", "criterion": "agreement", "pseudo_masks": masks}
    (folder / "run.json").write_text(json.dumps(run))
    counts = {"rate": 0.05, "unit": "voxels", "observed": 0.049, "scans": 3, "slices": 60}
    calibration = {"weights_sha256": describe_model(model)["weights_sha256"],
                   "thresholds": [{**counts, "threshold": 0.31, "voxels": 9000}]}  # fmt: skip
    (folder / "calibration.json").write_text(json.dumps(calibration))
    return model


@torch.no_grad()
def outputs(model: RasaloreModel) -> dict[str, Tensor]:
    """Logits of the model and scores of the pipeline, for SLICES."""
    processor = RasaloreImageProcessor(model.config.image_size, model.config.num_channels)
    scores = np.stack(predict_slices(model, processor, list(SLICES)))
    logits = model(**processor(list(SLICES), return_tensors="pt")).logits
    return {"logits": logits, "scores": torch.from_numpy(scores)}


def same_outputs(theirs: dict[str, Tensor], model: RasaloreModel) -> bool:
    """Equal logits; scores come from other batches, so they may differ in the last digit."""
    ours = outputs(model)
    close = torch.allclose(theirs["scores"], ours["scores"], rtol=0, atol=1e-6)
    return torch.equal(theirs["logits"], ours["logits"]) and close


class Published:
    """A Hub after everything was published to it, and what the publisher printed each time."""

    def __init__(self, hub: LoopbackHub, root: Path):
        self.hub, self.root = hub, root
        self.environment = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_loopback",
            "HF_HOME": str(root / "cache"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        self.first = write_run(root / "first", seed=0)
        self.second = write_run(root / "second", seed=1)
        write_run(root / "astray", seed=2, weight=float("nan"))
        write_run(root / "other_weights", seed=3)
        shutil.copy(root / "first" / "calibration.json", root / "other_weights")
        steps = self.write_steps()
        self.printed = {name: publish(words, name in UNCHECKED) for name, words in steps.items()}

    def write_steps(self) -> dict[str, list[str]]:
        """Name of each step -> words of the command."""
        root, model = self.root, ["repo=me/rasalore", *FACTS]
        write_scans(root / "scans")
        split = split_patients(find_patients(root / "scans"), 0, validation=1, test=1)
        write_split(split, root / "split.json")
        scans = [f"scans={root}/scans", f"split={root}/split.json", "skip_slices=1"]
        write_space(root / "space", b"one")
        self.hub.refused.add(write_space(root / "changed_space", b"two"))
        space = "repo=me/demo"
        return {
            "dry": [f"space={root}/space", "repo=me/dry"],
            "model": [f"stage2={root}/first", *model, "push=true"],
            "model again": [f"stage2={root}/first", *model, "push=true"],
            "new model": [f"stage2={root}/second", *model, "push=true"],
            "astray": [f"stage2={root}/astray", "repo=me/astray", *FACTS, "push=true"],
            "other weights": [f"stage2={root}/other_weights", "repo=me/other", *FACTS, "push=true"],
            "slices": [*scans, "repo=me/slices", *FACTS, "push=true"],
            "space": [f"space={root}/space", space, "push=true", "private=false"],
            "leak": [f"space={root}/changed_space", space, "push=true"],
            "failed space": [f"space={root}/changed_space", space, "push=true", "private=false"],
            "demo": [f"space={ROOT}/space_app", "repo=me/brains", "push=true"],
            "metric": [f"space={ROOT}/hub_configs/anomaly_segmentation",
                       "repo=me/anomaly_segmentation", "push=true"],
        }  # fmt: skip

    def run(self, program: str, word: str) -> str:
        """What a fresh process prints that reaches this Hub."""
        done = subprocess.run(
            [sys.executable, "-c", program, word],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def revision(self, step: str) -> str:
        return self.printed[step].strip().splitlines()[-1].removeprefix("revision=")

    def files(self, kind: str, repo: str) -> dict[str, bytes]:
        """What the newest revision holds."""
        repository = self.hub.repositories[kind, repo]
        return {path: blob.data for path, blob in repository.commits[repository.head].items()}


def publish(words: list[str], unchecked: bool) -> str:
    """What the script prints in this process, its error last."""
    printed = io.StringIO()
    with (
        redirect_stdout(printed),
        pytest.raises(SystemExit) as end,
        pytest.MonkeyPatch.context() as patch,
    ):
        if unchecked:
            patch.setattr(push_to_hub, "check_model", lambda *_: [])
        run_script(push_to_hub.main, words)
    return printed.getvalue() + (f"{end.value.code}\n" if end.value.code else "")


def write_scans(folder: Path) -> None:
    """Three patients of eight slices; the intensities of the last are no whole numbers."""
    random = np.random.default_rng(0)
    for number in range(3):
        patient = folder / f"BraTS2021_{number:05d}"
        patient.mkdir(parents=True)
        scan = random.integers(1, 900, (20, 22, 8)) / (1.0 + number // 2)
        mask = np.zeros(scan.shape)
        mask[2:18, 2:18, 3:5] = 4
        for name, voxels in (("t2", scan), ("seg", mask)):
            write_nifti(patient / f"{patient.name}_{name}.nii.gz", voxels.astype(np.float32),
                        np.diag([-1.0, -1.0, 2.0, 1.0]))  # fmt: skip


def write_space(folder: Path, content: bytes) -> str:
    """A Space of an app and a picture; returns the SHA-256 of the picture."""
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "app.pyc").write_bytes(b"left behind")
    (folder / "README.md").write_text("---\ntitle: demo\nsdk: gradio\n---\n")
    (folder / "app.py").write_bytes(b"# " + content)
    Image.fromarray(np.full((8, 8), len(content) + content[0], np.uint8)).save(folder / "a.png")
    return hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    root = tmp_path_factory.mktemp("published")
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        use_hub(hub, root / "own_cache", patch)
        yield Published(hub, root)


def test_a_stranger_loads_the_newest_model_and_gets_our_logits(published: Published) -> None:
    theirs = outputs_without_package("me/rasalore", SLICES, environment=published.environment)
    assert same_outputs(theirs, published.second)


def test_a_pinned_revision_is_loaded_and_then_works_offline(published: Published) -> None:
    revision = published.revision("model")
    for offline in ("0", "1"):
        environment = {**published.environment, "HF_HUB_OFFLINE": offline}
        before = len(published.hub.requests)
        theirs = outputs_without_package("me/rasalore", SLICES, revision, environment)
        assert same_outputs(theirs, published.first)
        assert (len(published.hub.requests) == before) == (offline == "1")


def test_pushing_the_same_again_makes_no_commit(published: Published) -> None:
    assert "no commit was made" in published.printed["model again"]
    assert published.revision("model again") == published.revision("model")
    commits = published.hub.repositories["models", "me/rasalore"].commits
    assert len(commits) == 3  # the empty one of its creation, first, second
    assert list(commits)[1:] == [published.revision("model"), published.revision("new model")]


def test_what_cannot_be_right_is_refused_before_anything_is_sent(published: Published) -> None:
    assert "not finite" in published.printed["astray"].splitlines()[-1]
    assert "made for other weights" in published.printed["other weights"].splitlines()[-1]
    assert {repo for _, repo in published.hub.repositories}.isdisjoint({"me/astray", "me/other"})


def test_a_folder_that_does_not_load_by_itself_is_refused(
    published: Published, tmp_path: Path
) -> None:
    published.first.save_pretrained(tmp_path)
    (tmp_path / "encoder_rasalore.py").unlink()
    with pytest.raises(ValueError, match="does not load where rasalore is not installed"):
        outputs_without_package(tmp_path, SLICES)


def test_the_calibrated_threshold_is_found_on_the_hub(published: Published) -> None:
    revision = published.revision("model")
    model, _ = load_model("me/rasalore", revision, "cpu")
    assert stored_threshold("me/rasalore", model, 0.05, revision=revision) == 0.31
    card = published.files("models", "me/rasalore")["README.md"].decode()
    assert (
        "| 5 % of healthy voxels, all scans together | 0.31 | 3 scans, 60 slices, 9000 voxels |"
        in card
    )


def test_what_scores_alone_is_the_same_model_from_the_hub_and_then_offline(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = published.revision("model")
    model, _ = load_model("me/rasalore", revision, "cpu")
    network, processor = load_network("me/rasalore", revision, "cpu")
    assert describe_model(network) == describe_model(model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again, same = load_network("me/rasalore", revision, "cpu")
    assert describe_model(again) == describe_model(model)
    assert same.to_dict() == processor.to_dict()


def test_the_space_arrives_complete(published: Published) -> None:
    local = {name: path.read_bytes() for name, path in local_files(ROOT / "space_app").items()}
    arrived = published.files("spaces", "me/brains")
    del arrived[".gitattributes"]
    assert arrived == local
    assert {"app.py", "README.md", "requirements.txt"} < arrived.keys()


def test_a_failed_upload_leaves_the_old_revision_whole(published: Published) -> None:
    repository = published.hub.repositories["spaces", "me/demo"]
    last = published.printed["failed space"].splitlines()[-1]
    assert last.startswith(f"error: the upload failed, me/demo still stands at {repository.head}")
    assert repository.head == published.revision("space")
    assert published.files("spaces", "me/demo")["app.py"] == b"# one"


def test_a_dry_run_shows_every_file_and_asks_the_hub_nothing(published: Published) -> None:
    shown = published.printed["dry"]
    assert [name in shown for name in ("app.py", "a.png", "README.md", "app.pyc")] == [1, 1, 1, 0]
    assert "dry run: nothing was uploaded" in shown
    assert not any("dry" in path for _, path in published.hub.requests)
    assert ("spaces", "me/dry") not in published.hub.repositories


def test_a_new_repository_is_private_and_a_public_one_is_not_taken_for_private(
    published: Published,
) -> None:
    repositories = published.hub.repositories
    assert repositories["models", "me/rasalore"].private
    assert repositories["datasets", "me/slices"].private
    assert not repositories["spaces", "me/demo"].private
    assert "say private=false" in published.printed["leak"]


def test_remote_code_is_byte_identical_to_the_package(published: Published) -> None:
    package = Path(modeling_rasalore.__file__).parent / "models"
    code = {
        p: data for p, data in published.files("models", "me/rasalore").items() if p[-3:] == ".py"
    }
    assert {"modeling_rasalore.py", "pipeline_rasalore.py"} < code.keys()
    for name, data in code.items():
        ours = hashlib.sha256((package / name).read_bytes()).hexdigest()
        assert hashlib.sha256(data).hexdigest() == ours, name


def test_a_model_repository_holds_no_pickle_and_no_path_of_this_machine(
    published: Published,
) -> None:
    files = published.files("models", "me/rasalore")
    assert {Path(path).suffix for path in files if path != ".gitattributes"} == {
        *(".safetensors", ".json", ".py", ".yaml", ".md")
    }
    for path, data in files.items():
        assert b"/secret" not in data and str(published.root).encode() not in data, path


def test_streamed_slices_are_the_scans_own(published: Published) -> None:
    target = published.root / "images.npz"
    answer = json.loads(published.run(READER, str(target)))
    split = split_patients(find_patients(published.root / "scans"), 0, validation=1, test=1)
    ours = [row for patient in split["train"] for row in read_slices(patient, "t2", skip=1)]
    images = np.load(target)
    assert len(answer["rows"]) == len(ours) == len(images) == 6
    for index, (row, expected) in enumerate(zip(answer["rows"], ours, strict=True)):
        np.testing.assert_array_equal(images[f"arr_{index}"], expected.image)
        assert row.pop("brain_pixels_t2") == np.count_nonzero(images[f"arr_{index}"])
        facts = {name: value for name, value in vars(expected).items() if name in row}
        assert row == {**facts, "spacing": list(expected.spacing)}
    assert answer["dice"] == 1.0  # the metric, loaded from its Space
