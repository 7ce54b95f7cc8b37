/* What is this?      Attention on the GPU against the reference: every implementation over head dimensions, groups,
 *                    block sizes, windows, ragged chunks and mixed lengths; and its bits alone and in a batch.
 * State owned:       none.
 * Must never:        compare rows that no run owns.
 * Read next:         kernels/cuda/attention/attention.cuh. */
#include "tests/gpu/check.h"

#define RUNS_MAX 64

typedef struct {
    uint32_t heads, kv_heads, head_dim, block_tokens, window;
    float softcap;
    uint32_t runs, positions[RUNS_MAX], tokens[RUNS_MAX];
} shape_t;

typedef struct {
    const char *name;
    void (*launch)(qn_stream_t *, const void *);
    bool (*accepts)(const qn_kernel_case_t *); /* NULL: all */
} kernel_t;

static const kernel_t PREFILL = {"prefill", qn_cuda_attention_prefill, NULL};
static bool takes_mma(const qn_kernel_case_t *shape)
{
    uint32_t dim = shape->head_dim;
    return shape->kv_scalar == QN_SCALAR_BF16 && shape->activations == QN_SCALAR_BF16 &&
           (dim == 32 || dim == 64 || dim == 96 || dim == 128 || dim == 256);
}

static const kernel_t PREFILL_MMA = {"prefill mma", qn_cuda_attention_mma, takes_mma};
static const kernel_t CHOICE = {"decode", qn_cuda_attention_decode, NULL};
static const kernel_t SPLITS = {"decode splits", qn_cuda_attention_splits, NULL};
static const kernel_t RESIDENT = {"decode resident", qn_cuda_attention_resident, qn_cuda_resident_accepts};

typedef struct {
    qn_attention_t host, device;
    uint32_t rows; /* of q and out */
} problem_t;

static uint32_t blocks_of(const shape_t *shape, uint32_t run)
{
    return (shape->positions[run] + shape->tokens[run] + shape->block_tokens - 1) / shape->block_tokens;
}

/* Slots in reverse order of runs, blocks scattered, layer 1 of 2. */
static void make_tables(check_t *check, const shape_t *shape, problem_t *problem)
{
    uint32_t blocks = 0, longest = 0;
    for (uint32_t i = 0; i < shape->runs; i++) {
        blocks += blocks_of(shape, i);
        if (blocks_of(shape, i) > longest) longest = blocks_of(shape, i);
    }
    uint32_t *tables = hold(&check->held, (size_t)shape->runs * longest * sizeof *tables);
    qn_run_t *runs = hold(&check->held, shape->runs * sizeof *runs);
    uint32_t *order = hold(&check->held, blocks * sizeof *order), next = 0, first = 0;
    for (uint32_t i = 0; i < blocks; i++)
        order[i] = i;
    for (uint32_t i = blocks; i > 1; i--) {
        uint32_t other = random_below(&check->random, i), kept = order[i - 1];
        order[i - 1] = order[other];
        order[other] = kept;
    }
    for (uint32_t i = 0; i < shape->runs; i++) {
        uint32_t slot = shape->runs - 1 - i;
        runs[i] = (qn_run_t){.slot = slot, .position = shape->positions[i], .tokens = shape->tokens[i], .first = first};
        first += shape->tokens[i];
        for (uint32_t b = 0; b < blocks_of(shape, i); b++)
            tables[(size_t)slot * longest + b] = order[next++];
    }
    problem->rows = first;
    problem->host.tables = (qn_slot_tables_t){.block_tables = tables, .slots = shape->runs, .table_blocks = longest};
    problem->host.runs = runs;
    problem->host.kv.blocks = blocks;
    problem->device = problem->host;
    problem->device.tables.block_tables = push(&check->arena, tables, (size_t)shape->runs * longest * sizeof *tables);
    problem->device.runs = push(&check->arena, runs, shape->runs * sizeof *runs);
}

