"""Find what comes with the package: weights of a model, and a synthetic scan to try them on."""

from pathlib import Path

from .files import sha256_of

PACKAGE = Path(__file__).parent
WEIGHTS = PACKAGE / "weights" / "rasalore-base"
EXAMPLE_SCAN = PACKAGE / "examples" / "synthetic_t2.nii.gz"  # a whole brain of 2.5 mm, 90 kB
DIGEST_FILE = "model.safetensors.sha256"  # beside the weights, as `sha256sum` writes it


def has_model() -> bool:
    """Return whether a model comes with this copy of the package."""
    return all((WEIGHTS / name).is_file() for name in ("model.safetensors", DIGEST_FILE))


def packaged_model() -> Path:
    """Return the folder of the model that comes with the package, after checking its weights.

    Raises:
        ValueError: there is none, as in a clone without weights, or its weights are damaged.
    """
    weights, digest = WEIGHTS / "model.safetensors", WEIGHTS / DIGEST_FILE
    if not has_model():
        raise ValueError(
            f"this copy of the package brings no model of its own, nothing is in {WEIGHTS}; "
            "install a release, or give --model a folder or a repo id (owner/name)."
        )
    expected = digest.read_text(encoding="utf-8").split()[:1]
    if [sha256_of(weights)] != expected:
        raise ValueError(
            f"{weights} is damaged: its SHA-256 is not the one in {DIGEST_FILE}; install the "
            "package anew, or give --model another model."
        )
    return WEIGHTS
