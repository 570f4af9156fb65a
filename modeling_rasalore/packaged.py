"""Find what comes with the package: weights of its models, and a synthetic scan to try them on."""

from pathlib import Path

from .files import sha256_of

PACKAGE = Path(__file__).parent
WEIGHTS = PACKAGE / "weights" / "rasalore-base"  # one folder per sequence
EXAMPLE_SCAN = PACKAGE / "examples" / "synthetic_t2.nii.gz"  # a whole brain of 2.5 mm, 90 kB
DIGEST_FILE = "model.safetensors.sha256"  # beside the weights, as `sha256sum` writes it
# Where several would do, the first: lesions are clearest on FLAIR.
SEQUENCES = ("flair", "t2", "t1ce", "t1")


def packaged_sequences() -> tuple[str, ...]:
    """Return the sequences that have a model in this copy of the package, the clearest first."""
    files = ("model.safetensors", DIGEST_FILE)
    return tuple(s for s in SEQUENCES if all((WEIGHTS / s / name).is_file() for name in files))


def packaged_model(sequence: str | None = None) -> Path:
    """Return the folder of the package's model for a sequence, after checking its weights.

    Args:
        sequence: t1, t1ce, t2 or flair; None: the first of `packaged_sequences`.

    Raises:
        ValueError: there is none, as in a clone without weights, or its weights are damaged.
    """
    known = packaged_sequences()
    if not known:
        raise ValueError(
            f"this copy of the package brings no model of its own, nothing is in {WEIGHTS}; "
            "install a release, or give --model a folder or a repo id (owner/name)."
        )
    if sequence is not None and sequence not in known:
        raise ValueError(
            f"the package's own models read {', '.join(known)}, got {sequence}; give such a scan, "
            "or --model another model."
        )
    folder = WEIGHTS / (sequence or known[0])
    expected = (folder / DIGEST_FILE).read_text(encoding="utf-8").split()[:1]
    if [sha256_of(folder / "model.safetensors")] != expected:
        raise ValueError(
            f"{folder / 'model.safetensors'} is damaged: its SHA-256 is not the one in "
            f"{DIGEST_FILE}; install the package anew, or give --model another model."
        )
    return folder
