/* What is this?      quintet bench tokenizer: how fast a tokenizer.json encodes.
 * State owned:       one tokenizer and one scratch: one thread.
 * Must never:        count the reading of files, or the printing of ids.
 * Read next:         services/tokenizer/tokenizer.h.
 *
 * Warm: the whole text again and again, in documents of --document bytes. New: prompts of --prompt bytes cut from the
 * text, each seen once, after --warm bytes of other text: what a serving process sees. Forgotten: the same with the
 * word cache emptied before each. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "common/clock.h"
#include "common/limits.h"
#include "services/tokenizer/tokenizer.h"
#include "tools/bench/bench.h"
#include "tools/cli.h"

#define PROMPTS_MAX 16384

typedef struct {
    const char *tokenizer, *text;
    uint64_t prompt_bytes, document_bytes, warm_bytes;
    double seconds;
    bool json;
} options_t;

typedef struct {
    tokenizer_t *tokenizer;
    tokenizer_scratch_t *scratch;
    tokenizer_tokens_t tokens;
    const char *text;
    size_t bytes, document_bytes;
    size_t token_count; /* of the whole text */
    qn_err_t err;
} bench_text_t;

typedef struct {
    double p50, p99;
    size_t prompts;
} latency_t;

/* The end of a piece of about `bytes` bytes from `start` on, between two characters. */
static size_t piece_end(const bench_text_t *b, size_t start, size_t bytes)
{
    if (b->bytes - start <= bytes) return b->bytes;
    size_t end = start + bytes;
    while (end > start + 1 && ((unsigned char)b->text[end] & 0xc0) == 0x80)
        end--;
    return end;
}

static void encode_piece(bench_text_t *b, size_t start, size_t end)
{
    qn_err_t err =
        tokenizer_encode(b->tokenizer, b->scratch, b->text + start, end - start, TOKENIZER_PARSE_SPECIAL, &b->tokens);
    if (err && !b->err) b->err = err;
}

static void encode_all(void *context)
{
    bench_text_t *b = context;
    b->token_count = 0;
    for (size_t start = 0, end; start < b->bytes; start = end) {
        end = piece_end(b, start, b->document_bytes);
        encode_piece(b, start, end);
        b->token_count += b->tokens.count;
    }
}

/* Encodes the prompts after the first `warm` bytes, each once. */
static latency_t time_prompts(bench_text_t *b, size_t prompt_bytes, size_t warm, bool forgets)
{
    static double taken[PROMPTS_MAX];
    latency_t latency = {0};
    size_t start = piece_end(b, 0, warm < b->bytes ? warm : b->bytes);
    tokenizer_scratch_forget(b->scratch);
    if (!forgets) encode_piece(b, 0, piece_end(b, 0, start < QN_TEXT_BYTES_MAX ? start : QN_TEXT_BYTES_MAX));
    while (latency.prompts < PROMPTS_MAX && b->bytes - start >= prompt_bytes) {
        size_t end = piece_end(b, start, prompt_bytes);
        if (forgets) tokenizer_scratch_forget(b->scratch);
        uint64_t begin_ns = qn_clock_now_ns();
        encode_piece(b, start, end);
        taken[latency.prompts++] = (double)(qn_clock_now_ns() - begin_ns) * 1e-9;
        start = end;
    }
    latency.p50 = bench_quantile(taken, latency.prompts, 0.5);
    latency.p99 = bench_quantile(taken, latency.prompts, 0.99);
    return latency;
}

