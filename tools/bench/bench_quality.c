/* What is this?      quintet bench quality: how far a configuration's predictions are from exact ones.
 * State owned:       two engines of one model, fed the same text.
 * Must never:        let either engine's choices into what is fed: both read the text.
 * Read next:         bench_engine.h.
 *
 * The text is cut into sequences of equal length, stepped side by side. At each position both give the distribution of
 * the next token: P of f32 arithmetic on the weights as they are, Q of the configuration under test. Reported are
 * KL(P | Q) = sum of P ln(P / Q) in nats, how often both have the same most probable token, and the perplexity
 * exp(mean of -ln p(the token that follows)) of each. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "services/memory/weights/model_directory.h"
#include "services/tokenizer/tokenizer.h"
#include "tools/bench/bench.h"
#include "tools/bench/bench_engine.h"
#include "tools/cli.h"

#define TEXT_BYTES_MAX (64u << 20)
#define SETS_OF_REFERENCE 4

typedef struct {
    const char *model, *text, *reference;
    uint64_t threads, tokens, context;
    bool json;
} options_t;

/* What has been seen so far. */
typedef struct {
    double *kl; /* [count], one per position */
    size_t count, same_top, targets;
    double nll_exact, nll_tested; /* sums over targets, nats */
} tally_t;

typedef struct {
    const uint32_t *ids; /* [sequences, length] */
    uint32_t sequences, length, vocab;
} corpus_t;

/* ---- one row ---- */

typedef struct {
    double shift, log_total;
    uint32_t top;
} row_t;

/* ln of the softmax's denominator, and the greatest logit's id (the lower one of equals). */
static row_t read_row(const float *logits, uint32_t vocab)
{
    row_t row = {.top = 0};
    for (uint32_t v = 1; v < vocab; v++)
        if (logits[v] > logits[row.top]) row.top = v;
    row.shift = (double)logits[row.top];
    double total = 0;
    for (uint32_t v = 0; v < vocab; v++)
        total += (double)expf(logits[v] - (float)row.shift);
    row.log_total = log(total);
    return row;
}

/* KL(P | Q) of two rows of logits. */
static double divergence(const float *exact, const row_t *p, const float *tested, const row_t *q, uint32_t vocab)
{
    double sum = 0, constant = (q->shift + q->log_total) - (p->shift + p->log_total);
    for (uint32_t v = 0; v < vocab; v++) {
        double difference = (double)exact[v] - (double)tested[v] + constant;
        sum += (double)expf(exact[v] - (float)p->shift) * difference;
    }
    sum *= exp(-p->log_total);
    return sum > 0 ? sum : 0; /* below zero by rounding alone */
}

static void tally_row(tally_t *tally, const float *exact, const float *tested, uint32_t vocab, const uint32_t *target)
{
    row_t p = read_row(exact, vocab), q = read_row(tested, vocab);
    tally->kl[tally->count++] = divergence(exact, &p, tested, &q, vocab);
    tally->same_top += p.top == q.top;
    if (!target) return;
    tally->targets++;
    tally->nll_exact += p.shift + p.log_total - (double)exact[*target];
    tally->nll_tested += q.shift + q.log_total - (double)tested[*target];
}

/* ---- the walk over the text ---- */

static qn_err_t step_both(bench_engine_t *const engines[2], const bench_run_t *runs, const corpus_t *corpus,
                          uint32_t position, tally_t *tally)
{
    const step_result_t *result;
    uint32_t rows;
    qn_err_t err = bench_engine_step(engines[0], runs, corpus->sequences, &result);
    if (!err) err = bench_engine_step(engines[1], runs, corpus->sequences, &result);
    const float *exact = NULL, *tested = NULL;
    if (!err) err = bench_engine_logits(engines[0], &exact, &rows);
    if (!err) err = bench_engine_logits(engines[1], &tested, &rows);
    if (err) return err;
    for (uint32_t s = 0; s < corpus->sequences; s++) {
        const uint32_t *target = corpus->ids + (size_t)s * corpus->length + position + 1;
        size_t at = (size_t)s * corpus->vocab;
        tally_row(tally, exact + at, tested + at, corpus->vocab, position + 1 < corpus->length ? target : NULL);
    }
    return QN_OK;
}

static qn_err_t compare(bench_engine_t *const engines[2], const corpus_t *corpus, tally_t *tally)
{
    bench_run_t runs[BENCH_ENGINE_LOGIT_ROWS];
    for (uint32_t s = 0; s < corpus->sequences; s++)
        for (int e = 0; e < 2; e++)
            bench_engine_start(engines[e], s, corpus->length);
    for (uint32_t position = 0; position < corpus->length; position++) {
        for (uint32_t s = 0; s < corpus->sequences; s++)
            runs[s] = (bench_run_t){.slot = s,
                                    .position = position,
                                    .tokens = 1,
                                    .sample = true,
                                    .ids = corpus->ids + (size_t)s * corpus->length + position};
        bench_progress("position %u of %u, %u sequences", position + 1, corpus->length, corpus->sequences);
        qn_err_t err = step_both(engines, runs, corpus, position, tally);
        if (err) return err;
    }
    return QN_OK;
}

