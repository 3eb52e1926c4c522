#!/usr/bin/env bash
# Everything worth knowing about HandBERT on one GPU, in at most ten minutes, on a machine that needs no Rust:
#
#     benches/gpu.sh BINARY OUTDIR [TOKENSET] [MODELCONFIG]
#
# BINARY is `handbert`, TOKENSET a token set, of real postings with labels (without one, synthetic postings are tokenized),
# MODELCONFIG a config.json (without one, recipes/base.json). Each step leaves OUTDIR/<nn>-<step>.{txt,json,…} and, as it
# ends, a line in OUTDIR/summary.txt: step, exit code, seconds, key figure. A step that fails stops nothing but those that need what it makes;
# the summary is printed last. Exit code 124 or 137 is a step that ran past its limit, 77 one that was left out, with the reason.
# The card's clocks, power limit and partitioning stay as they are found.
#
# PYTHON (python3) runs the peers. GPU_SH_ONLY, an extended regular expression, names the steps to make ('0[0-3]|peer').
# GPU_SH_SECONDS (600) is what all of it may take, GPU_SH_DEVICE (cuda) what --device gets, GPU_SH_TOKENS (65536) the tokens of a
# batch where speed is measured, GPU_SH_CURVE_STEPS (300) the steps that are compared with PyTorch's.
# shellcheck disable=SC2329  # Steps are called by their names.
set -u

if [ $# -lt 2 ]; then
    sed -n '2,/^# shellcheck/{/shellcheck/d;s/^# \{0,1\}//p}' "$0"
    exit 2
fi

# In the order of what they are worth: whether it is right before how fast it is. Seconds, of 600; together they leave five over.
# What a step does not need goes to those that follow, so that each can take up to twice its own.
PLAN='
00-machine              8
01-kernels-compile     36
01-kernels-list         5
02-kernels-check       70
02-check-mma            5
02-check-wgmma          5
02-check-cublaslt       8
03-memcheck            25
03-racecheck           18
03-synccheck           15
04-data                12
04-curve-batches       10
04-curve-train         25
04-curve-torch         39
05-bench-kernels       26
05-bench-train         30
05-bench-predict       12
06-peer-sdpa           20
06-peer-compile        30
06-peer-packed         20
06-peer-packed-compile 31
06-peer-eager          20
06-peer-kernels        20
07-train-mlm           32
07-eval-mlm             8
07-fill-mask            5
07-train-classifier    15
07-eval-classifier      7
07-predict              8
08-quickstart          25
09-machine              5
'

BINARY=$(realpath "$1")
mkdir -p "$2" || exit 2
OUT=$(realpath "$2")
HERE=$(cd "$(dirname "$0")" && pwd)
SET=${3:+$(realpath "$3")}
CONFIG=$(realpath "${4:-$HERE/../recipes/base.json}")
ALL=${GPU_SH_SECONDS:-600}
ONLY=${GPU_SH_ONLY:-.}
DEVICE=${GPU_SH_DEVICE:-cuda}
TOKENS=${GPU_SH_TOKENS:-65536}
# Where it is learned, not measured: small batches, many steps.
SMALL=$((TOKENS < 16384 ? TOKENS : 16384))
CURVE_STEPS=${GPU_SH_CURVE_STEPS:-300}
PYTHON=${PYTHON:-python3}
END=$((SECONDS + ALL - 5))
SUMMARY=$OUT/summary.txt
# Weights, compiled kernels, checkpoints: large, and of no interest afterwards.
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
export HANDBERT_CACHE=$WORK/cache PYTHON BINARY

# ---- What a step is made with ------------------------------------------------------------------------------------------
# STEP and LIMIT are its name and seconds; it sets CODE and FIGURE.

# skip REASON
skip() { CODE=77 FIGURE="left out: $1"; }

# run EXTENSION COMMAND...: under the limit, stdout to OUT/STEP.EXTENSION, what it says on stderr to OUT/STEP.txt. The figure
# is the last line of that; true if it ended with 0.
run() {
    local extension=$1 code
    shift
    if [ "$extension" = txt ]; then
        timeout -k 3 "$LIMIT" "$@" >"$OUT/$STEP.txt" 2>&1 </dev/null
    else
        timeout -k 3 "$LIMIT" "$@" >"$OUT/$STEP.$extension" 2>"$OUT/$STEP.txt" </dev/null
    fi
    code=$?
    CODE=$code
    FIGURE=$(grep -v '^[[:space:]]*$' "$OUT/$STEP.txt" | tail -n 1 | cut -c 1-200)
    case $code in 124 | 137) FIGURE="ran past its limit of $LIMIT s: $FIGURE" ;; esac
    [ "$code" = 0 ]
}

