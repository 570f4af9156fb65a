#!/bin/sh
# The whole story on two cores: scans and slice labels -> stage 1 -> pseudo-masks -> stage 2 ->
# scores of held-out patients -> one segmented volume. `make demo` calls this; start it again after
# an interruption and it goes on where it was.
#   DATA=<folder>   real scans instead of synthetic ones; a quarter of the patients is held out
#   MODALITY=t2     t1, t1ce, t2 or flair
#   OUT=runs/demo   where everything goes
#   SEED=0          of everything
set -eu
PYTHON=${PYTHON:-.venv/bin/python}
MODALITY=${MODALITY:-t2}
SEED=${SEED:-0}
OUT=${OUT:-runs/demo}
mkdir -p "$OUT"

. train/steps.sh

if [ -n "${DATA:-}" ]; then
  learn_start "$OUT/start"
  learn_labels "$OUT" "$OUT/start" split.validation=1 split.test=0.25 "split.seed=$SEED"
  known=$OUT/start/stage2
else
  learn_phantoms "$OUT"
  DATA=$OUT/phantoms known=$OUT/warm_up
fi
learn_to_segment "$OUT" "$known"

"$PYTHON" train/run_benchmark.py "stage1=$OUT/stage1" "synthetic_only=$known" \
  "stage2=$OUT/stage2" "ceiling=$OUT/ceiling" "data.root=$DATA" "data.modality=$MODALITY" \
  "out=$OUT" "seed=$SEED" "workers=$cores"

scan=$("$PYTHON" - <<END
import json
from modeling_rasalore.data.layouts import find_patients
test = json.load(open("$OUT/stage1/split.json"))["test"]
print([p.images["$MODALITY"] for p in find_patients("$DATA") if p.patient_id in test][-1])
END
)
"$PYTHON" -m modeling_rasalore.cli predict "$scan" --model "$OUT/stage2" --out "$OUT/prediction"
echo "Everything is in $OUT: results.md, results.json, results.png, results_grid.png, prediction/"
