#!/bin/sh
# Every patient of a real data set tested once per seed: all stages fold by fold, all systems, and
# one table; further data sets scored by what was learned, one table each. Start it again after an
# interruption and it goes on where it was.
#   DATA=<folder>     scans with masks, which only the ceiling and the scores see
#   MODALITY=t2       t1, t1ce, t2 or flair
#   OUT=runs/folds    where everything goes
#   FOLDS=4 SEEDS=0   how many folds, and which seeds, such as "0 1 2"
#   SYSTEMS=all       of train/run_benchmark.py
#   CROSS=            folders of further data sets with masks and that sequence, such as "a b"
set -eu
PYTHON=${PYTHON:-.venv/bin/python}
MODALITY=${MODALITY:-t2}
OUT=${OUT:-runs/folds}
: "${DATA:?DATA must name the folder of scans}"
. train/steps.sh

score() { # WORD...: the networks of this fold, on its test patients or on another data set
  "$PYTHON" train/run_benchmark.py "data.root=$DATA" "data.modality=$MODALITY" "seed=$SEED" \
    "stage1=$folder/stage1" "synthetic_only=$known/stage2" "stage2=$folder/poster" \
    "stage2_warm=$folder/stage2" "stage2_warm_selftrained=$folder/round_1" \
    "ceiling=$folder/ceiling" "out=$folder/benchmark" "systems=${SYSTEMS:-all}" \
    "workers=$cores" "$@"
}

tables=
for SEED in ${SEEDS:-0}; do
  known=$OUT/seed$SEED/start
  mkdir -p "$known"
  learn_start "$known"
  for fold in $(seq "${FOLDS:-4}"); do
    folder=$OUT/seed$SEED/fold$fold
    mkdir -p "$folder"
    learn_labels "$folder" "$known" "split.folds=${FOLDS:-4}" "split.fold=$fold" split.validation=1
    learn_to_segment "$folder" "$known/stage2"
    # Once more from the same start, on pseudo-masks that this network makes.
    make_masks "$folder/stage1" "$DATA" "teacher=$folder/stage2" "out=$folder/round_1_masks"
    start "$folder/round_1.log" segment "$DATA" "$folder/round_1_masks" "$folder/round_1" \
      "$known/stage2"
    # And as the poster has it: from random weights, of heatmaps alone.
    cut_heatmaps "$folder" "out=$folder/heatmap_masks"
    train stage2 rasalore-tiny "$DATA" "pseudo_masks=$folder/heatmap_masks" "out=$folder/poster" \
      synthetic_lesions.share=0 augmentation.gamma=0 optimizer.learning_rate=5.0e-3
    finish
    score
    for other in ${CROSS:-}; do score "cross.root=$other"; done
    tables=$tables$folder/benchmark,
  done
done

pool() { # SUBFOLDER of every fold's benchmark
  list=$(echo "$tables" | sed "s|/benchmark,|/benchmark$1,|g")
  "$PYTHON" train/pool_folds.py "folders=[${list%,}]" "out=$OUT/pooled$1"
}
pool ""
for other in ${CROSS:-}; do pool "/cross/$(basename "$other")"; done
echo "Everything is in $OUT: pooled/results.md, pooled/cross/*/results.md, seed*/fold*/benchmark"
