#!/usr/bin/env bash
# One training over the GPUs of some hosts that ssh reaches:   ./ssh.sh HOST HOST...
# Every host has the same environment and sees the same /shared. The first host's port 29400 has to be free.
set -euo pipefail
hosts=("$@")
if ((${#hosts[@]} < 1)); then echo "name one or more hosts" >&2; exit 2; fi

stop() { kill $(jobs -p) 2>/dev/null || true; }
trap stop INT TERM # with -tt, a host's processes get SIGHUP when its connection ends: they save and stop
for host in "${hosts[@]}"; do
    ssh -tt "$host" "source /shared/preresnet/bin/activate && cd /shared && torchrun \
        --nnodes ${#hosts[@]} --nproc-per-node gpu --max-restarts 3 \
        --rdzv-backend c10d --rdzv-endpoint ${hosts[0]}:29400 --rdzv-id preresnet \
        -m preresnet train imagenet/resnet200-preact-aspect --data-root /shared/imagenet \
        --out /shared/runs/resnet200 --resume" &
done
wait
