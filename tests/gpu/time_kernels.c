/* What is this?      The clock of the GPU timings, and device time of the two ways to a product, the skinny one and the
 *                    library's, over the shapes of Llama-3.2-1B and Llama-3.1-8B: where matmul.cu should change over.
 *                    Percentages are of an H200 (4.54 TB/s read, 790 TFLOP/s in bf16).
 * State owned:       device memory.
 * Must never:        time on zeros, or on data that the second-level cache holds: weights rotate.
 * Read next:         services/compute/bench/kernel_runner.c (`quintet bench kernels`: all that are registered); time_step.c. */
#include "tests/gpu/timing.h"

#define ROTATE_BYTES ((size_t)512 << 20) /* several times the cache */

const model_shape_t LLAMA_1B = {"1B", 16, 2048, 32, 8, 64, 8192, 128256};
const model_shape_t LLAMA_8B = {"8B", 32, 4096, 32, 8, 128, 14336, 128256};

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
    for (size_t i = 0; i < have / 2; i++)
        values[i] = qn_f32_to_bf16(random_normal(&timing->random, deviation));
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
    launch(context, 0); /* loads the kernel and asks the library, outside the capture */
    must_ok(qn_cuda_stream_wait(timing->stream));
    must_ok(qn_cuda_capture_begin(timing->stream));
    for (unsigned i = 0; i < launches; i++)
        launch(context, i);
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
    product_t p = {.timing = timing, .kernel = kernel, .matmul = {.tokens = tokens, .inputs = inputs}};
    double all = 0;
    timing->arena.used = 0;
    p.matmul.x = arena_take(&timing->arena, (size_t)tokens * inputs * 2);
    for (uint32_t i = 0; i < QN_MATMUL_PARTS && outputs[i]; i++) {
        void *out = arena_take(&timing->arena, (size_t)tokens * outputs[i] * 4);
        p.matmul.parts[p.matmul.part_count++] = (qn_matmul_part_t){.weight = {.scalar = QN_SCALAR_BF16},
                                                                   .out = out,
                                                                   .outputs = outputs[i],
                                                                   .residual = residual ? out : NULL};
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
    struct {
        const char *name;
        uint32_t inputs, outputs[QN_MATMUL_PARTS];
        bool residual;
    } list[] = {
        {"qkv", e, {q, kv, kv}, false},
        {"o", q, {e, 0, 0}, true},
        {"gate+up", e, {model->intermediate, model->intermediate, 0}, false},
        {"down", model->intermediate, {e, 0, 0}, true},
        {"head", e, {model->vocab, 0, 0}, false},
    };
    static const uint32_t SKINNY[] = {1, 4, 8, 16, 32}, BLAS[] = {1, 16, 32, 64, 96, 128, 160, 256, 1024, 8192};
    static const uint32_t WIDE[] = {1, 8, 16, 32, 48, 64, 96, 128, 160, 320};
    for (unsigned i = 0; i < 5; i++) {
        char label[64];
        snprintf(label, sizeof label, "%s %s", model->name, list[i].name);
        for (unsigned t = 0; t < 5; t++)
            time_product(timing, "matmul skinny", qn_cuda_matmul_skinny, label, SKINNY[t], list[i].inputs,
                         list[i].outputs, list[i].residual);
        for (unsigned t = 0; t < 10; t++)
            time_product(timing, "matmul wide", qn_cuda_matmul_wide, label, WIDE[t], list[i].inputs, list[i].outputs,
                         list[i].residual);
        for (unsigned t = 0; t < 10 && library; t++)
            if (BLAS[t] <= 1024 || (i < 4 && model->hidden == 4096))
                time_product(timing, "matmul blas", qn_cuda_matmul_blas, label, BLAS[t], list[i].inputs,
                             list[i].outputs, list[i].residual);
    }
}

/* usage: time_kernels [matmul|skinny|attention|few|prompts|prefill|step|load]; skinny: matmul without the library; few:
 * attention of 64 and 256 sequences; prompts: attention of prompts; prefill: of step; step and load when nothing is
 * named. */
int main(int argc, char **argv)
{
    const char *only = argc > 1 ? argv[1] : "";
    bool library = strcmp(only, "skinny") != 0;
    if (strstr(only, "matmul") || !library) {
        timing_t timing;
        timing_make(&timing,
                    &(qn_cuda_options_t){.activations = QN_SCALAR_BF16,
                                         .dependent_launch = true,
                                         .max_sequences = 256,
                                         .heads = 32,
                                         .kv_heads = 8,
                                         .head_dim = 128},
                    (size_t)6 << 30);
        timing_fill(&timing, 0.05f);
        time_products(&timing, &LLAMA_1B, library);
        time_products(&timing, &LLAMA_8B, library);
        timing_free(&timing);
    }
    if (strstr(only, "attention") || strstr(only, "few")) time_attention(strstr(only, "few") != NULL);
    if (strstr(only, "prompts")) time_prompt_attention();
    if (!*only || strstr(only, "load")) time_load();
    if (strstr(only, "prefill")) time_prefills();
    if (!*only || strstr(only, "step")) time_steps();
    return 0;
}
