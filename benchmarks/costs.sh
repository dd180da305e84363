#!/usr/bin/env bash
# What guarding costs, in all the uses that the documents speak of. An estimate for SmolLM2 on two quiet cores: half an hour
# or more. All of it has not been run in one go yet.
#
#     benchmarks/costs.sh [LLAMA_SERVER]           # the program that llama_server.sh builds; without it that row is left out
#
# The figures go to benchmarks/results/; `benchmarks/tables.py` puts them into the documents. For another model add
# `--model FILE.gguf` to the single programs. How far scores move needs questions: see score_stability.py.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
results=$here/results
server=()
[ $# -eq 0 ] || server=(--server "$1")

python "$here/overhead.py" --out "$results/smollm2-llama-cpp.json"
python "$here/overhead.py" --engine transformers --pairs 6 --out "$results/smollm2-transformers.json"
python "$here/conversations.py" --out "$results/conversations-smollm2.json"
python "$here/attention.py" --out "$results/attention-smollm2.json"
python "$here/clients.py" "${server[@]}" --out "$results/clients-smollm2.json"
python "$here/threads.py" --out "$results/threads-smollm2.json"
python "$here/recordings.py" --out "$results/recordings-smollm2.json"