static problem_t make_problem(check_t *check, const shape_t *shape, qn_scalar_t kv_scalar)
{
    problem_t problem = {.host = {.layer = 1,
                                  .heads = shape->heads,
                                  .window = shape->window,
                                  .scale = 1 / sqrtf((float)shape->head_dim),
                                  .softcap = shape->softcap,
                                  .run_count = shape->runs}};
    make_tables(check, shape, &problem);
    qn_kv_t kv = {NULL, kv_scalar, 2, problem.host.kv.blocks, shape->block_tokens, shape->kv_heads, shape->head_dim};
    size_t kv_count = (size_t)2 * 2 * kv.blocks * kv.block_tokens * kv.kv_heads * kv.head_dim;
    size_t count = (size_t)problem.rows * shape->heads * shape->head_dim;
    pair_t cache = check_weight(check, kv_count, 1, 0, kv_scalar);
    float *q = check_values(check, count, 1.5f, 200, check->activations);
    problem.host.kv = problem.device.kv = kv;
    problem.host.kv.data = (void *)cache.host.data;
    problem.device.kv.data = (void *)cache.device.data;
    problem.host.q = q;
    problem.device.q = check_push(check, q, count, check->activations);
    problem.host.out = hold(&check->held, count * sizeof(float));
    problem.device.out = check_poison(check, count * 4);
    return problem;
}

/* Positions of a run's last block that are not its own yet may hold anything. */
static void poison_rest(const shape_t *shape, problem_t *problem)
{
    const qn_kv_t *host = &problem->host.kv, *device = &problem->device.kv;
    size_t row = (size_t)host->kv_heads * host->head_dim * qn_scalar_bytes(host->scalar);
    for (uint32_t i = 0; i < shape->runs; i++) {
        const qn_run_t *run = &problem->host.runs[i];
        if (!run->tokens) continue;
        uint32_t end = run->position + run->tokens, last = (end - 1) / host->block_tokens;
        uint32_t block = problem->host.tables.block_tables[run->slot * problem->host.tables.table_blocks + last];
        for (uint32_t plane = 0; plane < 2 * host->layers; plane++) {
            size_t at = qn_kv_offset(host, plane / 2, plane % 2, block, end - last * host->block_tokens);
            size_t bytes = ((last + 1) * host->block_tokens - end) * row;
            at *= qn_scalar_bytes(host->scalar);
            memset((char *)host->data + at, 0xff, bytes);
            if (bytes) must(cudaMemset((char *)device->data + at, 0xff, bytes), "poison");
        }
    }
    must(cudaDeviceSynchronize(), "poison");
}

static bool takes(const check_t *check, const kernel_t *kernel, const shape_t *shape, qn_scalar_t kv_scalar)
{
    return !kernel->accepts || kernel->accepts(&(qn_kernel_case_t){.heads = shape->heads,
                                                                   .kv_heads = shape->kv_heads,
                                                                   .head_dim = shape->head_dim,
                                                                   .block_tokens = shape->block_tokens,
                                                                   .kv_scalar = kv_scalar,
                                                                   .activations = check->activations});
}

static void check_shape(check_t *check, const shape_t *shape, qn_scalar_t kv_scalar, const kernel_t *kernel)
{
    if (!takes(check, kernel, shape, kv_scalar)) return;
    snprintf(check->label, sizeof check->label, "%s H %u K %u D %u P %u window %u kv %u, %u runs from %u+%u",
             kernel->name, shape->heads, shape->kv_heads, shape->head_dim, shape->block_tokens, shape->window,
             kv_scalar, shape->runs, shape->positions[0], shape->tokens[0]);
    problem_t problem = make_problem(check, shape, kv_scalar);
    poison_rest(shape, &problem);
    qn_cpu_attention(check->cpu, &problem.host);
    size_t count = (size_t)problem.rows * shape->heads * shape->head_dim;
    kernel->launch(check->gpu, &problem.device);
    bool exact = check->activations == QN_SCALAR_F32;
    check_compare(check, problem.device.out, check->activations, problem.host.out, count, exact ? 2e-4 : 1.5e-2,
                  exact ? 2e-5 : 1.5e-2);
    check_next(check);
}

