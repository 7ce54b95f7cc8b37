/* What is this?      Device time of the CUDA kernels over the shapes of Llama-3.2-1B and Llama-3.1-8B, as parts of the
 *                    card's bandwidth (4.54 TB/s read on an H200) and arithmetic (790 TFLOP/s in bf16).
 * State owned:       device memory.
 * Must never:        time on zeros, or on data that the second-level cache holds: weights and caches rotate.
 * Read next:         time_step.c (whole steps); tests/gpu/run.sh. */
#include "tests/gpu/timing.h"

#define ROTATE_BYTES ((size_t)512 << 20)   /* several times the cache */

const model_shape_t LLAMA_1B = { "1B", 16, 2048, 32, 8, 64, 8192, 128256 };
const model_shape_t LLAMA_8B = { "8B", 32, 4096, 32, 8, 128, 14336, 128256 };

/* ---- the clock ---- */

void timing_make(timing_t *timing, const qn_cuda_options_t *options, size_t bytes)
{
    memset(timing, 0, sizeof *timing);
    timing->random.state = 7;
    must_ok(qn_cuda_stream_create(options, &timing->stream));
    must_ok(qn_cuda_mark_create(true, &timing->from));
    must_ok(qn_cuda_mark_create(true, &timing->to));
    arena_make(&timing->arena, bytes);
}

/* Random bf16 values all over the arena, made on the host once and doubled on the device. */
void timing_fill(timing_t *timing, float deviation)
{
    size_t have = (size_t)16 << 20;
    uint16_t *values = malloc(have);
    if (!values) exit(70);
    for (size_t i = 0; i < have / 2; i++) values[i] = qn_f32_to_bf16(random_normal(&timing->random, deviation));
    must(cudaMemcpy(timing->arena.base, values, have, cudaMemcpyHostToDevice), "fill");
    free(values);
    for (; have < timing->arena.bytes; have *= 2) {
        size_t more = timing->arena.bytes - have < have ? timing->arena.bytes - have : have;
        must(cudaMemcpy(timing->arena.base + have, timing->arena.base, more, cudaMemcpyDeviceToDevice), "fill");
    }
}

