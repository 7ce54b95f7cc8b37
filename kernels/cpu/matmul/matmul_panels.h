/* The product of weights in panels, written once for AVX2, AVX-512 and bf16 pairs; included after a vector header.
 *
 * One launch covers all parts: its items are panels (few tokens) or pairs of a block of tokens and a tile of panels
 * (many), those of all parts one after the other, cut into one contiguous range per thread.
 *
 * Few tokens are bound by reading the weights once from memory, many by the FMA units; for those this is the scheme of
 * Goto and van de Geijn (2008): a block of weights is unpacked into the first-level cache and used for every tile of
 * tokens, x and the unfinished sums stay in the second-level cache. */
#ifndef QN_KERNELS_CPU_MATMUL_MATMUL_PANELS_H
#define QN_KERNELS_CPU_MATMUL_MATMUL_PANELS_H

#include "kernels/cpu/matmul/matmul_tiles.h"

#define TILE_PANELS (TILE_VECTORS / PANEL_VECTORS)
#define DIRECT_TILES 2 /* tiles of tokens up to which unpacking weights once more beats storing them unpacked */
/* Tiles of panels that use a block of x while it is in the second-level cache, and tiles of tokens at most: 132 KiB of
 * x and 462 KiB of sums on AVX-512, half the sums on AVX2. */
#define GROUP_TILES 14
#define TOKEN_TILES (264 / TILE_TOKENS)

typedef struct {
    const qn_matmul_t *a;
    qn_stream_t *stream;
    packed_t packed;
    size_t unit;  /* panels of an item */
    size_t units; /* of all parts */
    size_t token_blocks;
} job_t;

/* What a thread works in. */
typedef struct {
    _Alignas(64) float weights[BLOCK_STEPS * TILE_VECTORS * VEC_LANES];
    _Alignas(64) float sums[GROUP_TILES][TOKEN_TILES][TILE_TOKENS * TILE_VECTORS * VEC_LANES];
} block_space_t;

static inline size_t part_units(const qn_matmul_part_t *part, size_t unit)
{
    return (qn_panel_count(part->outputs) + unit - 1) / unit;
}

/* Calls `work` for the run of each part in units [begin, end). */
typedef void (*part_work_t)(const job_t *job, const matrix_t *matrix, size_t begin, size_t end, void *space);

static void each_part(const job_t *job, size_t begin, size_t end, part_work_t work, void *space)
{
    for (uint32_t p = 0; p < job->a->part_count && begin < end; p++) {
        size_t units = part_units(&job->a->parts[p], job->unit);
        if (begin < units) {
            matrix_t matrix = matrix_of(job->a, &job->a->parts[p]);
            work(job, &matrix, begin, end < units ? end : units, space);
        }
        begin = begin > units ? begin - units : 0;
        end = end > units ? end - units : 0;
    }
}

/* ---- few tokens ---- */

/* Up to DIRECT_TOKENS tokens, from x as it is. */
VEC_INLINE void direct_rows(const form_t form, const job_t *job, const matrix_t *matrix, size_t begin, size_t end)
{
    uint32_t tokens = job->a->tokens;
    words_t words = {.packed = NULL};
    for (uint32_t t = 0; t < DIRECT_TOKENS; t++)
        words.rows[t] = (const float *)job->a->x + (size_t)(t < tokens ? t : tokens - 1) * matrix->inputs;
    switch (tokens) {
    case 1: direct_panels(form, 1, false, matrix, begin, end, &words, 0, 1); break;
    case 2: direct_panels(form, 2, false, matrix, begin, end, &words, 0, 2); break;
    default: direct_panels(form, 4, false, matrix, begin, end, &words, 0, tokens); break;
    }
}

/* One tile of packed tokens. */
VEC_INLINE void direct_tile(const form_t form, const job_t *job, const matrix_t *matrix, size_t begin, size_t end,
                            size_t tile)
{
    size_t first = tile * TILE_TOKENS, left = job->a->tokens - first, count = left < TILE_TOKENS ? left : TILE_TOKENS;
    words_t words = {.packed = packed_row(&job->packed, 0, first), .width = job->packed.width};
    switch (packed_tile_width(&job->packed, tile) / TILE_QUANTUM) {
    case 1: direct_panels(form, TILE_QUANTUM, true, matrix, begin, end, &words, first, count); break;
    case 2: direct_panels(form, TILE_QUANTUM * 2, true, matrix, begin, end, &words, first, count); break;
    default: direct_panels(form, TILE_TOKENS, true, matrix, begin, end, &words, first, count); break;
    }
}

