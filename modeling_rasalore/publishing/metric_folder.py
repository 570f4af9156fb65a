"""Complete the folder of a Space: a metric with the package's formulas, a page with its models."""

import shutil
from pathlib import Path

from huggingface_hub import RepoCard

from ..evaluation import intervals, lesion_metrics, metrics
from .browser_page import complete_page

FORMULAS = tuple(Path(str(module.__file__)) for module in (metrics, lesion_metrics, intervals))


def complete_space(source: Path, out: Path) -> Path:
    """Return the folder of a Space to publish: `source` itself, or a copy in `out`, completed.

    The tags in its README's header say what it is. Whoever loads a `metric` has no package, so the
    files with the formulas that its script imports go with it. A page that runs `in-browser` gets
    all that `complete_page` writes.
    """
    readme = source / "README.md"
    tags = RepoCard.load(readme).data.get("tags") or [] if readme.is_file() else []
    if "in-browser" in tags:
        return complete_page(source, out)
    if "metric" not in tags:
        return source
    shutil.copytree(source, out, dirs_exist_ok=True)
    for formulas in FORMULAS:
        shutil.copy(formulas, out)
    return out