void timing_free(timing_t *timing)
{
    qn_cuda_mark_destroy(&timing->from);
    qn_cuda_mark_destroy(&timing->to);
    qn_cuda_stream_destroy(&timing->stream);
    must(cudaFree(timing->arena.base), "free");
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double timing_run(timing_t *timing, unsigned launches, void (*launch)(void *context, unsigned index), void *context)
{
    enum { REPEATS = 7 };
    qn_cuda_graph_t *graph;
    double times[REPEATS];
    launch(context, 0);   /* loads the kernel and asks the library, outside the capture */
    must_ok(qn_cuda_stream_wait(timing->stream));
    must_ok(qn_cuda_capture_begin(timing->stream));
    for (unsigned i = 0; i < launches; i++) launch(context, i);
    must_ok(qn_cuda_capture_end(timing->stream, &graph));
    must_ok(qn_cuda_graph_launch(timing->stream, graph));
    for (int i = 0; i < REPEATS; i++) {
        must_ok(qn_cuda_mark_set(timing->stream, timing->from));
        must_ok(qn_cuda_graph_launch(timing->stream, graph));
        must_ok(qn_cuda_mark_set(timing->stream, timing->to));
        must_ok(qn_cuda_stream_wait(timing->stream));
        must_ok(qn_cuda_mark_elapsed(timing->from, timing->to, &times[i]));
    }
    qn_cuda_graph_destroy(&graph);
    qsort(times, REPEATS, sizeof times[0], ascending);
    return times[REPEATS / 2] / launches;
}

void timing_print(const char *op, const char *shape, double us, double bytes, double operations)
{
    printf("%-20s %-34s %10.2f us", op, shape, us);
    if (bytes > 0) printf("  %6.0f GB/s %5.1f %%", bytes / us / 1e3, bytes / us / 1e3 / 4540 * 100);
    if (operations > 0) printf("  %6.1f TFLOP/s %5.1f %%", operations / us / 1e6, operations / us / 1e6 / 790 * 100);
    printf("\n");
}

/* ---- products ---- */

typedef struct {
    timing_t *timing;
    qn_matmul_t matmul;
    char *weights;
    size_t weight_bytes, copies;
    void (*kernel)(qn_stream_t *, const void *);
} product_t;

static void launch_product(void *context, unsigned index)
{
    product_t *p = context;
    char *at = p->weights + index % p->copies * p->weight_bytes;
    for (uint32_t i = 0; i < p->matmul.part_count; i++) {
        p->matmul.parts[i].weight.data = at;
        at += (size_t)p->matmul.parts[i].outputs * p->matmul.inputs * 2;
    }
    p->kernel(p->timing->stream, &p->matmul);
}

/* One product with `outputs` per part. */
static void time_product(timing_t *timing, const char *name, void (*kernel)(qn_stream_t *, const void *),
                         const char *label, uint32_t tokens, uint32_t inputs, const uint32_t *outputs, bool residual)
{
    product_t p = { .timing = timing, .kernel = kernel,
                    .matmul = { .tokens = tokens, .inputs = inputs } };
    double all = 0;
    timing->arena.used = 0;
    p.matmul.x = arena_take(&timing->arena, (size_t)tokens * inputs * 2);
    for (uint32_t i = 0; i < QN_MATMUL_PARTS && outputs[i]; i++) {
        void *out = arena_take(&timing->arena, (size_t)tokens * outputs[i] * 4);
        p.matmul.parts[p.matmul.part_count++] = (qn_matmul_part_t){
            .weight = { .scalar = QN_SCALAR_BF16 }, .out = out, .outputs = outputs[i],
            .residual = residual ? out : NULL };
        all += outputs[i];
    }
    p.weight_bytes = (size_t)all * inputs * 2;
    p.copies = ROTATE_BYTES / p.weight_bytes + 1;
    p.weights = arena_take(&timing->arena, p.copies * p.weight_bytes);
    unsigned launches = tokens > 512 ? 3 : p.copies < 10 ? 10 : p.copies > 60 ? 60 : (unsigned)p.copies;
    double us = timing_run(timing, launches, launch_product, &p);
    char shape[80];
    snprintf(shape, sizeof shape, "%s T %u", label, tokens);
    double bytes = (double)p.weight_bytes + (double)tokens * (inputs + all) * 2;
    timing_print(name, shape, us, bytes, tokens >= 64 ? 2.0 * tokens * inputs * all : 0);
}

static void time_products(timing_t *timing, const model_shape_t *model, bool library)
{
    uint32_t e = model->hidden, q = model->heads * model->head_dim, kv = model->kv_heads * model->head_dim;
    struct { const char *name; uint32_t inputs, outputs[QN_MATMUL_PARTS]; bool residual; } list[] = {
        { "qkv", e, { q, kv, kv }, false }, { "o", q, { e, 0, 0 }, true },
        { "gate+up", e, { model->intermediate, model->intermediate, 0 }, false },
        { "down", model->intermediate, { e, 0, 0 }, true }, { "head", e, { model->vocab, 0, 0 }, false },
    };
    static const uint32_t THIN[] = { 1, 4, 8, 16, 32 }, BLAS[] = { 1, 16, 32, 64, 128, 256, 1024, 8192 };
    for (unsigned i = 0; i < 5; i++) {
        char label[64];
        snprintf(label, sizeof label, "%s %s", model->name, list[i].name);
        for (unsigned t = 0; t < 5; t++)
            time_product(timing, "matmul thin", qn_cuda_matmul_thin, label, THIN[t], list[i].inputs, list[i].outputs,
                         list[i].residual);
        for (unsigned t = 0; t < 8 && library; t++)
            if (BLAS[t] <= 1024 || (i < 4 && model->hidden == 4096))
                time_product(timing, "matmul blas", qn_cuda_matmul_blas, label, BLAS[t], list[i].inputs,
                             list[i].outputs, list[i].residual);
    }
}

/* ---- attention ---- */

typedef struct {
    timing_t *timing;
    qn_attention_t attention;
    void (*kernel)(qn_stream_t *, const void *);
} attention_t;

static void launch_attention(void *context, unsigned index)
{
    attention_t *a = context;
    a->attention.layer = index % a->attention.kv.layers;
    a->kernel(a->timing->stream, &a->attention);
}

/* `runs` sequences whose last `tokens` of `length` positions are run. */
static void time_attention(timing_t *timing, const model_shape_t *model, uint32_t runs, uint32_t length,
                           uint32_t tokens)
{
    enum { P = 16 };
    uint32_t table_blocks = (length + P - 1) / P, blocks = runs * table_blocks;
    qn_kv_t kv = { NULL, QN_SCALAR_BF16, 1, blocks, P, model->kv_heads, model->head_dim };
    size_t layer_bytes = (size_t)2 * blocks * P * model->kv_heads * model->head_dim * 2;
    size_t layers = ROTATE_BYTES / layer_bytes + 1;
    kv.layers = layers > 256 ? 256 : (uint32_t)layers;
    timing->arena.used = 0;
    kv.data = arena_take(&timing->arena, layer_bytes * kv.layers);
    size_t rows = (size_t)runs * tokens * model->heads * model->head_dim * 2;
    uint32_t *table = malloc((size_t)blocks * 4);
    qn_run_t *list = malloc(runs * sizeof *list);
    if (!table || !list) exit(70);
    for (uint32_t i = 0; i < blocks; i++) table[i] = (uint32_t)((uint64_t)i * 7919 % blocks);
    for (uint32_t i = 0; i < runs; i++)
        list[i] = (qn_run_t){ .slot = i, .position = length - tokens, .tokens = tokens, .first = i * tokens };
    attention_t a = { .timing = timing, .kernel = tokens == 1 ? qn_cuda_attention_decode : qn_cuda_attention_prefill };
    a.attention = (qn_attention_t){
        .kv = kv, .heads = model->heads, .scale = 1 / sqrtf((float)model->head_dim), .run_count = runs,
        .tables = { .block_tables = push(&timing->arena, table, (size_t)blocks * 4), .table_blocks = table_blocks },
        .runs = push(&timing->arena, list, runs * sizeof *list), .q = arena_take(&timing->arena, rows),
        .out = arena_take(&timing->arena, rows) };
    free(table);
    free(list);
    unsigned launches = tokens > 512 ? 4 : kv.layers < 8 ? 8 : kv.layers > 128 ? 128 : kv.layers;
    double us = timing_run(timing, launches, launch_attention, &a);
    double seen = (double)tokens * (length - tokens) + (double)tokens * (tokens + 1) / 2;
    char shape[80];
    snprintf(shape, sizeof shape, "%s N %u length %u tokens %u", model->name, runs, length, tokens);
    if (tokens == 1) timing_print("attention.decode", shape, us, (double)layer_bytes, 0);
    else timing_print("attention.prefill", shape, us, 0, 4.0 * runs * seen * model->heads * model->head_dim);
}

static void time_attentions(timing_t *timing, const model_shape_t *model)
{
    static const uint32_t DECODE[][2] = { { 1, 128 }, { 1, 1024 }, { 1, 8192 }, { 1, 65536 }, { 16, 1024 },
                                          { 64, 1024 }, { 256, 1024 }, { 256, 200 }, { 32, 8192 } };
    for (unsigned i = 0; i < 9; i++) time_attention(timing, model, DECODE[i][0], DECODE[i][1], 1);
    time_attention(timing, model, 1, 512, 512);
    time_attention(timing, model, 1, 2048, 2048);
    time_attention(timing, model, 1, 8192, 8192);
    time_attention(timing, model, 1, 8192, 1024);
    time_attention(timing, model, 8, 1024, 1024);
}

/* ---- the small ones ---- */

typedef struct {
    timing_t *timing;
    void (*kernel)(qn_stream_t *, const void *);
    const void *arguments;
} small_t;

static void launch_small(void *context, unsigned index)
{
    (void)index;
    small_t *s = context;
    s->kernel(s->timing->stream, s->arguments);
}

static void time_small(timing_t *timing, const char *op, const model_shape_t *model, uint32_t tokens,
                       void (*kernel)(qn_stream_t *, const void *), const void *arguments, double bytes)
{
    small_t s = { timing, kernel, arguments };
    char shape[80];
    snprintf(shape, sizeof shape, "%s T %u", model->name, tokens);
    timing_print(op, shape, timing_run(timing, 50, launch_small, &s), tokens >= 1024 ? bytes : 0, 0);
}

static void time_smalls(timing_t *timing, const model_shape_t *model, uint32_t tokens)
{
    uint32_t e = model->hidden, f = model->intermediate, q = model->heads * model->head_dim;
    uint32_t kv_width = model->kv_heads * model->head_dim;
    timing->arena.used = 0;
    uint32_t *ids = malloc(tokens * 4);
    int64_t *rows = malloc(tokens * 8);
    if (!ids || !rows) exit(70);
    for (uint32_t i = 0; i < tokens; i++) ids[i] = random_below(&timing->random, 32000), rows[i] = i;
    qn_weight_t weight = { .data = arena_take(&timing->arena, (size_t)32000 * e * 2), .scalar = QN_SCALAR_BF16 };
    void *x = arena_take(&timing->arena, (size_t)tokens * f * 2);
    void *y = arena_take(&timing->arena, (size_t)tokens * f * 2);
    float *angles = arena_take(&timing->arena, (size_t)tokens * model->head_dim * 4);
    float *frequencies = arena_take(&timing->arena, model->head_dim * 4);
    uint32_t *ids_device = push(&timing->arena, ids, tokens * 4);
    int64_t *rows_device = push(&timing->arena, rows, tokens * 8);
    qn_kv_t kv = { NULL, QN_SCALAR_BF16, 1, tokens / 16 + 1, 16, model->kv_heads, model->head_dim };
    kv.data = arena_take(&timing->arena, (size_t)2 * kv.blocks * 16 * kv_width * 2);
    time_small(timing, "embedding", model, tokens, qn_cuda_embedding,
               &(qn_embedding_t){ .table = weight, .ids = ids_device, .tokens = tokens, .width = e, .multiplier = 1,
                                  .out = x }, (double)tokens * e * 4);
    time_small(timing, "rmsnorm", model, tokens, qn_cuda_rmsnorm,
               &(qn_rmsnorm_t){ .x = x, .weight = weight, .rows = tokens, .width = e, .eps = 1e-5f, .out = y },
               (double)tokens * e * 4);
    time_small(timing, "layernorm", model, tokens, qn_cuda_layernorm,
               &(qn_layernorm_t){ .x = x, .weight = weight, .bias = weight, .rows = tokens, .width = e, .eps = 1e-5f,
                                  .out = y }, (double)tokens * e * 4);
    time_small(timing, "rope_angles", model, tokens, qn_cuda_rope_angles,
               &(qn_rope_angles_t){ .positions = ids_device, .frequencies = frequencies, .scale = 1, .tokens = tokens,
                                    .head_dim = model->head_dim, .out = angles }, 0);
    time_small(timing, "rope", model, tokens, qn_cuda_rope,
               &(qn_rope_t){ .angles = angles, .q = x, .k = y, .tokens = tokens, .heads = model->heads,
                             .kv_heads = model->kv_heads, .head_dim = model->head_dim },
               (double)tokens * (q + kv_width) * 4);
    time_small(timing, "kv_write", model, tokens, qn_cuda_kv_write,
               &(qn_kv_write_t){ .kv = kv, .tokens = tokens, .k = x, .v = y, .kv_rows = rows_device },
               (double)tokens * kv_width * 8);
    time_small(timing, "activation", model, tokens, qn_cuda_activation,
               &(qn_activate_t){ .gate = x, .up = y, .tokens = tokens, .width = f, .out = x }, (double)tokens * f * 6);
    free(ids);
    free(rows);
}

/* ---- the sampler ---- */

static void time_sampler(timing_t *timing, const char *label, qn_slot_row_t row, uint32_t rows)
{
    enum { V = 128256 };
    timing->arena.used = 0;
    qn_slot_row_t *slots = malloc(rows * sizeof *slots);
    qn_sample_t *samples = malloc(rows * sizeof *samples);
    float *logits = malloc((size_t)rows * V * 4);
    if (!slots || !samples || !logits) exit(70);
    row.repetition_penalty = 1;
    for (uint32_t i = 0; i < rows; i++) slots[i] = row, slots[i].seed = i, samples[i] = (qn_sample_t){ i, 5 };
    for (size_t i = 0; i < (size_t)rows * V; i++) logits[i] = random_normal(&timing->random, 3);
    for (uint32_t i = 0; i < rows; i++)
        for (int j = 0; j < 20; j++) logits[(size_t)i * V + random_below(&timing->random, V)] = 14 + (float)j * 0.3f;
    qn_slot_tables_t tables = { .slots = rows, .vocab = V, .rows = push(&timing->arena, slots, rows * sizeof *slots),
                                .stop_ids = arena_take(&timing->arena, rows * QN_STOP_IDS_MAX * 4) };
    qn_sampler_t a = { .tables = tables, .samples = push(&timing->arena, samples, rows * sizeof *samples),
                       .sample_count = rows, .logits = push(&timing->arena, logits, (size_t)rows * V * 4),
                       .scratch = arena_take(&timing->arena, (size_t)rows * 2 * V * 4),
                       .ret_results = arena_take(&timing->arena, rows * sizeof(qn_sample_result_t)),
                       .ret_top = arena_take(&timing->arena, rows * QN_TOP_LOGPROBS_MAX * sizeof(qn_top_entry_t)) };
    small_t s = { timing, qn_cuda_sampler, &a };
    char shape[80];
    snprintf(shape, sizeof shape, "V %u S %u %s", V, rows, label);
    timing_print("sampler", shape, timing_run(timing, 20, launch_small, &s), 0, 0);
    free(slots);
    free(samples);
    free(logits);
}

static void time_samplers(timing_t *timing)
{
    for (uint32_t rows = 1; rows <= 64; rows += 63) {
        time_sampler(timing, "greedy", (qn_slot_row_t){ .top_p = 1 }, rows);
        time_sampler(timing, "greedy, 20 log-probs", (qn_slot_row_t){ .top_p = 1, .top_logprobs = 20 }, rows);
        time_sampler(timing, "temperature", (qn_slot_row_t){ .top_p = 1, .temperature = 1 }, rows);
        time_sampler(timing, "top-k 50", (qn_slot_row_t){ .top_p = 1, .temperature = 1, .top_k = 50 }, rows);
        time_sampler(timing, "top-p 0.9", (qn_slot_row_t){ .top_p = 0.9f, .temperature = 1 }, rows);
        time_sampler(timing, "top-p 0.999 (whole row)", (qn_slot_row_t){ .top_p = 0.999f, .temperature = 3 }, rows);
    }
}

/* usage: time_kernels [matmul|thin|attention|small|sampler|step|experts|load]; thin: matmul without the library; all
 * but matmul when nothing is named. */
int main(int argc, char **argv)
{
    const char *only = argc > 1 ? argv[1] : "";
    timing_t timing;
    timing_make(&timing, &(qn_cuda_options_t){ .activations = QN_SCALAR_BF16, .dependent_launch = true,
                .max_sequences = 256, .heads = 32, .kv_heads = 8, .head_dim = 128 }, (size_t)6 << 30);
    timing_fill(&timing, 0.05f);
    bool library = strcmp(only, "thin") != 0;
    if (strstr(only, "matmul") || !library)
        time_products(&timing, &LLAMA_1B, library), time_products(&timing, &LLAMA_8B, library);
    if (!*only || strstr(only, "attention")) time_attentions(&timing, &LLAMA_1B), time_attentions(&timing, &LLAMA_8B);
    static const uint32_t TOKENS[] = { 1, 256, 8192 };
    for (unsigned i = 0; i < 3 && (!*only || strstr(only, "small")); i++) time_smalls(&timing, &LLAMA_8B, TOKENS[i]);
    if (!*only || strstr(only, "sampler")) time_samplers(&timing);
    if (!*only || strstr(only, "experts")) time_experts(&timing);
    timing_free(&timing);
    if (!*only || strstr(only, "load")) time_load();
    if (!*only || strstr(only, "step")) time_steps();
    return 0;
}