/* ---- the text ---- */

static qn_err_t encode(const char *directory, const char *path, tokenizer_tokens_t *tokens)
{
    size_t bytes;
    char *text = cli_read_all(path, TEXT_BYTES_MAX, &bytes);
    if (!text) return qn_fail(QN_ERR_NOT_FOUND, "--text: %s", strdupa(qn_err_text()));
    tokenizer_t *tokenizer = NULL;
    qn_err_t err = tokenizer_open(directory, &tokenizer);
    if (!err) {
        tokenizer_scratch_t *scratch = tokenizer_scratch_open(tokenizer);
        err = tokenizer_encode(tokenizer, scratch, text, bytes < QN_TEXT_BYTES_MAX ? bytes : QN_TEXT_BYTES_MAX, 0,
                               tokens);
        tokenizer_scratch_close(&scratch);
        tokenizer_close(&tokenizer);
    }
    free(text);
    return err;
}

/* Cuts the first tokens of the text into equal sequences of at most `context`. */
static qn_err_t cut(const tokenizer_tokens_t *tokens, uint64_t wanted, uint64_t context, uint32_t vocab,
                    corpus_t *ret_corpus)
{
    uint64_t count = wanted < tokens->count ? wanted : tokens->count;
    uint64_t sequences = (count + context - 1) / context;
    if (sequences > BENCH_ENGINE_LOGIT_ROWS) sequences = BENCH_ENGINE_LOGIT_ROWS;
    uint64_t length = sequences ? count / sequences : 0;
    if (length > context) length = context;
    if (length < 2) return qn_fail(QN_ERR_INVALID, "the text has %zu tokens; at least 2 are needed", tokens->count);
    for (uint64_t i = 0; i < sequences * length; i++)
        if (tokens->ids[i] >= vocab)
            return qn_fail(QN_ERR_INVALID, "the tokenizer gives id %u, the model has %u", tokens->ids[i], vocab);
    *ret_corpus =
        (corpus_t){.ids = tokens->ids, .sequences = (uint32_t)sequences, .length = (uint32_t)length, .vocab = vocab};
    return QN_OK;
}

/* ---- what is printed ---- */

typedef struct {
    double mean, p99, most, top1, exact, tested;
} summary_t;

static summary_t summarise(tally_t *tally)
{
    summary_t s = {.top1 = 100 * (double)tally->same_top / (double)tally->count};
    for (size_t i = 0; i < tally->count; i++)
        s.mean += tally->kl[i] / (double)tally->count;
    s.p99 = bench_quantile(tally->kl, tally->count, 0.99);
    s.most = bench_quantile(tally->kl, tally->count, 1);
    s.exact = exp(tally->nll_exact / (double)tally->targets);
    s.tested = exp(tally->nll_tested / (double)tally->targets);
    return s;
}

static const char *format_of(const bench_engine_t *engine, char text[128])
{
    bench_engine_info_t info;
    bench_engine_info(engine, &info);
    snprintf(text, 128, "%s products, %s head, %s KV, matmul %s", qn_scalar_name(info.product_scalar),
             qn_scalar_name(info.head_scalar), qn_scalar_name(info.kv_scalar),
             info.kernels->chosen[QN_OP_MATMUL]->name);
    return text;
}

static void print(const options_t *options, bench_engine_t *const engines[2], const corpus_t *corpus,
                  const summary_t *s, size_t positions)
{
    char exact[128], tested[128];
    bench_engine_info_t info;
    bench_engine_info(engines[1], &info);
    format_of(engines[0], exact);
    format_of(engines[1], tested);
    if (options->json) {
        json_t *all =
            json_pack("{s:s, s:s, s:s, s:I, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f}", "model", info.id, "reference",
                      exact, "tested", tested, "positions", (json_int_t)positions, "sequences", (int)corpus->sequences,
                      "length", (int)corpus->length, "kl_mean", s->mean, "kl_p99", s->p99, "kl_max", s->most,
                      "top1_percent", s->top1, "perplexity_reference", s->exact, "perplexity", s->tested);
        cli_print_json(all);
        json_decref(all);
        return;
    }
    printf("%s: %s\nagainst: %s\n", info.id, tested, exact);
    printf("%zu positions in %u sequences of %u tokens\n", positions, corpus->sequences, corpus->length);
    printf("KL divergence   mean %.3g, p99 %.3g, max %.3g nats\n", s->mean, s->p99, s->most);
    printf("top-1 agreement %.2f %%\n", s->top1);
    printf("perplexity      %.4f, reference %.4f (%+.2f %%)\n", s->tested, s->exact, 100 * (s->tested / s->exact - 1));
}

/* ---- the run ---- */

