#!/usr/bin/env bash
# The whole s1 story offline on a laptop's CPU, from a bare clone: curate -> fine-tune -> scaling curves -> report.
#   bash launch/quickstart.sh [OUT]     OUT: folder for rows, tables and plots (default: out)
# Finished steps are not repeated; remove OUT to start again.
set -euo pipefail
case ${1-out} in
-h | --help)
    sed -n '2,4s/^# \?//p' "$0"
    exit 0
    ;;
-* | "")
    echo "error: OUT is a folder, not '$1'; usage: bash launch/quickstart.sh [OUT]" >&2
    exit 1
    ;;
/*) out=$1 ;;
*) out=$PWD/${1-out} ;;
esac
if [ $# -gt 1 ]; then
    echo "error: one OUT is enough, not also '$2'; usage: bash launch/quickstart.sh [OUT]" >&2
    exit 1
fi
CDPATH= cd -- "$(dirname "$0")/.."
out=${out#"$PWD"/} # a short path: plots and tables name the model by it
. launch/install.sh
install ""
mkdir -p "$out"
export JAX_PLATFORMS=cpu
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1} # huge pages, faster on CPUs
# One virtual device per core (a power of two, at most 8): the mesh divides the work over them.
cores=$(getconf _NPROCESSORS_ONLN) devices=1
while [ $((devices * 2)) -le "$cores" ] && [ $devices -lt 8 ]; do devices=$((devices * 2)); done
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR-$PWD/.cache/compiled}
started=$SECONDS

# run RESULT TITLE COMMAND...: run a step unless its result exists.
run() {
    local result=$1 title=$2 begun=$SECONDS
    shift 2
    if [ -e "$result" ]; then
        printf '== %s: done already\n' "$title" >&2
        return
    fi
    printf '\n== %s\n' "$title" >&2
    if ! .venv/bin/python "$@"; then
        printf '\nerror: this step failed: python %s\nThe message above says why. Run this script again to continue from here, or remove %s to start again.\n' "$*" "$out" >&2
        exit 1
    fi
    printf '   %d s\n' $((SECONDS - begun)) >&2
}

run "$out/data/heldout.jsonl" "1/6 making a pool of word problems, good and bad, and problems to test on" \
    -m data_tools.quickstart.arithmetic "$out/data"
run "$out/curated/train.jsonl" "2/6 choosing the training set: quality, difficulty, diversity" \
    -m data_tools.curation quickstart_data --collect.pool "$out/data/pool.jsonl" --decontamination.heldout "$out/data/heldout.jsonl" --output "$out/curated"
run "$out/model/hf/config.json" "3/6 fine-tuning the tiny base model on reasoning traces" \
    launch/train.py quickstart --data.source "$out/curated/train.jsonl" --output "$out/model"
on_heldout=(--model "$out/model/hf" --benchmark "$out/data/heldout.jsonl" --output "$out/rows.jsonl")
sweep() {
    run "$out/.$1" "$2" launch/sweep.py "$1" "${on_heldout[@]}"
    touch "$out/.$1"
}
sweep quickstart_budgets "4/6 sequential scaling: the held-out problems with growing thinking budgets"
sweep quickstart_waits "5/6 sequential scaling: attempts to stop thinking are replaced by \"Wait\""
sweep quickstart_votes "6/6 parallel scaling: majority votes of up to 64 samples"
printf '\n== drawing\n\n' >&2
.venv/bin/python launch/plot.py "$out/rows.jsonl" --out "$out" >/dev/null
.venv/bin/python launch/report.py "$out/rows.jsonl" --benchmark "$out/data/heldout.jsonl" --out "$out/report.html" >/dev/null

printf '\nDone in %d s. In %s:\n' $((SECONDS - started)) "$out" >&2
cat >&2 <<END
  thinking.png, voting.png      accuracy against thinking tokens, and against number of samples; points in .json files
  tokens.png, tokens.json       accuracy against all tokens: budgets, Waits and votes on one axis
  report.html                   all of it, to look into: open this file in a browser, and choose "Answers"
  rows.jsonl                    every answer: the trace, its token counts and its grade
  data/                         the pool of problems, and those to test on
  curated/                      the chosen training set, the rejected rows with reasons, report.json and funnel.png
  model/                        the fine-tuned model; model/hf is a Hugging Face checkpoint. Ask it with
    .venv/bin/python launch/generate.py --model "$out/model/hf" --prompt "A bus has 20 passengers. Stop A: 5 get on. How many are there after stop A?" --num-ignore 1 --max-thinking-tokens 192 --max-answer-tokens 16
END
