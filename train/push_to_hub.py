"""Publish a trained model, a data set of slices, or a Space on the Hub; a dry run by default.

    python train/push_to_hub.py stage2=runs/demo/stage2 repo=me/rasalore \
        data_name="synthetic brains" data_license=apache-2.0 results=runs/demo/results.json
    python train/push_to_hub.py scans=scans split=runs/stage1/split.json repo=me/slices \
        data_name="BraTS 2021" data_license=...

Everything is assembled in a folder and shown with sizes. A model is then loaded from that folder by
a fresh process that cannot see this package, and must give the same logits and scores. Only
push=true uploads, in one commit; pushing the same thing again makes none. New repositories are
private unless private=false. No path of this machine and, with a model, no patient id is published.
A `calibration.json` that `rasalore calibrate` left beside the model goes with it. space=<folder>
publishes a folder as a Space, a metric with its formulas, a page without server with its models.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from modeling_rasalore import recipes  # first, so that an interrupt is one line
from modeling_rasalore.publishing.assembly import (
    PushRecipe,
    assemble_data,
    assemble_model,
    space_target,
    what_to_publish,
)
from modeling_rasalore.publishing.checks import check_data, check_model
from modeling_rasalore.publishing.metric_folder import complete_space
from modeling_rasalore.publishing.repository import Target, local_files, push_folder

TEMPLATES = Path(__file__).resolve().parents[1] / "hub_configs"  # of the cards


def main(recipe: PushRecipe) -> None:
    source = what_to_publish(recipe)
    with TemporaryDirectory() as scratch:
        folder = make_empty(Path(recipe.out)) if recipe.out else Path(scratch)
        if source == "space":
            target = space_target(recipe)
            folder = complete_space(Path(recipe.space), folder)
            show(folder)
        elif source == "scans":
            target = Target(recipe.repo, "dataset", recipe.private)
            counts = assemble_data(recipe, TEMPLATES, folder)
            show(folder)
            check_data(folder, counts)
            print("streams with `datasets`: every slice")
        else:
            target = Target(recipe.repo, "model", recipe.private)
            model, processor = assemble_model(recipe, source, TEMPLATES, folder)
            show(folder)
            same = check_model(model, processor, folder)
            print(f"loads without the package: same {' and '.join(same)}")
        if recipe.push:
            upload(folder, target)
        else:
            print(f"dry run: nothing was uploaded; push=true publishes this as {recipe.repo}")


def make_empty(out: Path) -> Path:
    """Return the folder to assemble in; ValueError where something else lies there."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give out=<a new folder> or delete it.")
    out.mkdir(parents=True, exist_ok=True)
    return out


def show(folder: Path) -> None:
    """Print every file with its size."""
    files = local_files(folder)
    for name, path in files.items():
        print(f"{path.stat().st_size:>12,}  {name}")
    total = sum(path.stat().st_size for path in files.values())
    print(f"{total:>12,}  bytes in {len(files)} files")


def upload(folder: Path, target: Target) -> None:
    """Upload in one commit and print the revision to pin."""
    pushed = push_folder(folder, target, f"Publish {target.repo.split('/')[-1]}")
    if pushed.is_new:
        removed = f", {len(pushed.removed)} others were removed" if pushed.removed else ""
        print(f"{target.repo} now holds these {len(local_files(folder))} files{removed}")
    else:
        print(f"{target.repo} holds exactly this already; no commit was made")
    print(f"revision={pushed.revision}")


if __name__ == "__main__":
    recipes.run_script(main)
