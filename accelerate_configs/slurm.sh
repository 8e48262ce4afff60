#!/usr/bin/env bash
# Trains on several machines under Slurm and requeues the job until it is done: docs/checkpoints.md, "On a cluster".
#
#   DATA_DIR=/shared/training MODEL=facebook/mms-tts-eng sbatch accelerate_configs/slurm.sh
#
# Data, checkpoints and runs must be on a disk shared by all nodes.
#SBATCH --job-name=vits_trainer
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Signal only this script, 5 minutes before the limit: SIGUSR1 would kill accelerate launch and orphan its ranks.
#SBATCH --signal=B:USR1@300
set -uo pipefail

DATA_DIR=${DATA_DIR:-training}
MODEL=${MODEL:-facebook/mms-tts-kmr-script_latin}
RUN_NAME=${RUN_NAME:-slurm-${SLURM_JOB_ID}}
RUN_DIR=$DATA_DIR/runs/$RUN_NAME
GPUS_PER_NODE=${GPUS_PER_NODE:-8}

mkdir -p "$RUN_DIR"
# All ranks save at the same update and exit.
trap 'touch "$RUN_DIR/STOP"' USR1 TERM

MAIN_IP=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 bash -c "
    exec accelerate launch --config_file accelerate_configs/multi_node.yaml \
        --num_machines $SLURM_NNODES --num_processes $((SLURM_NNODES * GPUS_PER_NODE)) --machine_rank \$SLURM_NODEID \
        --main_process_ip $MAIN_IP --main_process_port $((20000 + SLURM_JOB_ID % 40000)) \
        -m vits_trainer train_vits --data_dir '$DATA_DIR' --model_name '$MODEL' --run_name '$RUN_NAME' \
        --resume_from_checkpoint auto $*" &
step=$!
# A trapped signal ends the first wait; the step keeps running until it has saved.
until wait "$step"; code=$?; ! kill -0 "$step" 2>/dev/null; do :; done

if ! grep -q '"outcome": "done"' "$RUN_DIR/outcome.json" && [ "$code" -eq 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
