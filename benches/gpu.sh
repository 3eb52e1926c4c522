#!/usr/bin/env bash
# Everything worth knowing about HandBERT on one GPU, in at most ten minutes, on a machine that needs no Rust:
#
#     benches/gpu.sh BINARY OUTDIR [TOKENSET] [MODELCONFIG]
#
# BINARY is `handbert`, TOKENSET a token set (without one, synthetic postings are tokenized), MODELCONFIG a config.json (without
# one, base size). Each step has a time limit of its own and leaves OUTDIR/<nn>-<step>.{txt,json} and a line in
# OUTDIR/summary.txt: step, exit code, seconds, key figure. A step that fails stops nothing; the summary is printed last.
# Exit code 124 or 137 is a step that ran past its limit, 77 one that was left out, with the reason as its figure.
# The card's clocks, power limit and partitioning stay as they are found.
#
# PYTHON (python3) runs the peers. GPU_SH_SECONDS (600) is what all of it may take, GPU_SH_DEVICE (cuda) what --device gets,
# GPU_SH_TOKENS (65536) the tokens of a batch.
set -u

if [ $# -lt 2 ]; then
    sed -n '2,15s/^# \{0,1\}//p' "$0"
    exit 2
fi

BINARY=$(realpath "$1")
mkdir -p "$2" || exit 2
OUT=$(realpath "$2")
HERE=$(cd "$(dirname "$0")" && pwd)
SET=${3:-}
CONFIG=${4:-}
PYTHON=${PYTHON:-python3}
DEVICE=${GPU_SH_DEVICE:-cuda}
TOKENS=${GPU_SH_TOKENS:-65536}
END=$((SECONDS + ${GPU_SH_SECONDS:-600} - 5))
SUMMARY=$OUT/summary.txt
# Weights, compiled kernels, checkpoints: large, and of no interest afterwards.
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
export HANDBERT_CACHE=$WORK/cache

printf '%-26s %5s %8s  %s\n' step exit seconds figure >"$SUMMARY"

have() { command -v "$1" >/dev/null 2>&1; }

# figure FILE KEY: the first number under this key of a JSON file.
figure() {
    [ -f "$1" ] || return 0
    grep -o "\"$2\": *-\{0,1\}[0-9][-+.0-9eE]*" "$1" 2>/dev/null | head -n 1 | sed 's/.*: *//'
}

# say STEP CODE SECONDS FIGURE...: a line of the summary.
say() {
    local step=$1 code=$2 seconds=$3
    shift 3
    printf '%-26s %5s %8s  %s\n' "$step" "$code" "$seconds" "$*" | tee -a "$SUMMARY" >&2
}

skip() { say "$1" 77 0 "left out: $2"; }

# run STEP LIMIT EXTENSION COMMAND...: under a time limit, stdout to OUT/STEP.EXTENSION (what it says on stderr beside it, in
# the same file where that is txt). Sets CODE and TOOK; the caller says what came of it.
run() {
    local step=$1 limit=$2 extension=$3 began=$SECONDS left=$((END - SECONDS))
    shift 3
    CODE=77 TOOK=0
    if [ "$left" -lt 3 ]; then
        echo "left out: no time is left" >"$OUT/$step.txt"
        return
    fi
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$extension" = txt ]; then
        timeout -k 5 "$limit" "$@" >"$OUT/$step.txt" 2>&1 </dev/null
    else
        timeout -k 5 "$limit" "$@" >"$OUT/$step.$extension" 2>"$OUT/$step.txt" </dev/null
    fi
    CODE=$? TOOK=$((SECONDS - began))
}

# last FILE: its last line that says something, and whether the step was cut short.
last() {
    case $CODE in 124 | 137) printf 'ran past its limit: ' ;; esac
    [ -f "$1" ] && grep -v '^[[:space:]]*$' "$1" | tail -n 1 | cut -c 1-160
}

# simple STEP LIMIT COMMAND...: a step whose last line is its figure.
simple() {
    local step=$1 limit=$2
    shift 2
    run "$step" "$limit" txt "$@"
    say "$step" "$CODE" "$TOOK" "$(last "$OUT/$step.txt")"
}

# scaled NUMBER BY FORMAT: for people; nothing of nothing.
scaled() { [ -n "$1" ] && awk -v x="$1" -v by="$2" -v format="$3" 'BEGIN { printf format, x / by }'; }

