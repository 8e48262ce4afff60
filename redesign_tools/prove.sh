#!/usr/bin/env bash
# Prints the weights' hashes of fixed tiny runs of a checkout: one rank; one rank resumed in the middle; two ranks. And the voice's.
#   prove.sh CHECKOUT [PYTHON]
set -euo pipefail
tree=$(realpath "$1"); python=$(realpath -s "${2:-$tree/.venv/bin/python}")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
data=${PROOF_DATA:-/tmp/redesign_proof}
export OMP_NUM_THREADS=1 WANDB_MODE=offline PYTHONPATH=$tree
cd "$tree"
corpus=$("$python" -c "
import importlib.util as u; print(next(m for m in ('vits_trainer.data.preparation.espeak_corpus','vits_trainer.corpus') if u.find_spec(m.rpartition('.')[0]) and u.find_spec(m)))" 2>/dev/null || echo vits_trainer.corpus)
if [ ! -d "$data/training" ]; then
  "$python" -c "
import importlib, pathlib, sys
importlib.import_module('$corpus').speak_corpus(pathlib.Path('$data/corpus'))"
  "$python" -m vits_trainer prepare_data --dataset "$data/corpus" --output_dir "$data/training" --processes 1 >/dev/null
fi
flags() { echo train_vits --config tiny --data_dir "$data/training" --runs_dir "$work/runs" --checkpoint_dir "$work/$1" --output_dir "$work/$1-voice" \
  --precision fp32 --report_to none --validation_samples 0 --save_every_updates 5 --run_name "$1"; }
hash_of() { grep -h -o "weights of all .*" "$work/runs/$1/train.log" | tail -n 1; }
"$python" -m vits_trainer $(flags one) --max_updates 10 >/dev/null 2>"$work/log" || { cat "$work/log"; exit 1; }
echo "one rank:     $(hash_of one)"
"$python" -m vits_trainer $(flags two) --max_updates 5 >/dev/null 2>&1
"$python" -m vits_trainer $(flags two) --max_updates 10 --resume_from_checkpoint latest >/dev/null 2>"$work/log" || { cat "$work/log"; exit 1; }
echo "resumed at 5: $(hash_of two)"
"$python" -m accelerate.commands.launch --config_file accelerate_configs/cpu_2proc.yaml -m vits_trainer $(flags ranks) --max_updates 10 >/dev/null 2>"$work/log" || { cat "$work/log"; exit 1; }
echo "two ranks:    $(hash_of ranks)"
echo "voice:        $(sha256sum < "$work/one-voice/model.safetensors" | cut -c1-16), prepared data: $(cat "$data"/training/metadata.csv "$data"/training/wavs/* | sha256sum | cut -c1-16)"
