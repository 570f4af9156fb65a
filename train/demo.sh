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
train() { # SCRIPT RECIPE SCANS WORD...
  script=$1 recipe=$2 scans=$3
  shift 3
  ACCELERATE_USE_CPU=1 "$PYTHON" "train/$script.py" "hub_configs/$recipe/training.yaml" \
    "data.root=$scans" "data.modality=$MODALITY" "loop.seed=$SEED" "$@"
}

make_masks() { # STAGE1 SCANS WORD...
  stage1=$1 scans=$2
  shift 2
  "$PYTHON" train/make_pseudo_masks.py "stage1=$stage1" "data.root=$scans" \
    "data.modality=$MODALITY" "$@"
}

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

# Lesions are brighter than tissue in T2 and FLAIR, darker in T1, either in T1 with contrast agent.
case $MODALITY in t1) darker=1 ;; t1ce) darker=0.5 ;; *) darker=0 ;; esac

# Synthetic patients: stage 1, and beside it stage 2 on lesions painted into healthy slices.
learn_phantoms() { # FOLDER
  "$PYTHON" -m modeling_rasalore.cli phantom "$1/phantoms" --patients 72 --healthy 14 --seed "$SEED"
  # 20 to test: of 10 the intervals span twenty points
  split="split.validation=6 split.test=20 split.seed=$SEED"
  start "$1/stage1.log" train stage1 ddpt-tiny "$1/phantoms" "out=$1/stage1" $split
  train stage2 rasalore-tiny "$1/phantoms" "out=$1/warm_up" $split synthetic_lesions.share=1 \
    synthetic_lesions.darker_share=$darker optimizer.learning_rate=5.0e-3 loop.max_steps=400
  finish
}

segment() { # SCANS MASKS OUT START
  train stage2 rasalore-tiny "$1" "pseudo_masks=$2" "out=$3" "initial_weights=$4" \
    synthetic_lesions.darker_share=$darker
}

if [ -n "${DATA:-}" ]; then
  # Of few real patients the small networks learn next to nothing, so both start on synthetic ones,
  # whose masks are known; no real patient and no pixel label has a part in it.
  learn_phantoms "$OUT/start"
  make_masks "$OUT/start/stage1" "$OUT/start/phantoms" source=truth "out=$OUT/start/true_masks"
  start "$OUT/stage1.log" train stage1 ddpt-tiny "$DATA" "out=$OUT/stage1" \
    "initial_weights=$OUT/start/stage1" optimizer.learning_rate=3.0e-4 \
    context_learning_rate=3.0e-4 loop.max_steps=300 \
    split.validation=1 split.test=0.25 "split.seed=$SEED"
  segment "$OUT/start/phantoms" "$OUT/start/true_masks" "$OUT/start/stage2" "$OUT/start/warm_up"
  finish
  known=$OUT/start/stage2
else
  learn_phantoms "$OUT"
  DATA=$OUT/phantoms known=$OUT/warm_up
fi

# What is known of lesions sharpens the pseudo-masks, and stage 2 starts from it.
start "$OUT/true_masks.log" make_masks "$OUT/stage1" "$DATA" source=truth "out=$OUT/true_masks"
make_masks "$OUT/stage1" "$DATA" threshold=0.3 guidance=0.06 minimum_probability=0.5 \
  "appearance=$known" "out=$OUT/pseudo_masks"
finish

# RASALoRE, and its ceiling: the same network on the true masks of the same slices.
start "$OUT/ceiling.log" segment "$DATA" "$OUT/true_masks" "$OUT/ceiling" "$known"
segment "$DATA" "$OUT/pseudo_masks" "$OUT/stage2" "$known"
finish

"$PYTHON" train/run_benchmark.py "stage1=$OUT/stage1" "synthetic_only=$known" \
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
