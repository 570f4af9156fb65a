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

# One process, so without `accelerate launch`, which would load everything once more.
train() {
  script=$1 recipe=$2
  shift 2
  ACCELERATE_USE_CPU=1 "$PYTHON" "train/$script.py" "hub_configs/$recipe/training.yaml" \
    "data.root=$DATA" "data.modality=$MODALITY" "loop.seed=$SEED" "$@"
}

make_masks() {
  "$PYTHON" train/make_pseudo_masks.py "stage1=$OUT/stage1" "data.root=$DATA" \
    "data.modality=$MODALITY" "$@"
}

if [ -n "${DATA:-}" ]; then
  validation=1 test=0.25
else
  DATA=$OUT/phantoms validation=6 test=20  # 20: of 10 the intervals span twenty points
  "$PYTHON" -m modeling_rasalore.cli phantom "$DATA" --patients 72 --healthy 14 --seed "$SEED"
fi
split="split.validation=$validation split.test=$test split.seed=$SEED"

# What runs side by side has half of the cores each, and its output in a log.
cores=$("$PYTHON" -c "import os; print(len(os.sched_getaffinity(0)))")
beside= log=
trap 'stop "$beside"' EXIT
trap 'exit 130' INT TERM
stop() { # a process and all that it started
  [ -n "$1" ] || return 0
  for child in $(pgrep -P "$1"); do stop "$child"; done
  kill "$1" 2>/dev/null || true
}
start() {
  log=$1
  shift
  export OMP_NUM_THREADS=$(((cores + 1) / 2))
  "$@" >"$log" 2>&1 &
  beside=$!
}
finish() { # wait for it; where it failed, show the end of its log
  echo "waiting for what runs beside (its progress: $log)"
  wait "$beside" || { tail -5 "$log" >&2; exit 1; }
  beside=
  unset OMP_NUM_THREADS
}

# Stage 1, and stage 2 on lesions painted into healthy slices: brighter than tissue in T2 and FLAIR,
# darker in T1, either in T1 with contrast agent. What is learned there sharpens the pseudo-masks.
case $MODALITY in t1) darker=1 ;; t1ce) darker=0.5 ;; *) darker=0 ;; esac
start "$OUT/stage1.log" train stage1 ddpt-tiny "out=$OUT/stage1" $split
train stage2 rasalore-tiny "out=$OUT/warm_up" $split synthetic_lesions.share=1 \
  synthetic_lesions.darker_share=$darker optimizer.learning_rate=5.0e-3 loop.max_steps=400
finish

start "$OUT/true_masks.log" make_masks source=truth "out=$OUT/true_masks" # of the ceiling
make_masks threshold=0.3 guidance=0.06 minimum_probability=0.5 "appearance=$OUT/warm_up" \
  "out=$OUT/pseudo_masks"
finish

# RASALoRE, and its ceiling: the same network on the true masks of the same slices.
segment() {
  train stage2 rasalore-tiny "pseudo_masks=$OUT/$1" "out=$OUT/$2" \
    "initial_weights=$OUT/warm_up" synthetic_lesions.darker_share=$darker
}
start "$OUT/ceiling.log" segment true_masks ceiling
segment pseudo_masks stage2
finish

"$PYTHON" train/run_benchmark.py "stage1=$OUT/stage1" "synthetic_only=$OUT/warm_up" \
  "stage2=$OUT/stage2" "ceiling=$OUT/ceiling" "data.root=$DATA" "data.modality=$MODALITY" \
  "out=$OUT" "seed=$SEED" "workers=$cores"

scan=$("$PYTHON" - <<END
import json
from modeling_rasalore.layouts import find_patients
test = json.load(open("$OUT/stage1/split.json"))["test"]
print([p.images["$MODALITY"] for p in find_patients("$DATA") if p.patient_id in test][-1])
END
)
"$PYTHON" -m modeling_rasalore.cli predict "$scan" --model "$OUT/stage2" --out "$OUT/prediction"
echo "Everything is in $OUT: results.md, results.json, results.png, results_grid.png, prediction/"
