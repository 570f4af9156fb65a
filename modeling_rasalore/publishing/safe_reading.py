"""Read a checkpoint of strangers without running anything that it brings along."""

import os
import zipfile
from typing import Any

import torch

FilePath = str | os.PathLike[str]
# What training keeps beside its weights. No such object is ever built.
BOOKKEEPING = ("torch.optim.", "dassl.", "numpy.")


class Skipped:
    """Stands in for an optimizer, a scheduler or a numpy number; does and stores nothing."""

    def __new__(cls, *args: Any) -> "Skipped":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def new_dict(*args: Any) -> dict[Any, Any]:
    """Stand in for defaultdict: PyTorch's reader fills true dictionaries only."""
    return {}


CONTAINERS = {"collections.defaultdict": new_dict, "builtins.dict": dict}


def read_checkpoint(path: FilePath) -> Any:
    """Return what a `torch.save` file holds: tensors, on the CPU, in plain containers.

    PyTorch's restricted unpickler reads it and calls no function that the file names; objects of
    `BOOKKEEPING` come back as `Skipped`.

    Raises:
        OSError: for a file that is not there.
        ValueError: for a file that is damaged, is no checkpoint, or asks for other objects.
    """
    try:
        # The format before PyTorch 1.6 is no zip and cannot be searched: nothing is skipped there.
        zipped = zipfile.is_zipfile(path)
        named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path)) if zipped else []
        admitted: list[Any] = [(stand_in, name) for name, stand_in in CONTAINERS.items()]
        admitted += [(Skipped, name) for name in named if name.startswith(BOOKKEEPING)]
        foreign = set(named) - {name for _, name in admitted}
        if not foreign:
            with torch.serialization.safe_globals(admitted):
                return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a foreign file can break its reader in any way
        raise ValueError(
            f"{path} is damaged or no checkpoint of tensors in plain containers; anything else is "
            "not read, as it could run code."
        ) from error
    raise ValueError(
        f"{path} asks for {', '.join(sorted(foreign))}; only tensors in plain containers are read, "
        "as anything else could run code."
    )