state_of_card() {
    nvidia-smi
    nvidia-smi --format=csv --query-gpu=name,driver_version,compute_cap,memory.total,pstate,temperature.gpu,power.draw,power.limit,clocks.sm,clocks.mem,clocks.max.sm,clocks_throttle_reasons.active
}
export -f state_of_card

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
    nvidia-smi --format=csv,noheader --query-gpu=name,driver_version
}
export -f machine
export PYTHON BINARY

# NVRTC may lie where the loader does not look: in a toolkit, or among Python's packages.
find_nvrtc() {
    ldconfig -p 2>/dev/null | grep -q 'libnvrtc\.so' && return
    local python found
    python=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null)
    for root in /usr/local/cuda*/lib64 /usr/local/cuda*/targets/*/lib ${python:+"$python/nvidia"}; do
        found=$(find "$root" -name 'libnvrtc.so*' 2>/dev/null | head -n 1)
        if [ -n "$found" ]; then
            LD_LIBRARY_PATH=$(dirname "$found")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
            export LD_LIBRARY_PATH
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

base_config() {
    cat <<'JSON'
{"model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"], "activation": "gelu", "vocab_size": 30522,
 "max_position_embeddings": 512, "sinusoidal_pos_embds": false, "n_layers": 6, "n_heads": 12, "dim": 768, "hidden_dim": 3072,
 "dropout": 0.1, "attention_dropout": 0.1, "qa_dropout": 0.1, "seq_classif_dropout": 0.2, "initializer_range": 0.02,
 "pad_token_id": 0, "tie_weights_": true}
JSON
}

# ---- The steps ---------------------------------------------------------------------------------------------------------

# Read as a whole before it runs.
main() {
    find_nvrtc
    simple 00-machine 10 bash -c machine

    ARCH=$(architecture)
    simple 01-kernels-compile 60 "$BINARY" kernels compile --arch "$ARCH" --out "$WORK/kernels"
    [ "$CODE" = 0 ] && export HANDBERT_KERNELS=$WORK/kernels
    simple 01-kernels-list 20 "$BINARY" kernels list --arch "$ARCH"

    simple 02-kernels-check 60 "$BINARY" kernels check --device "$DEVICE"

    for tool in memcheck racecheck synccheck; do
        if have compute-sanitizer; then
            simple "03-$tool" 25 compute-sanitizer --tool "$tool" --error-exitcode 9 \
                "$BINARY" kernels check --quick --device "$DEVICE"
        else
            skip "03-$tool" "there is no compute-sanitizer here"
        fi
    done

    if [ -z "$CONFIG" ]; then
        CONFIG=$WORK/config.json
        base_config >"$CONFIG"
    fi
    if [ -z "$SET" ]; then
        simple 04-synth 20 "$BINARY" synth --rows 40000 --out "$WORK/postings.jsonl"
        simple 04-tokenize 30 "$BINARY" tokenize "$WORK/postings.jsonl" --out "$WORK/set" --train-vocab 30522
        [ "$CODE" = 0 ] && SET=$WORK/set
    fi

    run 04-bench-kernels 50 json "$BINARY" bench kernels --device "$DEVICE" --config "$CONFIG" --batch-tokens "$TOKENS" --json
    json=$OUT/04-bench-kernels.json
    copy=$(scaled "$(figure "$json" bytes_per_second)" 1e12 'copy %.2f TB/s')
    product=$(scaled "$(figure "$json" flops_per_second)" 1e12 'product %.1f TFLOP/s')
    say 04-bench-kernels "$CODE" "$TOOK" "${copy:-$(last "$OUT/04-bench-kernels.txt")} $product"
    # Once more, as people read it: what differs between the two is noise.
    run 04-bench-kernels-again 40 txt "$BINARY" bench kernels --device "$DEVICE" --config "$CONFIG" --batch-tokens "$TOKENS" --quiet
    sum=$(grep -m 1 '^= ms a pass' "$OUT/04-bench-kernels-again.txt" | tr -s ' ')
    say 04-bench-kernels-again "$CODE" "$TOOK" "${sum:-$(last "$OUT/04-bench-kernels-again.txt")}"

    run 05-bench-train 40 json "$BINARY" bench train --device "$DEVICE" --config "$CONFIG" --batch-tokens "$TOKENS" \
        ${SET:+--data "$SET"} --save "$WORK/same" --json
    TRAIN=$OUT/05-bench-train.json
    rate=$(scaled "$(figure "$TRAIN" tokens_per_second)" 1 '%.0f tokens/s')
    say 05-bench-train "$CODE" "$TOOK" "${rate:-$(last "$OUT/05-bench-train.txt")}" \
        "$(scaled "$(figure "$TRAIN" mfu)" 0.01 '%.1f %% of the matrix rate')"
    run 05-bench-predict 25 json "$BINARY" bench predict --device "$DEVICE" --config "$CONFIG" --batch-tokens "$TOKENS" --json
    json=$OUT/05-bench-predict.json
    rate=$(scaled "$(figure "$json" tokens_per_second)" 1 '%.0f tokens/s')
    say 05-bench-predict "$CODE" "$TOOK" "${rate:-$(last "$OUT/05-bench-predict.txt")}" \
        "$(scaled "$(figure "$json" rows_per_second)" 1 '%.0f rows/s')"

    # A real run for some three quarters of a minute, by the pace just measured.
    if [ -n "$SET" ]; then
        step_seconds=$(figure "$TRAIN" seconds_per_step)
        steps=$(awk -v s="${step_seconds:-1}" 'BEGIN { n = int(45 / s); print (n < 20 ? 20 : (n > 3000 ? 3000 : n)) }')
        run 06-train-mlm 90 json "$BINARY" train mlm --device "$DEVICE" --config "$CONFIG" --data "$SET" --out "$WORK/run" \
            --max-steps "$steps" --batch-tokens "$TOKENS" \
            --learning-rate 5e-4 --warmup-ratio 0.06 --weight-decay 0.01 --eval-strategy no --logging-steps 10 --json
        rate=$(scaled "$(figure "$OUT/06-train-mlm.json" tokens_per_second)" 1 '%.0f tokens/s')
        loss=$(figure "$OUT/06-train-mlm.json" loss)
        say 06-train-mlm "$CODE" "$TOOK" "${rate:-$(last "$OUT/06-train-mlm.txt")}" "${loss:+loss $loss after $steps steps}"
        cp "$WORK/run/metrics.jsonl" "$OUT/06-metrics.jsonl" 2>/dev/null
        cp "$WORK/run/run.toml" "$OUT/06-run.toml" 2>/dev/null
        [ -f "$WORK/run/report.html" ] && cp "$WORK/run/report.html" "$OUT/06-report.html"
    else
        skip 06-train-mlm "there is no token set"
    fi

    # The peers, on the same card in the same minutes.
    if "$PYTHON" -c 'import torch' 2>/dev/null; then
        simple 07-peer-kernels 40 "$PYTHON" "$HERE/peers/kernels_gpu.py" --device "$DEVICE" --tokens "$TOKENS"
        if [ -f "$WORK/same/batches.safetensors" ]; then
            ours=()
            [ -s "$TRAIN" ] && ours=(--ours "$TRAIN")
            run 07-peer-train 110 txt "$PYTHON" "$HERE/peers/train_gpu.py" "$WORK/same" --device "$DEVICE" \
                "${ours[@]}" --json "$OUT/07-peer-train.json"
            best=$(grep -o '"tokens_per_second": *[0-9.eE+]*' "$OUT/07-peer-train.json" 2>/dev/null | sed 's/.*: *//' | sort -g | tail -n 1)
            best=$(scaled "$best" 1 'quickest variant %.0f real tokens/s')
            say 07-peer-train "$CODE" "$TOOK" "${best:-$(last "$OUT/07-peer-train.txt")}"
        else
            skip 07-peer-train "05-bench-train left no weights and batches to work on"
        fi
    else
        skip 07-peer-kernels "$PYTHON has no torch"
        skip 07-peer-train "$PYTHON has no torch"
    fi

    simple 08-machine 5 bash -c state_of_card

    say all 0 "$SECONDS" "$(awk 'NR > 1 && $2 != 0 { n++ } END { print n + 0 }' "$SUMMARY") of these did not end with 0"
    tar -czf "$WORK/all.tar.gz" -C "$OUT" . 2>/dev/null && mv "$WORK/all.tar.gz" "$OUT/all.tar.gz"
    cat "$SUMMARY"
}

main
exit