static qn_err_t run_engines(const options_t *options, const qn_config_values_t *exact, const qn_config_values_t *tested,
                            const corpus_t *corpus)
{
    bench_engine_size_t size = {.sequences = corpus->sequences,
                                .step_tokens = corpus->sequences,
                                .model_len = corpus->length,
                                .others_len = corpus->length};
    bench_engine_t *engines[2] = {NULL, NULL};
    tally_t tally = {.kl = calloc((size_t)corpus->sequences * corpus->length, sizeof(double))};
    qn_err_t err = tally.kl ? QN_OK : qn_fail(QN_ERR_NO_MEMORY, "no memory for the divergences");
    bench_progress("loading twice");
    if (!err) err = bench_engine_open(exact, size, &engines[0]);
    if (!err) err = bench_engine_open(tested, size, &engines[1]);
    if (!err) err = compare(engines, corpus, &tally);
    bench_progress_end();
    if (!err) {
        summary_t summary = summarise(&tally);
        print(options, engines, corpus, &summary, tally.count);
    }
    bench_engine_close(&engines[0]);
    bench_engine_close(&engines[1]);
    free(tally.kl);
    return err;
}

static qn_err_t run(const options_t *options, const qn_config_values_t *exact, const qn_config_values_t *tested)
{
    tokenizer_tokens_t tokens = {0};
    corpus_t corpus = {0};
    model_directory_t *directory = NULL;
    qn_err_t err = model_directory_read(tested, &directory);
    if (!err) err = encode(directory->path, options->text, &tokens);
    uint64_t context = options->context;
    if (!err && context > directory->config.max_positions) context = directory->config.max_positions;
    if (!err) err = cut(&tokens, options->tokens, context, directory->config.vocab, &corpus);
    model_directory_free(&directory);
    if (!err) err = run_engines(options, exact, tested, &corpus);
    tokenizer_tokens_fini(&tokens);
    return err;
}

/* The configuration of the exact engine: the same but for what changes numbers. */
static int reference_config(const qn_config_arguments_t *arguments, const options_t *options, qn_config_t **ret_config)
{
    qn_config_arguments_t changed = *arguments;
    char kernels[256];
    snprintf(kernels, sizeof kernels, "compute.kernels=%s", options->reference);
    const char *sets[SETS_OF_REFERENCE] = {"model.quantize=none", "memory.kv_dtype=f32", "compute.activations=f32",
                                           kernels};
    if (changed.set_count + SETS_OF_REFERENCE > QN_CONFIG_SETS_MAX) return cli_usage("too many --set");
    for (size_t i = 0; i < SETS_OF_REFERENCE; i++)
        changed.sets[changed.set_count++] = sets[i];
    return bench_config(&changed, options->model, options->threads, ret_config);
}

int bench_quality(int argc, char **argv)
{
    options_t o = {.reference = "", .tokens = 4096, .context = 256};
    const cli_option_t options[] = {
        {"model", 0, CLI_TEXT, &o.model, NULL, "DIR", "model directory with weights and tokenizer.json", 0, 0},
        {"text", 0, CLI_TEXT, &o.text, NULL, "FILE", "the text to predict (\"-\": standard input)", 0, 0},
        {"tokens", 0, CLI_COUNT, &o.tokens, NULL, "N", "of the text, at most (default 4096)", 2, 1 << 20},
        {"context", 0, CLI_COUNT, &o.context, NULL, "N", "length of a sequence, at most (default 256)", 2, 1 << 17},
        {"reference", 0, CLI_TEXT, &o.reference, NULL, "KERNELS",
         "compute.kernels of the exact side (default: the "
         "fastest; \"reference\": plain C)",
         0, 0},
        {"threads", 0, CLI_COUNT, &o.threads, NULL, "N", "as compute.threads", 1, 256},
        {"json", 'j', CLI_FLAG, &o.json, NULL, NULL, "the figures as JSON", 0, 0},
    };
    qn_config_arguments_t arguments;
    const cli_command_t command = {
        .name = "bench quality",
        .arguments = "--text FILE [OPTION]...",
        .summary = "Compares a configuration's predictions of a text with those of f32 arithmetic on the weights as "
                   "they are.",
        .details = "What is tested is what the configuration says.\n\n"
                   "examples:\n"
                   "  quintet bench quality --text README.md --set model.quantize=int8\n"
                   "  quintet bench quality --model DIR --text book.txt --set memory.kv_dtype=bf16 --tokens 20000",
        .options = options,
        .option_count = sizeof options / sizeof *options,
        .configuration = &arguments,
    };
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (argc > 1) return cli_usage("unexpected \"%s\"", argv[1]);
    if (!o.text) return cli_usage("say which text: --text FILE");
    if (strlen(o.reference) > 200) return cli_usage("--reference is longer than 200 bytes");
    qn_config_t *tested = NULL, *exact = NULL;
    status = bench_config(&arguments, o.model, o.threads, &tested);
    if (!status) status = reference_config(&arguments, &o, &exact);
    if (!status) {
        qn_err_t err = run(&o, qn_config_values(exact), qn_config_values(tested));
        status = err ? cli_fail_err(err) : cli_finish_output();
    }
    qn_config_free(&tested);
    qn_config_free(&exact);
    return status;
}
