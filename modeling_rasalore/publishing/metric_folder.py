"""Complete the folder of the `evaluate` metric with the package's own formulas."""

import shutil
from pathlib import Path

from huggingface_hub import RepoCard

from ..evaluation import intervals, lesion_metrics, metrics

FORMULAS = tuple(Path(str(module.__file__)) for module in (metrics, lesion_metrics, intervals))


def complete_space(source: Path, out: Path) -> Path:
    """Return the folder of a Space to publish: `source` itself, or of a metric a copy in `out`.

    A metric is a Space that its README's header tags `metric`. Whoever loads it has no package, so
    the files with the formulas that its script imports go with it.
    """
    readme = source / "README.md"
    if not readme.is_file() or "metric" not in (RepoCard.load(readme).data.get("tags") or []):
        return source
    shutil.copytree(source, out, dirs_exist_ok=True)
    for formulas in FORMULAS:
        shutil.copy(formulas, out)
    return out
