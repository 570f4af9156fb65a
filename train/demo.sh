#!/bin/sh
# The whole story on two cores: scans and slice labels -> stage 1 -> pseudo-masks -> stage 2 ->
# scores of held-out patients -> one segmented volume. `make demo` calls this.
#   DATA=<folder>   real scans instead of synthetic ones
#   MODALITY=t2     t1, t1ce, t2 or flair
#   OUT=runs/demo   where everything goes
#   SEED=0          of everything
set -eu
PYTHON=${PYTHON:-.venv/bin/python}
MODALITY=${MODALITY:-t2}
SEED=${SEED:-0}
OUT=${OUT:-runs/demo}
RUN="$PYTHON -m accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 \
  --mixed_precision no --dynamo_backend no"
common="data.modality=$MODALITY loop.seed=$SEED"

if [ -z "${DATA:-}" ]; then
  DATA=$OUT/phantoms
  "$PYTHON" -m modeling_rasalore.cli phantoms "$DATA" --patients 32 --healthy 8 --seed "$SEED"
  split="split.validation=4 split.test=8 split.seed=$SEED"
else
  split="split.validation=1 split.test=${TEST_PATIENTS:-2} split.seed=$SEED"
fi

$RUN train/stage1.py hub_configs/ddpt-tiny/training.yaml \
  data.root="$DATA" out="$OUT/stage1" $common $split
"$PYTHON" train/make_pseudo_masks.py stage1="$OUT/stage1" \
  data.root="$DATA" data.modality="$MODALITY" out="$OUT/pseudo_masks"
$RUN train/stage2.py hub_configs/rasalore-tiny/training.yaml \
  data.root="$DATA" pseudo_masks="$OUT/pseudo_masks" out="$OUT/stage2" $common
