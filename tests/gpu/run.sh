#!/bin/sh
# Checks and times the CUDA backend on a machine with a GPU, from a prebuilt folder (make bundle) or from build/cuda.
# usage: tests/gpu/run.sh [check|golden|kernels|time|sanitize|all] [FOLDER] [ARGUMENT...]; exits 1 when a check fails.
# ARGUMENTs go to `quintet bench kernels` (--op matmul) or to time_kernels (matmul, attention, prompts, prefill, step, load).
set -u
what=${1:-all}
here=$(cd "$(dirname "$0")/../.." && pwd)
folder=${2:-$here/build/bundle}
[ -x "$folder/check_kernels" ] || folder=$here/build/cuda
[ $# -gt 2 ] && shift 2 || shift $#

# cuBLASLt comes with the CUDA toolkit or with a Python package; the programs carry the rest.
if ! ldconfig -p 2>/dev/null | grep -q 'libcublasLt\.so\.13'; then
    library=$(find /usr/local /opt /usr/lib -name 'libcublasLt.so.13' 2>/dev/null | head -n 1)
    [ -n "$library" ] || { echo "run.sh: libcublasLt.so.13 is not on this machine" >&2; exit 69; }
    LD_LIBRARY_PATH=$(dirname "$library")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
fi
status=0
nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader || exit 69
case $what in check|all)
    echo "== check: every kernel against the reference"
    "$folder/check_kernels" || status=1
    echo "== regions: both shares between processes"
    "$folder/check_regions" || status=1 ;;
esac
case $what in golden|all)
    echo "== golden: the reference checkpoints through the executor"
    (cd "$here" && "$folder/check_golden") || status=1 ;;
esac
case $what in sanitize)
    for tool in memcheck racecheck; do
        echo "== compute-sanitizer $tool"
        compute-sanitizer --tool "$tool" --error-exitcode 1 "$folder/check_kernels" matmul_few matmul_bits attention_bits \
            attention_few moe_bits slots logprobs sampler rope kv || status=1
    done ;;
esac
case $what in kernels|all)
    echo "== kernels: every registered kernel over the shapes of three models"
    (cd "$here" && "$folder/quintet" bench kernels --set compute.backend=cuda "$@") || status=1 ;;
esac
case $what in time|all)
    echo "== time: whole steps and the load of a checkpoint, percent of 4.54 TB/s and of 790 TFLOP/s"
    "$folder/time_kernels" "$@" || status=1 ;;
esac
exit $status
