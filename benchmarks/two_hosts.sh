#!/usr/bin/env bash
# One training over two hosts that lose a process: two network namespaces with a link between them stand for the hosts.
# Needs root and Linux. Ends with 0 where the weights are those of an undisturbed run in two processes of one host.
#
#     benchmarks/two_hosts.sh FOLDER     # about a minute on 2 cores; needs preresnet and torchrun on the path
set -euo pipefail
out=$(realpath -m "${1:?give a folder that does not exist yet}")
if [[ -e $out ]]; then echo "$out is there already; give another folder" >&2; exit 2; fi
mkdir -p "$out"
here=preresnet-$$
train=(-m preresnet train digits/resnet20-preact --device cpu --precision float32
    --schedule.steps 300 --schedule.warmup-steps 20 --log-every 25 --eval-every 300 --save-every 25)
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

leave() {
    kill "${hosts[@]}" 2>/dev/null || true
    for host in a b; do
        ip netns pids "$here-$host" 2>/dev/null | xargs -r kill -9 || true
        ip netns del "$here-$host" 2>/dev/null || true
    done
}
hosts=()
trap leave EXIT

ip netns add "$here-a"
ip netns add "$here-b"
ip link add link0 netns "$here-a" type veth peer name link0 netns "$here-b"
for host in a:10.99.0.1 b:10.99.0.2; do
    ip -n "$here-${host%%:*}" addr add "${host#*:}/24" dev link0
    ip -n "$here-${host%%:*}" link set link0 up
    ip -n "$here-${host%%:*}" link set lo up
done

on() { # host, address, whether it keeps the list of hosts, which namespaces cannot find out by a name
    ip netns exec "$here-$1" env GLOO_SOCKET_IFNAME=link0 torchrun --nnodes 2 --nproc-per-node 1 --max-restarts 3 \
        --rdzv-backend c10d --rdzv-endpoint 10.99.0.1:29400 --rdzv-id run --local-addr "$2" \
        --rdzv-conf "is_host=$3" "${train[@]}" --out "$out/run" >"$out/host-$1.log" 2>&1 &
    hosts+=($!)
}
on a 10.99.0.1 true
on b 10.99.0.2 false

for _ in $(seq 600); do
    if [[ -f $out/run/checkpoint.pt && $(wc -l <"$out/run/metrics.jsonl") -ge 4 ]]; then break; fi
    sleep 0.1
done
if [[ ! -f $out/run/checkpoint.pt ]]; then echo "no checkpoint within a minute; see $out/host-a.log" >&2; exit 1; fi
lost=$(ip netns pids "$here-b" | while read -r pid; do
    if tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q -- "-m preresnet train" &&
        ! tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q torchrun; then echo "$pid"; fi
done | head -1)
echo "kill -9 of the process on host b, after $(tail -1 "$out/run/metrics.jsonl" | grep -o '"step": [0-9]*')"
kill -9 "$lost"
for host in "${hosts[@]}"; do wait "$host"; done
hosts=()
cat "$out/host-a.log" | grep -v "^W\|^E\|^\*" | tail -12

torchrun --nproc-per-node 2 "${train[@]}" --out "$out/calm" >"$out/calm.log" 2>&1
python - "$out/run/weights.safetensors" "$out/calm/weights.safetensors" <<'END'
import sys

from safetensors.torch import load_file

run, calm = map(load_file, sys.argv[1:])
sys.exit(not (run.keys() == calm.keys() and all(run[name].equal(calm[name]) for name in calm)))
END
echo "the weights are those of an undisturbed run in two processes of one host, bit for bit"