/* A second tile of tokens finds the panels in the second-level cache. */
VEC_INLINE void direct_form(const form_t form, const job_t *job, const matrix_t *matrix, size_t begin, size_t end)
{
    if (!MATMUL_PAIRS && job->a->tokens <= DIRECT_TOKENS) {
        direct_rows(form, job, matrix, begin, end);
        return;
    }
    for (size_t panel = begin; panel < end; panel += 2)
        for (size_t tile = 0; tile < job->packed.tiles; tile++)
            direct_tile(form, job, matrix, panel, panel + 2 < end ? panel + 2 : end, tile);
}

static void direct_part(const job_t *job, const matrix_t *matrix, size_t begin, size_t end, void *space)
{
    (void)space;
    switch (form_of(&matrix->part->weight)) {
    case FORM_F32: direct_form(FORM_F32, job, matrix, begin, end); break;
    case FORM_BF16: direct_form(FORM_BF16, job, matrix, begin, end); break;
    case FORM_INT8: direct_form(FORM_INT8, job, matrix, begin, end); break;
    case FORM_INT4: direct_form(FORM_INT4, job, matrix, begin, end); break;
    case FORM_PAIRS: direct_form(FORM_PAIRS, job, matrix, begin, end); break;
    }
}

static void direct_items(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    each_part(arguments, begin, end, direct_part, NULL);
}

/* ---- many tokens ---- */

/* Tiles of tokens [begin, end) of a block of tokens. */
typedef struct {
    size_t begin, end;
} span_t;

static void unpack(const matrix_t *matrix, size_t panel, size_t begin, size_t end, float *to)
{
    switch (form_of(&matrix->part->weight)) {
    case FORM_BF16: unpack_block(FORM_BF16, matrix, panel, begin, end, to); break;
    case FORM_INT8: unpack_block(FORM_INT8, matrix, panel, begin, end, to); break;
    case FORM_INT4: unpack_block(FORM_INT4, matrix, panel, begin, end, to); break;
    default: unpack_block(FORM_F32, matrix, panel, begin, end, to); break;
    }
}

/* What will be read soon, asked for a few lines with each tile of tokens: hardware foresees neither weights, which come
 * in pieces of 4 KiB, nor x, whose rows are read a dozen at a time. */
typedef struct {
    const char *weights, *words;
    size_t weight_lines, word_lines; /* with each tile; weight_lines of each panel */
    size_t panel_bytes;
} ahead_t;

static void ask_ahead(ahead_t *ahead)
{
    for (size_t i = 0; i < ahead->weight_lines; i++, ahead->weights += LINE_BYTES)
        for (size_t p = 0; p < TILE_PANELS; p++)
            __builtin_prefetch(ahead->weights + p * ahead->panel_bytes, 0, 2);
    for (size_t i = 0; i < ahead->word_lines; i++, ahead->words += LINE_BYTES)
        __builtin_prefetch(ahead->words, 0, 2);
}

/* One tile of panels, one block of steps, all tiles of tokens. */
static void multiply_block(const job_t *job, const matrix_t *matrix, size_t panel, size_t block, span_t tiles,
                           ahead_t ahead, block_space_t *space, float (*sums)[TILE_TOKENS * TILE_VECTORS * VEC_LANES])
{
    uint32_t in_line = form_steps(form_of(&matrix->part->weight));
    size_t lines = BLOCK_STEPS / in_line, begin = block * lines;
    size_t end = begin + lines < matrix->lines ? begin + lines : matrix->lines;
    unpack(matrix, panel, begin, end, space->weights);
    for (size_t tile = tiles.begin; tile < tiles.end; tile++) {
        size_t token = tile * TILE_TOKENS, left = job->a->tokens - token;
        float *tile_sums = sums[tile - tiles.begin];
        ask_ahead(&ahead);
        add_tile(packed_tile_width(&job->packed, tile), space->weights, packed_row(&job->packed, block, token),
                 (end - begin) * in_line, block == 0, tile_sums);
        if (end == matrix->lines)
            store_tile(matrix, token, left < TILE_TOKENS ? left : TILE_TOKENS, panel * QN_PANEL_ROWS,
                       matrix->part->outputs, TILE_VECTORS, tile_sums);
    }
}

/* What comes after tile `index` of the `count` tiles of panels from `first` on: the weights of the next, and its share
 * of the next block of x. */
