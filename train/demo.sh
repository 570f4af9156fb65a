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
LAUNCH="$PYTHON -m accelerate.commands.launch --cpu --num_processes 1 --num_machines 1
  --mixed_precision no --dynamo_backend no"

if [ -n "${DATA:-}" ]; then
  split="split.validation=1 split.test=0.25 split.seed=$SEED"
else
  DATA=$OUT/phantoms
  split="split.validation=6 split.test=10 split.seed=$SEED"
  "$PYTHON" -m modeling_rasalore.cli phantoms "$DATA" --patients 60 --healthy 12 --seed "$SEED"
fi
data="data.root=$DATA data.modality=$MODALITY"

$LAUNCH train/stage1.py hub_configs/ddpt-tiny/training.yaml $data $split \
  out="$OUT/stage1" loop.seed="$SEED"
"$PYTHON" train/make_pseudo_masks.py $data stage1="$OUT/stage1" out="$OUT/pseudo_masks" \
  threshold=0.3 guidance=0.06 minimum_probability=0.5
# The ceiling: the same network on the true masks of the same slices.
"$PYTHON" train/make_pseudo_masks.py $data stage1="$OUT/stage1" out="$OUT/true_masks" source=truth

# Stage 2 starts on lesions painted into healthy slices: brighter than tissue in T2 and FLAIR,
# darker in T1, either in T1 with contrast agent.
case $MODALITY in t1) darker=1 ;; t1ce) darker=0.5 ;; *) darker=0 ;; esac
stage2="$LAUNCH train/stage2.py hub_configs/rasalore-tiny/training.yaml $data
  loop.seed=$SEED synthetic_lesions.darker_share=$darker"
$stage2 pseudo_masks="$OUT/pseudo_masks" out="$OUT/warm_up" synthetic_lesions.share=1 \
  optimizer.learning_rate=5.0e-3 loop.max_steps=250
# RASALoRE and its ceiling go on from there side by side, each with half of the cores.
cores=$("$PYTHON" -c "import os; print(len(os.sched_getaffinity(0)))")
export OMP_NUM_THREADS=$(((cores + 1) / 2))
$stage2 pseudo_masks="$OUT/true_masks" out="$OUT/ceiling" initial_weights="$OUT/warm_up" \
  >"$OUT/ceiling.log" 2>&1 &
ceiling=$!
trap 'kill $ceiling 2>/dev/null || true' EXIT
$stage2 pseudo_masks="$OUT/pseudo_masks" out="$OUT/stage2" initial_weights="$OUT/warm_up"
echo "waiting for the ceiling (its progress: $OUT/ceiling.log)"
wait $ceiling || { tail -5 "$OUT/ceiling.log" >&2; exit 1; }
trap - EXIT
unset OMP_NUM_THREADS

"$PYTHON" train/run_benchmark.py $data stage1="$OUT/stage1" \
  synthetic_only="$OUT/warm_up" stage2="$OUT/stage2" ceiling="$OUT/ceiling" out="$OUT" seed="$SEED"

scan=$("$PYTHON" - <<END
import json
from modeling_rasalore.layouts import find_patients
test = json.load(open("$OUT/stage1/split.json"))["test"]
print([p.images["$MODALITY"] for p in find_patients("$DATA") if p.patient_id in test][-1])
END
)
"$PYTHON" -m modeling_rasalore.cli predict "$scan" --model "$OUT/stage2" --out "$OUT/prediction"
echo "Everything is in $OUT: results.md, results.json, results.png, prediction/"