# number FILE KEY [BY FORMAT]: the first number under this key of a JSON file, over BY; nothing where there is none.
number() {
    local found
    found=$(grep -o "\"$2\": *-\{0,1\}[0-9][-+.0-9eE]*" "$1" 2>/dev/null | head -n 1 | sed 's/.*: *//')
    [ -n "$found" ] && awk -v x="$found" -v by="${3:-1}" -v format="${4:-%s}" 'BEGIN { printf format, x / by }'
}

# of KEY BY FORMAT...: the figure, of numbers in what the step printed.
of() {
    local found
    FIGURE=
    while [ $# -ge 3 ]; do
        found=$(number "$OUT/$STEP.json" "$1" "$2" "$3")
        FIGURE="$FIGURE${FIGURE:+${found:+, }}$found"
        shift 3
    done
}

# needs FILE STEP: the step is left out where another did not leave this.
needs() {
    [ -s "$1" ] && return
    skip "it needs what $2 makes"
    return 1
}

# Makes a step, unless it is not among those to make or there is no time for it.
perform() {
    local began=$SECONDS left
    STEP=$1
    wanted "$STEP" || return
    LIMIT=$(share "$2")
    REST=$((REST - LIMIT))
    left=$((END - SECONDS))
    local most=$((left - REST))
    [ "$most" -le $((2 * LIMIT)) ] || most=$((2 * LIMIT))
    [ "$most" -ge "$LIMIT" ] || most=$((LIMIT < left ? LIMIT : left))
    LIMIT=$most CODE=1 FIGURE=
    if [ "$LIMIT" -lt 3 ]; then
        skip "too little time is left for it"
    else
        "step_$(echo "${STEP#*-}" | tr - _)"
    fi
    say "$STEP" "$CODE" "$((SECONDS - began))" "$FIGURE"
}

# share BUDGET: of the seconds that there are.
share() { echo $(($1 * ALL < 1800 ? 3 : $1 * ALL / 600)); }

wanted() { echo "$1" | grep -Eq -- "$ONLY"; }

# say STEP CODE SECONDS FIGURE: a line of the summary.
say() { printf '%-24s %5s %8s  %s\n' "$@" | tee -a "$SUMMARY" >&2; }

# ---- The steps ---------------------------------------------------------------------------------------------------------

state_of_card() {
    nvidia-smi
    nvidia-smi --format=csv --query-gpu=name,driver_version,compute_cap,memory.total,pstate,temperature.gpu,power.draw,power.limit,clocks.sm,clocks.mem,clocks.max.sm,clocks_throttle_reasons.active
    true
}

machine() {
    date -u +%FT%TZ
    uname -sr
    nproc
    grep -m 1 'model name' /proc/cpuinfo
    free -g
    state_of_card
    nvidia-smi -q -d MEMORY,CLOCK,POWER,TEMPERATURE,ECC | head -n 120
    nvcc --version
    ldconfig -p | grep -E 'libnvrtc|libcublasLt|libcuda\.so'
    echo "LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}"
    "$PYTHON" -c 'import torch; print("torch", torch.__version__, "for CUDA", torch.version.cuda)'
    "$BINARY" --version
    nvidia-smi --format=csv,noheader --query-gpu=name,driver_version || echo "there is no nvidia-smi here"
}
export -f state_of_card machine

step_machine() {
    if [ "${STEP%%-*}" = 00 ]; then run txt bash -c machine; else run txt bash -c state_of_card; fi
}

# NVRTC and cuBLASLt may lie where the loader does not look: in a toolkit, or among Python's packages.
find_library() {
    local root found python
    ldconfig -p 2>/dev/null | grep -q "$1\.so" && return
    python=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null)
    for root in /usr/local/cuda*/lib64/ /usr/local/cuda*/targets/*/lib/ ${python:+"$python/nvidia/"}; do
        found=$(find "$root" -name "$1.so*" 2>/dev/null | head -n 1)
        if [ -n "$found" ]; then
            export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${found%/*}"
            return
        fi
    done
}

# What `handbert kernels compile --arch` calls the card.
architecture() {
    case $(nvidia-smi --format=csv,noheader --query-gpu=compute_cap 2>/dev/null | head -n 1) in
        8.0) echo sm_80 ;;
        8.6) echo sm_86 ;;
        8.9) echo sm_89 ;;
        10.*) echo sm_100 ;;
        12.*) echo sm_120 ;;
        *) echo sm_90a ;;
    esac
}

step_kernels_compile() {
    run txt "$BINARY" kernels compile --arch "$ARCH" --out "$WORK/kernels" && export HANDBERT_KERNELS=$WORK/kernels
}
step_kernels_list() { run txt "$BINARY" kernels list --arch "$ARCH"; }
step_kernels_check() { run txt "$BINARY" kernels check --device "$DEVICE"; }
# Above each product goes the way that was quickest; here each way has its turn, on small shapes.
step_check_mma() { run txt "$BINARY" kernels check --quick --device "$DEVICE" --matmul mma; }
step_check_wgmma() { run txt "$BINARY" kernels check --quick --device "$DEVICE" --matmul wgmma; }
step_check_cublaslt() { run txt "$BINARY" kernels check --quick --device "$DEVICE" --matmul cublaslt; }

sanitized() {
    if command -v compute-sanitizer >/dev/null; then
        run txt compute-sanitizer --tool "$1" --error-exitcode 9 "$BINARY" kernels check --quick --device "$DEVICE"
    else
        skip "there is no compute-sanitizer here"
    fi
}
step_memcheck() { sanitized memcheck; }
step_racecheck() { sanitized racecheck; }
step_synccheck() { sanitized synccheck; }

# Postings to label, and a token set with labels where none was given.
step_data() {
    local origin=
    run txt "$BINARY" synth --rows 20000 --out "$WORK/postings.jsonl" || return
    if [ -z "$SET" ]; then
        run txt "$BINARY" tokenize "$WORK/postings.jsonl" --out "$WORK/set" --label-column label --train-vocab 8192 || return
        SET=$WORK/set LABELLED=$WORK/set origin="synthetic "
    elif ! grep -q '"label_column": *"' "$SET/meta.json"; then
        run txt "$BINARY" tokenize "$WORK/postings.jsonl" --out "$WORK/labelled" --label-column label --tokenizer "$SET" || return
        LABELLED=$WORK/labelled
        origin="without labels, so the classifier's are synthetic: "
    fi
    FIGURE="$origin$(number "$SET/meta.json" samples) postings, $(number "$SET/meta.json" tokens) tokens"
}

# A run of `train mlm` without dropout, and PyTorch's from the same weights over the same batches.
curve_config() {
    local size
    size=$(number "$SET/meta.json" vocab_size)
    # A model from scratch has the vocabulary of the token set.
    sed -E -e "s/(\"vocab_size\": *)[0-9]+/\1$size/" -e 's/("(attention_)?dropout": *)[0-9.]+/\10.0/g' "$CONFIG" >"$WORK/curve.json"
}
step_curve_batches() {
    needs "$SET/meta.json" 04-data || return
    curve_config
    run json "$BINARY" bench train --device "$DEVICE" --config "$WORK/curve.json" --data "$SET" --batch-tokens "$SMALL" \
        --batches "$CURVE_STEPS" --quick --steps 1 --no-ops --save "$WORK/curve" --json || return
    FIGURE="$CURVE_STEPS batches of $SMALL tokens"
}
step_curve_train() {
    needs "$WORK/curve/batches.safetensors" 04-curve-batches || return
    run json "$BINARY" train mlm --device "$DEVICE" --config "$WORK/curve.json" --data "$SET" --batch-tokens "$SMALL" \
        --max-steps "$CURVE_STEPS" --logging-steps 1 --learning-rate 2e-4 --warmup-ratio 0.06 --weight-decay 0.01 \
        --eval-strategy no --out "$WORK/curve-run" --json
    [ "$CODE" = 0 ] && of tokens_per_second 1 '%.0f tokens/s' loss 1 'loss %.4f at the last step'
    cp "$WORK/curve-run/metrics.jsonl" "$OUT/04-curve-metrics.jsonl" 2>/dev/null
}
# What the run logged before it was cut short can be compared as well.
step_curve_torch() {
    needs "$WORK/curve-run/metrics.jsonl" 04-curve-train || return
    torch train_curve.py "$WORK/curve" "$WORK/curve-run" --seconds $((LIMIT * 2 / 3)) --csv "$OUT/04-curve.csv"
}

# torch SCRIPT ARGUMENT...: one of the peers.
torch() {
    local script=$1
    shift
    if "$PYTHON" -c 'import torch' 2>/dev/null; then
        run txt "$PYTHON" "$HERE/peers/$script" "$@" --device "$DEVICE"
    else
        skip "$PYTHON has no torch"
    fi
}

step_bench_kernels() {
    run json "$BINARY" bench kernels --device "$DEVICE" --config "$CONFIG" --batch-tokens "$TOKENS" --json || return
    of bytes_per_second 1e12 'copy %.3f TB/s' flops_per_second 1e12 'product %.3f TFLOP/s'
}
# It leaves the weights and batches that the peers work on.
step_bench_train() {
    run json "$BINARY" bench train --device "$DEVICE" --config "$CONFIG" --batch-tokens "$TOKENS" \
        ${SET:+--data "$SET"} --save "$WORK/same" --json || return
    of tokens_per_second 1 '%.0f tokens/s' mfu 0.01 '%.1f %% of the matrix rate'
}
step_bench_predict() {
    run json "$BINARY" bench predict --device "$DEVICE" --config "$CONFIG" --batch-tokens "$TOKENS" --json || return
    of tokens_per_second 1 '%.0f tokens/s' rows_per_second 1 '%.0f rows/s'
}

# peer VARIANT: PyTorch's training steps, on the same card in the same minutes.
peer() {
    local ours=$OUT/05-bench-train.json
    needs "$WORK/same/batches.safetensors" 05-bench-train || return
    # Nothing to compare with where that step was cut short.
    [ -s "$ours" ] || ours=
    torch train_step.py "$WORK/same" ${ours:+--ours "$ours"} --variants "$1" --json "$OUT/$STEP.json"
}
step_peer_sdpa() { peer sdpa; }
step_peer_compile() { peer compile; }
step_peer_packed() { peer packed; }
step_peer_packed_compile() { peer packed-compile; }
step_peer_eager() { peer eager; }
step_peer_kernels() {
    torch kernels_gpu.py --tokens "$TOKENS"
    [ "$CODE" != 0 ] || FIGURE=$(grep -m 2 -E '^(copy|square product)' "$OUT/$STEP.txt" | tr -s ' \n' ' ')
}

# A run for three quarters of its time, by the pace of 05-bench-train.
step_train_mlm() {
    local pace steps
    needs "$SET/meta.json" 04-data || return
    pace=$(number "$OUT/05-bench-train.json" seconds_per_step)
    steps=$(awk -v pace="${pace:-1}" -v seconds="$LIMIT" 'BEGIN { n = int(0.75 * seconds / pace); print (n < 20 ? 20 : (n > 3000 ? 3000 : n)) }')
    run json "$BINARY" train mlm --device "$DEVICE" --config "$CONFIG" --data "$SET" --out "$WORK/mlm" --max-steps "$steps" \
        --batch-tokens "$TOKENS" --learning-rate 5e-4 --adam-beta2 0.98 --warmup-ratio 0.06 --weight-decay 0.01 \
        --eval-strategy no --logging-steps 10 --json
    [ "$CODE" = 0 ] && of tokens_per_second 1 '%.0f tokens/s' steps 1 '%d steps' loss 1 'loss %.4f'
    keep mlm metrics.jsonl run.toml report.html
}

# keep RUN FILE...: small files of a run, beside the step's own.
keep() {
    local run=$1 file
    shift
    for file in "$@"; do
        [ -f "$WORK/$run/$file" ] && cp "$WORK/$run/$file" "$OUT/$STEP-$file"
    done
}

step_eval_mlm() {
    needs "$WORK/mlm/model.safetensors" 07-train-mlm || return
    run json "$BINARY" eval mlm --device "$DEVICE" --model "$WORK/mlm" --data "$SET" --batch-tokens "$SMALL" --json || return
    of perplexity 1 'perplexity %.2f on postings held out' perplexity_unigram 1 'of a unigram model %.2f'
}
step_fill_mask() {
    needs "$WORK/mlm/model.safetensors" 07-train-mlm || return
    run txt "$BINARY" fill-mask --device "$DEVICE" --model "$WORK/mlm" "We are looking for a [MASK] to join our team." || return
    FIGURE=$(grep -v '^[[:space:]]*$' "$OUT/$STEP.txt" | tail -n 5 | tr -s ' \n' ' ')
}
step_train_classifier() {
    needs "$WORK/mlm/model.safetensors" 07-train-mlm || return
    needs "$LABELLED/meta.json" 04-data || return
    run json "$BINARY" train classifier --device "$DEVICE" --model "$WORK/mlm" --data "$LABELLED" --out "$WORK/classifier" \
        --max-steps 200 --batch-tokens "$SMALL" --learning-rate 1e-4 --warmup-ratio 0.06 --validation-split-percentage 20 \
        --eval-strategy no --json
    [ "$CODE" = 0 ] && of tokens_per_second 1 '%.0f tokens/s' steps 1 '%d steps' loss 1 'loss %.4f'
    keep classifier metrics.jsonl report.html
}
step_eval_classifier() {
    needs "$WORK/classifier/model.safetensors" 07-train-classifier || return
    run json "$BINARY" eval classifier --device "$DEVICE" --model "$WORK/classifier" --data "$LABELLED" --json || return
    of roc_auc 1 'ROC AUC %.3f' average_precision 1 'average precision %.3f' rows 1 '%d rows held out'
}
step_predict() {
    needs "$WORK/classifier/model.safetensors" 07-train-classifier || return
    needs "$WORK/postings.jsonl" 04-data || return
    run json "$BINARY" predict "$WORK/postings.jsonl" --device "$DEVICE" --model "$WORK/classifier" --text-columns text \
        --out "$WORK/labelled.jsonl" --json || return
    of rows_per_second 1 '%.0f rows/s' tokens_per_second 1 '%.0f tokens/s' rows 1 '%d rows of synthetic postings'
}

step_quickstart() {
    run json "$BINARY" quickstart --device "$DEVICE" --out "$WORK/quickstart" --json
    [ "$CODE" = 0 ] && of perplexity_before 1 'perplexity %.0f before' perplexity_after 1 '%.1f after' roc_auc 1 'ROC AUC %.3f' seconds 1 '%.1f s'
    keep quickstart report.html
}

# ---- All of them -------------------------------------------------------------------------------------------------------

# Read as a whole before it runs.
main() {
    local step budget failed
    find_library libnvrtc
    find_library libcublasLt
    ARCH=$(architecture) LABELLED=$SET REST=0
    printf '%-24s %5s %8s  %s\n' step exit seconds figure >"$SUMMARY"
    while read -r step budget; do
        [ -n "$step" ] && wanted "$step" && REST=$((REST + $(share "$budget")))
    done <<<"$PLAN"
    while read -r step budget <&3; do
        [ -z "$step" ] || perform "$step" "$budget"
    done 3<<<"$PLAN"
    # Which way each product was computed, and what the others took.
    cp "$HANDBERT_CACHE"/products-*.json "$OUT" 2>/dev/null
    failed=$(awk 'NR > 1 && $2 != 0 { n++ } END { print n + 0 }' "$SUMMARY")
    say all 0 "$SECONDS" "$failed of these did not end with 0"
    tar -czf "$WORK/all.tar.gz" -C "$OUT" --exclude all.tar.gz . 2>/dev/null && mv "$WORK/all.tar.gz" "$OUT/all.tar.gz"
    cat "$SUMMARY"
}

main
exit