static const shape_t HEADS[] = {
    {.heads = 4, .kv_heads = 4, .head_dim = 32, .block_tokens = 16},
    {.heads = 32, .kv_heads = 8, .head_dim = 64, .block_tokens = 16},
    {.heads = 14, .kv_heads = 2, .head_dim = 64, .block_tokens = 5, .window = 70},
    {.heads = 6, .kv_heads = 3, .head_dim = 80, .block_tokens = 16},
    {.heads = 8, .kv_heads = 8, .head_dim = 96, .block_tokens = 32},
    {.heads = 32, .kv_heads = 8, .head_dim = 128, .block_tokens = 16},
    {.heads = 28, .kv_heads = 4, .head_dim = 128, .block_tokens = 16, .window = 129},
    {.heads = 20, .kv_heads = 1, .head_dim = 128, .block_tokens = 16},
    {.heads = 8, .kv_heads = 4, .head_dim = 256, .block_tokens = 16, .window = 100},
    {.heads = 8, .kv_heads = 4, .head_dim = 256, .block_tokens = 16, .softcap = 50},
    {.heads = 16, .kv_heads = 8, .head_dim = 128, .block_tokens = 16, .window = 300, .softcap = 5},
    {.heads = 3, .kv_heads = 3, .head_dim = 112, .block_tokens = 16, .softcap = 20},
    {.heads = 14, .kv_heads = 2, .head_dim = 64, .block_tokens = 128, .window = 1000},
    {.heads = 5, .kv_heads = 5, .head_dim = 64, .block_tokens = 32, .window = 64, .softcap = 30},
    {.heads = 16, .kv_heads = 2, .head_dim = 128, .block_tokens = 64},
    {.heads = 2, .kv_heads = 1, .head_dim = 128, .block_tokens = 32, .window = 2000},
    {.heads = 4, .kv_heads = 1, .head_dim = 128, .block_tokens = 16},
    {.heads = 3, .kv_heads = 1, .head_dim = 64, .block_tokens = 256},
    {.heads = 10, .kv_heads = 2, .head_dim = 64, .block_tokens = 8, .window = 300},
    {.heads = 6, .kv_heads = 6, .head_dim = 64, .block_tokens = 128, .softcap = 10},
    {.heads = 12, .kv_heads = 4, .head_dim = 128, .block_tokens = 512, .window = 1},
};

static const uint32_t LENGTHS[] = {0, 1, 15, 16, 62, 63, 64, 65, 127, 200, 511, 700, 1500, 4095, 4200};
static const uint32_t CHUNKS[][2] = {{0, 1},   {0, 70},   {3, 2},     {64, 64},   {100, 33},
                                     {511, 3}, {17, 200}, {1000, 37}, {128, 128}, {0, 300}};
enum { CHUNK_COUNT = sizeof CHUNKS / sizeof CHUNKS[0] };

/* Runs of no tokens between the others and after them. */
static shape_t with_idle(const shape_t *all)
{
    shape_t shape = *all;
    for (shape.runs = 0; shape.runs < RUNS_MAX; shape.runs++) {
        uint32_t from = shape.runs / 3;
        bool idle = shape.runs % 3 == 1 || from >= all->runs;
        shape.positions[shape.runs] = idle ? 0 : all->positions[from];
        shape.tokens[shape.runs] = !idle;
    }
    return shape;
}

unsigned check_attention(qn_scalar_t activations)
{
    check_t check = check_begin("attention", activations, false);
    for (unsigned h = 0; h < sizeof HEADS / sizeof HEADS[0]; h++) {
        shape_t decode_all = HEADS[h], prefill_all = HEADS[h];
        for (unsigned i = 0; i < sizeof LENGTHS / sizeof LENGTHS[0]; i++) {
            shape_t single = HEADS[h];
            single.runs = 1;
            decode_all.positions[decode_all.runs] = single.positions[0] = LENGTHS[i];
            decode_all.tokens[decode_all.runs++] = single.tokens[0] = 1;
            check_shape(&check, &single, activations, &CHOICE);
        }
        for (unsigned i = 0; i < CHUNK_COUNT; i++) {
            prefill_all.positions[prefill_all.runs] = CHUNKS[i][0];
            prefill_all.tokens[prefill_all.runs++] = CHUNKS[i][1];
        }
        shape_t idle = with_idle(&decode_all);
        for (unsigned scalar = 0; scalar < 2; scalar++) {
            check_shape(&check, &decode_all, (qn_scalar_t)scalar, &CHOICE);
            check_shape(&check, &idle, (qn_scalar_t)scalar, &CHOICE);
            check_shape(&check, &prefill_all, (qn_scalar_t)scalar, &PREFILL);
            check_shape(&check, &prefill_all, (qn_scalar_t)scalar, &PREFILL_MMA);
        }
    }
    return check_end(&check);
}

