"""What `rasalore predict` imports in a process of its own, and what it prints there."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from own_model import save_own_model

from modeling_rasalore.scans.volume_writing import write_nifti

# Runs a command as its script does, then tells what the process has become.
PROGRAM = """
import json, sys
from modeling_rasalore.cli import main
code = main()
modules = sorted(sys.modules)
import modeling_rasalore.models
from transformers.utils import logging
facts = {"code": code, "modules": modules, "bars": logging.is_progress_bar_enabled()}
from transformers import AutoConfig
known = lambda: "rasalore" in AutoConfig.for_model.__globals__["CONFIG_MAPPING"]
facts["registered"] = [known(), modeling_rasalore.models.RasaloreModel.__name__, known()]
print(json.dumps(facts))
"""
NEEDLESS = {
    *("accelerate", "datasets", "matplotlib", "pandas", "pyarrow", "sympy", "tensorboard"),
    *("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.onnx"),
    *("transformers.generation.utils", "transformers.modeling_utils", "transformers.pipelines"),
}
MOST_MODULES = 2200  # 2011 with all extras, of which torch has 766; 3320 with PreTrainedModel
MOST_OF_TRANSFORMERS = 50  # 32; 167 with PreTrainedModel


def test_predict_imports_only_what_scoring_needs(tmp_path: Path) -> None:
    data = np.zeros((20, 24, 6), np.int16)
    data[4:16, 4:20, 1:5] = 100 + np.arange(16)[:, None]
    scan = write_nifti(tmp_path / "a_t2.nii.gz", data, np.diag([-5.0, -5.0, 10.0, 1.0]))
    model, out = save_own_model(tmp_path / "t2", modality="t2"), tmp_path / "out"
    words = ["predict", str(scan), "--model", str(model), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True
    )
    *said, last = done.stdout.splitlines()
    facts = json.loads(last)
    assert (facts["code"], said[-1]) == (0, f"report: {out / 'report.html'}")
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())
    modules = set(facts["modules"])
    assert modules & NEEDLESS == set()
    assert {"torch", "transformers"} <= modules
    assert len(modules) <= MOST_MODULES
    assert sum(name.split(".")[0] == "transformers" for name in modules) <= MOST_OF_TRANSFORMERS
    assert facts["bars"] is False
    assert facts["registered"] == [False, "RasaloreModel", True]
