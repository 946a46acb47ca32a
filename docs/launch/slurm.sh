#!/usr/bin/env bash
# One training over the GPUs of two hosts, under Slurm:   sbatch slurm.sh
# Two minutes before its time is over Slurm sends SIGTERM: the run saves and ends. Submitted again, it goes on.
#SBATCH --job-name=preresnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail
source "$HOME/preresnet/bin/activate" # an environment with preresnet, on a disk that all hosts see

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$first:29400" --rdzv-id "$SLURM_JOB_ID" \
    -m preresnet train imagenet/resnet200-preact-aspect --data-root /shared/imagenet \
    --out /shared/runs/resnet200 --workers 8 --resume