/* The implementations by name: every length alone, all of them, and lengths that are cut often and far out. */
unsigned check_attention_named(void)
{
    static const uint32_t FAR[] = {4096, 4600, 9000, 33000, 70001};
    static const kernel_t *const KERNELS[] = {&SPLITS, &RESIDENT};
    check_t check = check_begin("attention, named", QN_SCALAR_BF16, false);
    for (unsigned k = 0; k < 2; k++)
        for (unsigned h = 0; h < sizeof HEADS / sizeof HEADS[0]; h++) {
            shape_t all = HEADS[h], far = HEADS[h];
            if (!takes(&check, &RESIDENT, &all, QN_SCALAR_BF16)) continue;
            for (unsigned i = 0; i < sizeof LENGTHS / sizeof LENGTHS[0]; i++) {
                shape_t single = HEADS[h];
                single.runs = single.tokens[0] = 1;
                all.positions[all.runs] = single.positions[0] = LENGTHS[i];
                all.tokens[all.runs++] = 1;
                check_shape(&check, &single, QN_SCALAR_BF16, KERNELS[k]);
            }
            for (unsigned i = 0; i < sizeof FAR / sizeof FAR[0]; i++)
                far.positions[far.runs] = FAR[i], far.tokens[far.runs++] = 1;
            check_shape(&check, &all, QN_SCALAR_BF16, KERNELS[k]);
            shape_t idle = with_idle(&all);
            check_shape(&check, &idle, QN_SCALAR_BF16, KERNELS[k]);
            if (far.heads * far.head_dim <= 1024) check_shape(&check, &far, QN_SCALAR_BF16, KERNELS[k]);
        }
    return check_end(&check);
}

/* Small enough for a sanitizer: runs that are cut and runs that are not. */
unsigned check_attention_few(void)
{
    static const uint32_t FEW[] = {0, 40, 300, 1100, 2500};
    check_t check = check_begin("attention, few", QN_SCALAR_BF16, false);
    for (uint32_t dim = 64; dim <= 128; dim += 64) {
        shape_t shape = {.heads = 8, .kv_heads = 2, .head_dim = dim, .block_tokens = 16, .runs = 5};
        for (uint32_t i = 0; i < shape.runs; i++)
            shape.positions[i] = FEW[i], shape.tokens[i] = 1;
        check_shape(&check, &shape, QN_SCALAR_BF16, &SPLITS);
        check_shape(&check, &shape, QN_SCALAR_BF16, &RESIDENT);
        shape.tokens[1] = shape.tokens[4] = 0;
        check_shape(&check, &shape, QN_SCALAR_BF16, &SPLITS);
        check_shape(&check, &shape, QN_SCALAR_BF16, &RESIDENT);
    }
    return check_end(&check);
}

/* Launches the kernel on all runs and on run `index` alone; the rows of that run must have the same bits. */
static void check_alone(check_t *check, const shape_t *shape, uint32_t index, const kernel_t *kernel)
{
    problem_t problem = make_problem(check, shape, QN_SCALAR_BF16);
    size_t width = (size_t)shape->heads * shape->head_dim * 2, first = problem.host.runs[index].first * width;
    size_t bytes = shape->tokens[index] * width;
    char *batch = hold(&check->held, bytes), *alone = hold(&check->held, bytes);
    kernel->launch(check->gpu, &problem.device);
    must_ok(qn_cuda_stream_wait(check->gpu));
    pull(batch, (char *)problem.device.out + first, bytes);
    must(cudaMemset(problem.device.out, 0xff, problem.rows * width), "poison");
    must(cudaDeviceSynchronize(), "poison");
    problem.device.runs += index;
    problem.device.run_count = 1;
    kernel->launch(check->gpu, &problem.device);
    must_ok(qn_cuda_stream_wait(check->gpu));
    pull(alone, (char *)problem.device.out + first, bytes);
    check->cases++;
    snprintf(check->label, sizeof check->label, "%s D %u run %u", kernel->name, shape->head_dim, index);
    if (memcmp(batch, alone, bytes) != 0) check_failed(check, "bits depend on the batch");
    check_next(check);
}

/* Sequences of all lengths, the last ones long. */
static shape_t many_runs(uint32_t heads, uint32_t kv_heads, uint32_t dim)
{
    shape_t shape = {.heads = heads, .kv_heads = kv_heads, .head_dim = dim, .block_tokens = 16, .runs = RUNS_MAX};
    for (uint32_t i = 0; i < RUNS_MAX; i++)
        shape.positions[i] = 5 + i * 17 + i / 60 * 4000, shape.tokens[i] = 1;
    shape.positions[RUNS_MAX - 2] = 20000;
    return shape;
}