static void print(const options_t *o, const bench_text_t *b, const bench_time_t *warm, const latency_t *fresh,
                  const latency_t *forgotten)
{
    if (o->json) {
        json_t *all =
            json_pack("{s:I, s:I, s:f, s:f, s:I, s:I, s:f, s:f, s:f, s:f}", "bytes", (json_int_t)b->bytes, "tokens",
                      (json_int_t)b->token_count, "warm_bytes_per_second", (double)b->bytes / warm->median_s,
                      "warm_best_bytes_per_second", (double)b->bytes / warm->best_s, "prompts",
                      (json_int_t)fresh->prompts, "prompt_bytes", (json_int_t)o->prompt_bytes, "new_p50_s", fresh->p50,
                      "new_p99_s", fresh->p99, "forgotten_p50_s", forgotten->p50, "forgotten_p99_s", forgotten->p99);
        cli_print_json(all);
        json_decref(all);
        return;
    }
    printf("%zu bytes, %zu tokens\n", b->bytes, b->token_count);
    printf("warm        %.1f MB/s (best %.1f)\n", (double)b->bytes / warm->median_s * 1e-6,
           (double)b->bytes / warm->best_s * 1e-6);
    printf("new prompts of %llu bytes: p50 %.1f us, p99 %.1f us (%zu of them)\n", (unsigned long long)o->prompt_bytes,
           fresh->p50 * 1e6, fresh->p99 * 1e6, fresh->prompts);
    printf("forgotten   p50 %.1f us, p99 %.1f us\n", forgotten->p50 * 1e6, forgotten->p99 * 1e6);
}

static qn_err_t run(const options_t *o, bench_text_t *b)
{
    qn_err_t err = tokenizer_open(o->tokenizer, &b->tokenizer);
    if (err) return err;
    b->scratch = tokenizer_scratch_open(b->tokenizer);
    latency_t fresh = time_prompts(b, o->prompt_bytes, o->warm_bytes, false);
    latency_t forgotten = time_prompts(b, o->prompt_bytes, o->warm_bytes, true);
    bench_time_t warm = bench_time(encode_all, b, o->seconds);
    err = b->err;
    if (!err && fresh.prompts == 0)
        err = qn_fail(QN_ERR_INVALID, "--text: %zu bytes are too few to warm up (--warm) and for prompts of %llu",
                      b->bytes, (unsigned long long)o->prompt_bytes);
    if (!err) print(o, b, &warm, &fresh, &forgotten);
    tokenizer_tokens_fini(&b->tokens);
    tokenizer_scratch_close(&b->scratch);
    tokenizer_close(&b->tokenizer);
    return err;
}

int bench_tokenizer(int argc, char **argv)
{
    options_t o = {.prompt_bytes = 2048, .document_bytes = 1 << 20, .warm_bytes = 1 << 20, .seconds = 1};
    const cli_option_t options[] = {
        {"tokenizer", 0, CLI_TEXT, &o.tokenizer, NULL, "FILE", "tokenizer.json, or the directory with one", 0, 0},
        {"text", 0, CLI_TEXT, &o.text, NULL, "FILE", "what is encoded (\"-\": standard input)", 0, 0},
        {"document", 0, CLI_COUNT, &o.document_bytes, NULL, "BYTES",
         "the warm walk encodes pieces of this length "
         "(default 1 MiB)",
         1, QN_TEXT_BYTES_MAX},
        {"prompt", 0, CLI_COUNT, &o.prompt_bytes, NULL, "BYTES", "length of a prompt (default 2048)", 1, 1 << 20},
        {"warm", 0, CLI_COUNT, &o.warm_bytes, NULL, "BYTES", "of text before the new prompts (default 1 MiB)", 0,
         8 << 20},
        {"seconds", 0, CLI_NUMBER, &o.seconds, NULL, "S", "of the warm walk, at least (default 1)", 0.01, 600},
        {"json", 'j', CLI_FLAG, &o.json, NULL, NULL, "bytes/s and seconds as JSON", 0, 0},
    };
    const cli_command_t command = {
        .name = "bench tokenizer",
        .arguments = "--tokenizer FILE --text FILE [OPTION]...",
        .summary = "Measures how fast a tokenizer.json encodes a text, in one thread.",
        .details = "warm       the whole text again and again\n"
                   "new        prompts that were not seen before, in a process that has encoded other text\n"
                   "forgotten  the same, the cache of words emptied before each",
        .options = options,
        .option_count = sizeof options / sizeof *options,
    };
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (argc > 1) return cli_usage("unexpected \"%s\"", argv[1]);
    if (!o.tokenizer || !o.text) return cli_usage("give --tokenizer and --text");
    bench_text_t b = {.document_bytes = o.document_bytes};
    char *text = cli_read_all(o.text, 1u << 30, &b.bytes);
    if (!text) return cli_fail(EX_NOINPUT, "%s", qn_err_text());
    b.text = text;
    qn_err_t err = run(&o, &b);
    free(text);
    return err ? cli_fail_err(err) : cli_finish_output();
}
