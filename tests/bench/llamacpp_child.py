"""Measures llama.cpp through PyPI's llama-cpp-python: decode and prefill of one GGUF file; prints JSON.

usage: tests/bench/llamacpp_child.py GGUF THREADS CONTEXT PREFILL BATCH,BATCH SECONDS

A decode step is one llama_decode of one token per sequence, each of which sees CONTEXT positions at first; a prefill is
one of PREFILL tokens with logits of the last. 16-bit KV cache, as is llama.cpp's default. Sampling is not included."""
import json
import statistics
import sys
import time

import llama_cpp

ROUND_STEPS = 64


def open_context(model, threads, sequences, positions):
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = sequences * positions
    parameters.n_batch = parameters.n_ubatch = max(512, positions)
    parameters.n_seq_max = sequences
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.no_perf = True
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        sys.exit("llama.cpp made no context")
    return context


def fill(batch, rows):
    """rows: (id, position, sequence, wants logits)"""
    batch.n_tokens = len(rows)
    for i, (token, position, sequence, logits) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, sequence
        batch.logits[i] = logits


def run(context, batch, rows):
    """Seconds of one llama_decode."""
    fill(batch, rows)
    begin = time.perf_counter()
    status = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_synchronize(context)
    seconds = time.perf_counter() - begin
    if status:
        sys.exit(f"llama_decode: {status}")
    return seconds


def clear(context):
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)


def measure_decode(model, threads, batch_size, depth, seconds):
    positions = (depth + ROUND_STEPS + 32) // 32 * 32
    context = open_context(model, threads, batch_size, positions)
    batch = llama_cpp.llama_batch_init(max(512, depth), 0, 1)
    times, begin = [], time.monotonic()
    while len(times) < 5 or time.monotonic() - begin < seconds:
        clear(context)
        for s in range(batch_size):
            run(context, batch, [(100 + i % 1000, i, s, 0) for i in range(depth - 1)])
        begin = begin if times else time.monotonic()
        for step in range(ROUND_STEPS + 1):
            took = run(context, batch, [(7 + s, depth - 1 + step, s, 1) for s in range(batch_size)])
            times += [took] if step else []
            if len(times) >= 5 and time.monotonic() - begin > seconds:
                break
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return batch_size / statistics.median(times), batch_size / min(times)


def measure_prefill(model, threads, tokens, seconds):
    context = open_context(model, threads, 1, tokens)
    batch = llama_cpp.llama_batch_init(tokens, 0, 1)
    rows = [(100 + i % 1000, i, 0, i == tokens - 1) for i in range(tokens)]
    times, begin = [], time.monotonic()
    while len(times) < 4 or time.monotonic() - begin < seconds:
        clear(context)
        times.append(run(context, batch, rows))
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return tokens / statistics.median(times[1:]), tokens / min(times[1:])


def main():
    path, threads, depth, prefill, batches, seconds = sys.argv[1:]
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp cannot load {path}")
    figures = {}
    for batch in map(int, batches.split(",")):
        figures[f"decode {batch}"] = measure_decode(model, int(threads), batch, int(depth), float(seconds))
    figures[f"prefill {prefill}"] = measure_prefill(model, int(threads), int(prefill), float(seconds))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
