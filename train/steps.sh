# What train/demo.sh and train/folds.sh are made of; they set PYTHON, MODALITY, SEED and DATA.

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

# Of few real patients the small networks learn next to nothing, so both start on synthetic ones,
# whose masks are known; no real patient and no pixel label has a part in it.
learn_start() { # FOLDER
  learn_phantoms "$1"
  make_masks "$1/stage1" "$1/phantoms" source=truth "out=$1/true_masks"
  segment "$1/phantoms" "$1/true_masks" "$1/stage2" "$1/warm_up"
}

learn_labels() { # FOLDER START SPLIT...: stage 1 on real slice labels
  to=$1 from=$2 # not the callers' names: variables are global
  shift 2
  train stage1 ddpt-tiny "$DATA" "out=$to/stage1" "initial_weights=$from/stage1" \
    optimizer.learning_rate=3.0e-4 context_learning_rate=3.0e-4 loop.max_steps=300 "$@"
}

cut_heatmaps() { # FOLDER WORD...: pseudo-masks of its stage 1
  stage1=$1/stage1
  shift
  make_masks "$stage1" "$DATA" threshold=0.3 filter_reach=0.06 minimum_probability=0.5 "$@"
}

# What is known of lesions sharpens the pseudo-masks, and stage 2 starts from it: RASALoRE, and its
# ceiling, the same network on the true masks of the same slices.
learn_to_segment() { # FOLDER KNOWN
  start "$1/true_masks.log" make_masks "$1/stage1" "$DATA" source=truth "out=$1/true_masks"
  cut_heatmaps "$1" "appearance=$2" "out=$1/pseudo_masks"
  finish
  start "$1/ceiling.log" segment "$DATA" "$1/true_masks" "$1/ceiling" "$2"
  segment "$DATA" "$1/pseudo_masks" "$1/stage2" "$2"
  finish
}
