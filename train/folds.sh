#!/bin/sh
# Every patient of a real data set tested once per seed: all stages fold by fold, all systems, and
# one table. Start it again after an interruption and it goes on where it was.
#   DATA=<folder>     scans with masks, which only the ceiling and the scores see
#   MODALITY=t2       t1, t1ce, t2 or flair
#   OUT=runs/folds    where everything goes
#   FOLDS=4 SEEDS=0   how many folds, and which seeds, such as "0 1 2"
#   SYSTEMS=all       of train/run_benchmark.py
set -eu
PYTHON=${PYTHON:-.venv/bin/python}
MODALITY=${MODALITY:-t2}
OUT=${OUT:-runs/folds}
: "${DATA:?DATA must name the folder of scans}"
. train/steps.sh

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
    # And as the poster has it: from random weights, of heatmaps alone.
    cut_heatmaps "$folder" "out=$folder/heatmap_masks"
    train stage2 rasalore-tiny "$DATA" "pseudo_masks=$folder/heatmap_masks" "out=$folder/poster" \
      synthetic_lesions.share=0 augmentation.gamma=0 optimizer.learning_rate=5.0e-3
    "$PYTHON" train/run_benchmark.py "data.root=$DATA" "data.modality=$MODALITY" "seed=$SEED" \
      "stage1=$folder/stage1" "synthetic_only=$known/stage2" "stage2=$folder/poster" \
      "stage2_warm=$folder/stage2" "ceiling=$folder/ceiling" "out=$folder/benchmark" \
      "systems=${SYSTEMS:-all}" "workers=$cores"
    tables=$tables,$folder/benchmark
  done
done
"$PYTHON" train/pool_folds.py "folders=[${tables#,}]" "out=$OUT/pooled"
echo "Everything is in $OUT: pooled/results.md, seed*/fold*/benchmark"