/* One prompt whole, and cut into chunks of these many tokens, over and over: the same bits. */
static void check_cut(check_t *check, const shape_t *heads, uint32_t tokens, const uint32_t *chunks,
                      const kernel_t *kernel)
{
    shape_t shape = *heads;
    shape.runs = 1, shape.positions[0] = 0, shape.tokens[0] = tokens;
    problem_t problem = make_problem(check, &shape, QN_SCALAR_BF16);
    size_t bytes = (size_t)tokens * shape.heads * shape.head_dim * 2;
    char *whole = hold(&check->held, bytes), *cut = hold(&check->held, bytes);
    qn_run_t *runs = hold(&check->held, tokens * sizeof *runs);
    kernel->launch(check->gpu, &problem.device);
    must_ok(qn_cuda_stream_wait(check->gpu));
    pull(whole, problem.device.out, bytes);
    uint32_t count = 0;
    for (uint32_t at = 0; at < tokens; at += runs[count++].tokens) {
        uint32_t wanted = chunks[count % 4], left = tokens - at;
        runs[count] = (qn_run_t){.position = at, .first = at, .tokens = wanted < left ? wanted : left};
    }
    problem.device.runs = push(&check->arena, runs, count * sizeof *runs);
    problem.device.run_count = count;
    must(cudaMemset(problem.device.out, 0xff, bytes), "poison");
    must(cudaDeviceSynchronize(), "poison");
    kernel->launch(check->gpu, &problem.device);
    must_ok(qn_cuda_stream_wait(check->gpu));
    pull(cut, problem.device.out, bytes);
    check->cases++;
    snprintf(check->label, sizeof check->label, "%s D %u window %u, %u tokens in %u chunks", kernel->name,
             shape.head_dim, shape.window, tokens, count);
    if (memcmp(whole, cut, bytes) != 0) check_failed(check, "bits depend on the chunks");
    check_next(check);
}

static void check_cuts(check_t *check)
{
    static const uint32_t CUTS[][4] = {{1, 70, 3, 200}, {512, 512, 512, 512}, {17, 17, 17, 17}, {1, 1, 1, 1}};
    static const shape_t PROMPTS[] = {
        {.heads = 8, .kv_heads = 2, .head_dim = 64, .block_tokens = 16},
        {.heads = 7, .kv_heads = 1, .head_dim = 128, .block_tokens = 16},
        {.heads = 8, .kv_heads = 2, .head_dim = 64, .block_tokens = 16, .window = 150},
        {.heads = 6, .kv_heads = 2, .head_dim = 128, .block_tokens = 32, .window = 300, .softcap = 8},
        {.heads = 4, .kv_heads = 4, .head_dim = 96, .block_tokens = 16},
        {.heads = 4, .kv_heads = 4, .head_dim = 256, .block_tokens = 16, .window = 60},
    };
    for (unsigned p = 0; p < sizeof PROMPTS / sizeof PROMPTS[0]; p++)
        for (unsigned c = 0; c < sizeof CUTS / sizeof CUTS[0]; c++) {
            check_cut(check, &PROMPTS[p], c < 3 ? 1300 : 200, CUTS[c], &PREFILL);
            check_cut(check, &PROMPTS[p], c < 3 ? 1300 : 200, CUTS[c], &PREFILL_MMA);
        }
}

unsigned check_attention_bits(void)
{
    check_t check = check_begin("attention, bits", QN_SCALAR_BF16, true);
    shape_t prefill_all = {.heads = 8, .kv_heads = 2, .head_dim = 128, .block_tokens = 16, .runs = CHUNK_COUNT};
    shape_t large = many_runs(8, 2, 128), small = many_runs(7, 1, 64), plain = many_runs(6, 2, 96);
    for (uint32_t i = 0; i < CHUNK_COUNT; i++)
        prefill_all.positions[i] = CHUNKS[i][0], prefill_all.tokens[i] = CHUNKS[i][1];
    for (uint32_t i = 2; i < RUNS_MAX; i += i < 60 ? 12 : 1) {
        check_alone(&check, &large, i, &CHOICE);
        check_alone(&check, &large, i, &SPLITS);
        check_alone(&check, &small, i, &RESIDENT);
        check_alone(&check, &plain, i, &CHOICE);
    }
    for (uint32_t dim = 64; dim <= 128; dim += 64)
        for (uint32_t i = 0; i < CHUNK_COUNT; i++) {
            prefill_all.head_dim = dim;
            check_alone(&check, &prefill_all, i, &PREFILL);
        }
    check_cuts(&check);
    return check_end(&check);
}