static ahead_t look_ahead(const job_t *job, const matrix_t *matrix, size_t first, size_t index, size_t count,
                          size_t block, span_t tiles)
{
    bool again = index + 1 < count, last = block + 1 == job->packed.blocks;
    size_t tile = again ? first + index + 1 : last ? first + count : first, next = last ? 0 : block + 1;
    size_t lines = BLOCK_STEPS / form_steps(form_of(&matrix->part->weight)), token_tiles = tiles.end - tiles.begin;
    size_t words = TILE_TOKENS * BLOCK_STEPS * sizeof(float) / LINE_BYTES;
    ahead_t ahead = {.weights =
                         matrix_vector(matrix, tile * TILE_PANELS, 0) + (again ? block : next) * lines * LINE_BYTES,
                     .weight_lines = (lines + token_tiles - 1) / token_tiles,
                     .panel_bytes = matrix->panel_bytes,
                     .words = (const char *)packed_row(&job->packed, next, tiles.begin * TILE_TOKENS),
                     .word_lines = (words + count - 1) / count};
    ahead.words += index * ahead.word_lines * token_tiles * LINE_BYTES;
    return ahead;
}

/* Tiles of panels [begin, end), GROUP_TILES at a time. */
static void block_part(const job_t *job, const matrix_t *matrix, span_t tiles, size_t begin, size_t end,
                       block_space_t *space)
{
    for (size_t first = begin; first < end; first += GROUP_TILES) {
        size_t count = end - first < GROUP_TILES ? end - first : GROUP_TILES;
        for (size_t block = 0; block < job->packed.blocks; block++)
            for (size_t i = 0; i < count; i++)
                multiply_block(job, matrix, (first + i) * TILE_PANELS, block, tiles,
                               look_ahead(job, matrix, first, i, count, block, tiles), space, space->sums[i]);
    }
}

typedef struct {
    block_space_t *space;
    span_t tiles;
} block_work_t;

static void block_part_work(const job_t *job, const matrix_t *matrix, size_t begin, size_t end, void *space)
{
    const block_work_t *work = space;
    block_part(job, matrix, work->tiles, begin, end, work->space);
}

static void block_items(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    const job_t *job = arguments;
    block_work_t work = {.space = qn_cpu_workspace(job->stream, thread)};
    while (begin < end) {
        size_t block = begin / job->units, first = begin % job->units;
        size_t count = job->units - first < end - begin ? job->units - first : end - begin;
        work.tiles.begin = job->packed.tiles * block / job->token_blocks;
        work.tiles.end = job->packed.tiles * (block + 1) / job->token_blocks;
        each_part(job, first, first + count, block_part_work, &work);
        begin += count;
    }
}

/* ---- the launch ---- */

/* What one panel costs in qn_grain's operations, half a nanosecond each: at most about 10 bytes of weights and, for a
 * token, 64 products are done in one nanosecond. */
static size_t panel_cost(const job_t *job)
{
    const matrix_t matrix = matrix_of(job->a, job->a->parts);
    return matrix.panel_bytes / 5 + (size_t)job->a->tokens * job->a->inputs * QN_PANEL_ROWS / 32;
}

static void count_units(job_t *job, size_t unit)
{
    job->unit = unit;
    job->units = 0;
    for (uint32_t p = 0; p < job->a->part_count; p++)
        job->units += part_units(&job->a->parts[p], unit);
}

/* Blocks small enough for the caches, and enough of them that every thread has some items. */
static size_t token_blocks(const job_t *job, size_t threads)
{
    size_t fit = (job->packed.tiles + TOKEN_TILES - 1) / TOKEN_TILES;
    size_t wanted = (4 * threads + job->units - 1) / job->units;
    if (wanted > job->packed.tiles) wanted = job->packed.tiles;
    return fit > wanted ? fit : wanted;
}

/* All parts are panels. */
static void multiply_panels(qn_stream_t *stream, const qn_matmul_t *a)
{
    job_t job = {.a = a, .stream = stream};
    if (a->tokens == 0) return;
    QN_ASSERT(sizeof(block_space_t) <= QN_WORKSPACE_BYTES);
    if (MATMUL_PAIRS || a->tokens > DIRECT_TOKENS) {
        job.packed = packed_of(a);
        pack_x(stream, &job.packed);
    }
    if (a->tokens <= DIRECT_TILES * TILE_TOKENS) {
        count_units(&job, 1);
        qn_cpu_split(stream, job.units, qn_grain(panel_cost(&job)), direct_items, &job);
        return;
    }
    count_units(&job, TILE_PANELS);
    job.token_blocks = token_blocks(&job, qn_stream_threads(stream));
    qn_cpu_split(stream, job.units * job.token_blocks, qn_grain(panel_cost(&job) * TILE_PANELS / job.token_blocks),
                 block_items, &job);
}

#endif
