#!/usr/bin/env bash
#SBATCH --job-name=equisearch
#SBATCH --nodes=4
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
# One Ray over the nodes of the job: sbatch slurm.sh STUDY DIR. Edit the lines above.
set -euo pipefail
study=$1 directory=$2
here=$(cd "$(dirname "${EQUISEARCH_RECIPES:-$0}")" && pwd)
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$head:6379"
export RAY_ADDRESS="$address"
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" -- \
    bash "$here/search.sh" "$study" "$directory" --workers auto --timeout 11h
