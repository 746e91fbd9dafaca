#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes: is it right, and how fast is it? From the repository's root:
#
#     bash experiments/benchmarks/gpu.sh [OUT] [PYTHON]
#
# OUT (default experiments/results/gpu) gets a JSON file and a log for each step and results.md, which tells all. A step
# that fails says so there and the next one runs; after LIMIT seconds (default 570) no further step begins. It fetches
# nothing: PYTHON (default python3) must have jax with CUDA, flax, torch, transformers and this package's dependencies; all
# but asr, tts, beam and train do without soundfile and soxr.
# SIZE=tiny DEVICE=cpu runs the same on a CPU, as a rehearsal.
set -u
out=${1:-experiments/results/gpu}
python=${2:-python3}
limit=${LIMIT:-570} size=${SIZE:-1b} device=${DEVICE:-gpu}
mkdir -p "$out"
rm -f "$out"/*.json "$out"/*.log  # of an earlier run, which results.md would take for this one's
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
unset XLA_FLAGS

left() { echo $((limit - SECONDS)); }

# step NAME MOST ARGUMENTS…: one benchmark, MOST seconds at most, as far as there is time
step() {
    local name=$1 most=$2
    shift 2
    if (($(left) < 20)); then
        echo "- $name: left out, no time" | tee -a "$out/results.md"
        return
    fi
    echo "== $name ($SECONDS s)"
    timeout "$((most < $(left) ? most : $(left)))" "$python" -W ignore -m experiments.benchmarks "$@" \
        --device "$device" 2>&1 | tee "$out/$name.log" | tail -n 40
    local code=${PIPESTATUS[0]}
    if ((code)); then
        echo "- $name: failed with exit code $code (124: out of time); see $name.log" | tee -a "$out/results.md"
    fi
}

{
    echo "# On $("$python" -c 'import jax; print(jax.devices()[0].device_kind)' 2>&1 | tail -n 1), $(date -u +%F)"
    echo
    echo "\`bash experiments/benchmarks/gpu.sh\` at $(git rev-parse --short HEAD 2>/dev/null || echo 'an unknown commit')"
    echo
} >"$out/results.md"

# Right before fast: this step's first lines compare the device with the CPU, and nothing is timed if they differ.
step accelerator 300 accelerator --size "$size" --rounds 10 --limit 240 --output "$out/accelerator.json"
if ! grep -q "^check: samples of VITS" "$out/accelerator.log"; then  # the last of them
    echo "- the checks did not pass: nothing else was measured; see accelerator.log" | tee -a "$out/results.md"
    exit 1
fi
if [ "$size" = 1b ]; then clips="10"; batch="32"; train=100m; else clips="2"; batch="2"; train=demo; fi
step asr 150 asr --size "$size" --seconds $clips --batch 1 $batch --dtypes bfloat16 --peers bfloat16 --rounds 5 \
    --output "$out/asr.json"
step tts 90 tts --rounds 5 --output "$out/tts.json"
step beam 60 beam --rounds 10
step train 120 train --size "$train" --rounds 3
# XLA's flags one at a time, and none beside them, on the first step's first batch
for flag in "" xla_gpu_enable_cublaslt=true xla_gpu_enable_triton_gemm=false xla_gpu_cudnn_gemm_fusion_level=2; do
    [ "$device" = gpu ] || continue
    name=${flag:-no-flags} name=${name//[^a-z0-9]/-}
    if [ -n "$flag" ]; then export XLA_FLAGS=--$flag; fi
    step "$name" 40 accelerator --size "$size" --parts first --rounds 10 --no-check --output "$out/$name.json"
    unset XLA_FLAGS
done

for name in train beam; do  # those that print their tables themselves
    [ -e "$out/$name.log" ] || continue
    printf '\n## %s\n\n```\n%s\n```\n' "$name" "$(cat "$out/$name.log")" >>"$out/results.md"
done
shopt -s nullglob
for file in "$out"/*.json; do
    printf '\n## %s\n\n' "$(basename "$file" .json)"
    "$python" -m experiments.benchmarks table "$file"
done >>"$out/results.md"
echo "== $SECONDS s; $out/results.md"
