#!/usr/bin/env bash
# How fast and lean are the networks beside their peers? Writes a record and a chart of each comparison into a folder.
#
#     benchmarks/marks.sh FOLDER [PATTERN]     # about half an hour on 2 cores, alone; PATTERN: only names that match
set -euo pipefail
out=${1:?give a folder for the records}
pattern=${2:-}
preresnet=${PRERESNET:-preresnet}

mark() {
    local name=$1
    shift
    if [[ $name == *$pattern* && ! -e $out/$name.json ]]; then
        echo "== $name" >&2
        "$preresnet" bench "$@" --out "$out/$name.json" >/dev/null
    fi
}

mark resnet20-training resnet20-preact --batch 128 --against pytorchcv eager limit
mark resnet110-training resnet110-preact --batch 128 --against pytorchcv eager limit --steps 2
mark resnet110-gate-training resnet110-original-exclusive-gate-6 --batch 128 --against eager limit --steps 2
mark resnet164-training resnet164-preact --batch 64 --against pytorchcv eager limit --rounds 15 --steps 2
mark resnet50-training resnet50-preact --batch 32 --against timm eager limit --steps 1
mark resnet1001-memory resnet1001-preact --batch 128 --against eager --memory recompute sqrt --rounds 3 --steps 1
mark resnet164-inference-256 resnet164-preact --batch 256 --against pytorchcv --inference
mark resnet164-inference-1 resnet164-preact --batch 1 --against pytorchcv --inference --steps 20
