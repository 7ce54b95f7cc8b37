/* Attention of one tile in vectors: some tokens of one run times some heads that read the same kv head. Included by
 * attention_vector.c, which cuts the work into tiles.
 *
 * A tile's rows share all keys and values. Positions are walked in chunks that begin at multiples of CHUNK from
 * position 0: scores of the whole chunk, block by block; weights; then the values' sums (Dao 2023; paged as in vLLM,
 * Kwon et al. 2023). Each chunk gives a row its own maximum, total and sums, and these are merged in ascending order.
 *
 * So one row's arithmetic is the same in every tile. Positions that a row does not see weigh exactly 0 for it, which
 * changes no sum. Hence prefill, decode, and a decode whose chunks were shared between threads agree to the bit.
 *
 * Scores are kept times log2(e), so that a weight is a power of two: rounding separates its exponent exactly. */
#ifndef QN_KERNELS_CPU_ATTENTION_ATTENTION_TILE_H
#define QN_KERNELS_CPU_ATTENTION_ATTENTION_TILE_H

#include <math.h>

#include "kernels/cpu/attention/attention_product.h"

#define CHUNK 256    /* SCORE_STRIDE holds it */
#define TILE_ROWS 48 /* rows that share a block's transposition */
#define LOG2_E 1.44269504088896341f

/* What a chunk, or all chunks so far, gave each row. A total of 0 is a row that saw nothing yet. */
typedef struct {
    float *best, *total; /* [rows] */
    float *sums;         /* [rows, padded] */
} part_t;

typedef struct {
    const qn_attention_t *a;
    const uint32_t *table;
    uint32_t padded;                     /* D rounded up to whole vectors */
    uint32_t kv_head, first_head, heads; /* heads [first_head, first_head + heads) */
    uint32_t position, tokens;           /* of the first token */
    size_t first_row;                    /* of q and out: the first token's */
    uint32_t begin, end;                 /* positions that any row sees */
    uint32_t rows;                       /* row r is head r % heads of token r / heads */
} tile_t;

/* One thread's intermediates. Only the first part of each array is used when D is small. */
typedef struct {
    _Alignas(64) float keys[(QN_ATTENTION_DIM_MAX + 8) * BLOCK];
    float values[BLOCK * QN_ATTENTION_DIM_MAX];
    float q[TILE_ROWS * QN_ATTENTION_DIM_MAX]; /* scaled; query_at says where */
    float scores[TILE_ROWS * SCORE_STRIDE];
    float sums[2][TILE_ROWS * QN_ATTENTION_DIM_MAX];
    float best[2][TILE_ROWS], total[2][TILE_ROWS];
    const char *rows[CHUNK]; /* keys of this chunk's positions */
    foresight_t foresight;
} work_t;
_Static_assert(sizeof(work_t) <= QN_WORKSPACE_BYTES, "attention needs a larger workspace");

static part_t work_part(work_t *work, unsigned which)
{
    return (part_t){.best = work->best[which], .total = work->total[which], .sums = work->sums[which]};
}

/* ---- rows of a chunk ---- */

/* Positions [begin, end) of those at `first`, relative to it. Others of the same blocks get the nearest of their
 * rows. */
static void find_rows(const tile_t *tile, uint32_t first, uint32_t begin, uint32_t end, const char **rows)
{
    const qn_kv_t *kv = &tile->a->kv;
    size_t width = qn_scalar_bytes(kv->scalar), step = (size_t)kv->kv_heads * kv->head_dim * width;
    const char *base = kv->data;
    for (uint32_t i = begin; i < end;) {
        uint32_t block = (first + i) / kv->block_tokens, offset = (first + i) % kv->block_tokens;
        uint32_t left = kv->block_tokens - offset, stop = end - i < left ? end : i + left;
        const char *row = base + width * qn_kv_offset(kv, tile->a->layer, 0, tile->table[block], offset);
        for (; i < stop; i++, row += step)
            rows[i] = row;
    }
    for (uint32_t i = begin / BLOCK * BLOCK; i < begin; i++)
        rows[i] = rows[begin];
    for (uint32_t i = end; i % BLOCK; i++)
        rows[i] = rows[end - 1];
}

/* ---- scores to weights ---- */

/* Lanes [begin, end) of a vector; minus infinity elsewhere. */
VEC_INLINE void keep_lanes(float *scores, int32_t begin, int32_t end)
{
    vec_t lane = vec_lane_numbers(), nothing = vec_set(-INFINITY), s = vec_load(scores);
    s = vec_less(lane, vec_set((float)begin), nothing, s);
    vec_store(scores, vec_less(lane, vec_set((float)end), s, nothing));
}

static void cap_row(float *scores, uint32_t count, float softcap)
{
    vec_t cap = vec_set(softcap * LOG2_E), shrink = vec_set(1 / softcap);
    for (uint32_t i = 0; i < count; i += VEC_LANES)
        vec_store(scores + i, vec_mul(cap, vec_tanh(vec_mul(vec_load(scores + i), shrink))));
}

/* Weights of positions [begin, end) of a row of scores, and their greatest score and sum. */
static void weigh_row(float *scores, uint32_t begin, uint32_t end, float *ret_best, float *ret_total)
{
    uint32_t from = begin / VEC_LANES * VEC_LANES, last = (end - 1) / VEC_LANES * VEC_LANES;
    if (begin > from) keep_lanes(scores + from, (int32_t)(begin - from), VEC_LANES);
    if (end < last + VEC_LANES) keep_lanes(scores + last, 0, (int32_t)(end - last));
    vec_t even = vec_set(-INFINITY), odd = even, total = vec_zero();
    for (uint32_t i = from; i <= last; i += 2 * VEC_LANES) {
        even = vec_max(even, vec_load(scores + i));
        if (i < last) odd = vec_max(odd, vec_load(scores + i + VEC_LANES));
    }
    float greatest = vec_greatest(vec_max(even, odd));
    vec_t best = vec_set(greatest);
    for (uint32_t i = from; i <= last; i += VEC_LANES) {
        vec_t weight = vec_exp2_weight(vec_sub(vec_load(scores + i), best));
        vec_store(scores + i, weight);
        total = vec_add(total, weight);
    }
    *ret_best = greatest;
    *ret_total = vec_sum(total);
}

static uint32_t row_end(const tile_t *tile, uint32_t row) { return tile->position + row / tile->heads + 1; }

static uint32_t row_begin(const tile_t *tile, uint32_t row)
{
    uint32_t end = row_end(tile, row);
    return tile->a->window && end > tile->a->window ? end - tile->a->window : 0;
}

/* The tile's positions in the chunk at `first`, relative to it. */
typedef struct {
    uint32_t first, begin, end;
} span_t;

static span_t make_span(uint32_t begin, uint32_t end, uint32_t first)
{
    return (span_t){.first = first,
                    .begin = begin > first ? begin - first : 0,
                    .end = end <= first          ? 0
                           : end - first < CHUNK ? end - first
                                                 : CHUNK};
}

/* Weights of the span's positions; zeros where a row sees nothing. */
static void weigh_rows(const tile_t *tile, const span_t *span, float *scores, const part_t *part)
{
    for (uint32_t r = 0; r < tile->rows; r++, scores += SCORE_STRIDE) {
        span_t row = make_span(row_begin(tile, r), row_end(tile, r), span->first);
        if (row.begin >= row.end) {
            memset(scores + span->begin, 0, (span->end - span->begin) * sizeof *scores);
            part->best[r] = -INFINITY;
            part->total[r] = 0;
            continue;
        }
        uint32_t aligned = row.begin / VEC_LANES * VEC_LANES;
        if (tile->a->softcap > 0) cap_row(scores + aligned, row.end - aligned, tile->a->softcap);
        weigh_row(scores, row.begin, row.end, &part->best[r], &part->total[r]);
        memset(scores + span->begin, 0, (row.begin - span->begin) * sizeof *scores);
        memset(scores + row.end, 0, (span->end - row.end) * sizeof *scores);
    }
}

/* ---- a chunk ---- */

/* Tiles of the same tokens that go through a chunk together, block by block; with one each, their heads follow each
 * other. They share the rows of work_t: those of tile i begin at i * tiles[0].heads * tokens. */
typedef struct {
    const tile_t *tiles;
    uint32_t count;
} bundle_t;

static uint32_t query_floats(const tile_t *tile)
{
    return (tile->rows <= DIRECT_ROWS ? DIRECT_ROWS : tile->rows) * tile->padded;
}

static uint32_t first_row_of(const bundle_t *bundle, uint32_t index) { return index * bundle->tiles[0].rows; }

static part_t part_of(const bundle_t *bundle, uint32_t index, const part_t *part)
{
    uint32_t row = first_row_of(bundle, index);
    return (part_t){.best = part->best + row,
                    .total = part->total + row,
                    .sums = part->sums + (size_t)row * bundle->tiles[0].padded};
}

static block_t make_block(work_t *work, const tile_t *tile, const span_t *span, uint32_t at)
{
    const qn_kv_t *kv = &tile->a->kv;
    return (block_t){.kv = kv,
                     .rows = work->rows + at,
                     .begin = at < span->begin ? span->begin - at : 0,
                     .head = (size_t)tile->kv_head * kv->head_dim * qn_scalar_bytes(kv->scalar),
                     .end = span->end - at < BLOCK ? span->end - at : BLOCK,
                     .foresight = &work->foresight};
}

/* What the positions of a chunk give each row of the bundle. */
static void attend_chunk(work_t *work, const bundle_t *bundle, const span_t *span, const part_t *part)
{
    uint32_t low = span->begin / BLOCK * BLOCK;
    find_rows(bundle->tiles, span->first, span->begin, span->end, work->rows);
    for (uint32_t at = low; at < span->end; at += BLOCK)
        for (uint32_t i = 0; i < bundle->count; i++) {
            const tile_t *tile = &bundle->tiles[i];
            block_t block = make_block(work, tile, span, at);
            score_block(&block, work->q + i * query_floats(bundle->tiles), tile->padded, tile->rows, work->keys,
                        (char *)work->values, work->scores + first_row_of(bundle, i) * SCORE_STRIDE + at);
        }
    for (uint32_t i = 0; i < bundle->count; i++) {
        part_t own = part_of(bundle, i, part);
        weigh_rows(&bundle->tiles[i], span, work->scores + first_row_of(bundle, i) * SCORE_STRIDE, &own);
    }
    for (uint32_t at = low; at < span->end; at += BLOCK)
        for (uint32_t i = 0; i < bundle->count; i++) {
            const tile_t *tile = &bundle->tiles[i];
            block_t block = make_block(work, tile, span, at);
            add_block(&block, work->scores + first_row_of(bundle, i) * SCORE_STRIDE + at, tile->padded, tile->rows,
                      work->values, at > low, part_of(bundle, i, part).sums);
        }
}

/* ---- merging chunks ---- */

/* 2^(best - common) in every lane. */
VEC_INLINE vec_t shrink_factor(float best, float common)
{
    return vec_exp2_weight(vec_sub(vec_set(best), vec_set(common)));
}

/* state takes in what `part` has of one row. */
static void merge_row(const part_t *state, const part_t *part, uint32_t row, uint32_t padded)
{
    float *sums = state->sums + (size_t)row * padded;
    const float *more = part->sums + (size_t)row * padded;
    if (part->total[row] == 0) return;
    if (state->total[row] == 0) {
        memcpy(sums, more, padded * sizeof *sums);
        state->best[row] = part->best[row];
        state->total[row] = part->total[row];
        return;
    }
    float best = state->best[row] > part->best[row] ? state->best[row] : part->best[row];
    vec_t keep = shrink_factor(state->best[row], best), take = shrink_factor(part->best[row], best);
    for (uint32_t d = 0; d < padded; d += VEC_LANES)
        vec_store(sums + d, vec_fma(vec_load(sums + d), keep, vec_mul(vec_load(more + d), take)));
    float total[VEC_LANES];
    vec_store(total, vec_fma(vec_set(state->total[row]), keep, vec_mul(vec_set(part->total[row]), take)));
    state->total[row] = total[0];
    state->best[row] = best;
}

static void clear_part(const part_t *part, uint32_t rows)
{
    for (uint32_t r = 0; r < rows; r++) {
        part->best[r] = -INFINITY;
        part->total[r] = 0;
    }
}

/* out = sums / total */
static void write_row(const part_t *state, uint32_t row, uint32_t dim, uint32_t padded, float *out)
{
    const float *sums = state->sums + (size_t)row * padded;
    vec_t share = vec_set(1 / state->total[row]);
    uint32_t whole = dim / VEC_LANES * VEC_LANES;
    for (uint32_t d = 0; d < whole; d += VEC_LANES)
        vec_store(out + d, vec_mul(vec_load(sums + d), share));
    if (whole < dim) vec_store_some(out + whole, vec_mul(vec_load(sums + whole), share), dim - whole);
}

/* ---- tiles ---- */

static size_t tile_row_at(const tile_t *tile, uint32_t row)
{
    size_t token = tile->first_row + row / tile->heads;
    return (token * tile->a->heads + tile->first_head + row % tile->heads) * tile->a->kv.head_dim;
}

/* The tile's queries, scaled, with zeros from D up to a vector. */
static void load_queries(const tile_t *tile, float *q_rows)
{
    uint32_t dim = tile->a->kv.head_dim;
    vec_t scale = vec_set(tile->a->softcap > 0 ? tile->a->scale : tile->a->scale * LOG2_E);
    for (uint32_t r = 0; r < tile->rows; r++) {
        const float *from = (const float *)tile->a->q + tile_row_at(tile, r);
        for (uint32_t d = 0; d < tile->padded; d += VEC_LANES) {
            vec_t q = vec_mul(vec_load_some(from + d, dim - d < VEC_LANES ? dim - d : VEC_LANES), scale);
            if (tile->rows > DIRECT_ROWS) {
                vec_store(q_rows + query_at(tile->rows, tile->padded, r, d), q);
                continue;
            }
            float lanes[VEC_LANES];
            vec_store(lanes, q);
            for (uint32_t i = 0; i < VEC_LANES; i++)
                q_rows[query_at(tile->rows, tile->padded, r, d + i)] = lanes[i];
        }
    }
}

/* Heads of one kv head that a tile takes, and how many such parts there are. */
static uint32_t heads_per_tile(const qn_attention_t *a)
{
    uint32_t group = a->heads / a->kv.kv_heads, parts = (group + TILE_ROWS - 1) / TILE_ROWS;
    return (group + parts - 1) / parts;
}

static uint32_t tiles_per_kv_head(const qn_attention_t *a)
{
    uint32_t per_tile = heads_per_tile(a);
    return (a->heads / a->kv.kv_heads + per_tile - 1) / per_tile;
}

static uint32_t tiles_per_token(const qn_attention_t *a) { return tiles_per_kv_head(a) * a->kv.kv_heads; }

/* Tile `index` of those of [token, token + tokens) of the run. */
static tile_t make_tile(const qn_attention_t *a, const qn_run_t *run, uint32_t token, uint32_t tokens, uint32_t index)
{
    uint32_t group = a->heads / a->kv.kv_heads, part = index % tiles_per_kv_head(a), per_tile = heads_per_tile(a);
    tile_t tile = {
        .a = a,
        .table = a->tables.block_tables + (size_t)run->slot * a->tables.table_blocks,
        .padded = (a->kv.head_dim + VEC_LANES - 1) / VEC_LANES * VEC_LANES,
        .kv_head = index / tiles_per_kv_head(a),
        .position = run->position + token,
        .tokens = tokens,
        .first_row = (size_t)run->first + token,
    };
    tile.heads = group - part * per_tile < per_tile ? group - part * per_tile : per_tile;
    tile.first_head = tile.kv_head * group + part * per_tile;
    tile.rows = tokens * tile.heads;
    tile.begin = row_begin(&tile, 0);
    tile.end = row_end(&tile, tile.rows - 1);
    return tile;
}

/* The whole of a tile. */
static void attend_tile(work_t *work, const tile_t *tile)
{
    part_t state = work_part(work, 0), part = work_part(work, 1);
    work->foresight = (foresight_t){0}; /* prefill uses what it reads often */
    clear_part(&state, tile->rows);
    load_queries(tile, work->q);
    for (uint32_t first = tile->begin / CHUNK * CHUNK; first < tile->end; first += CHUNK) {
        span_t span = make_span(tile->begin, tile->end, first);
        attend_chunk(work, &(bundle_t){tile, 1}, &span, &part);
        for (uint32_t r = 0; r < tile->rows; r++)
            merge_row(&state, &part, r, tile->padded);
    }
    for (uint32_t r = 0; r < tile->rows; r++)
        write_row(&state, r, tile->a->kv.head_dim, tile->padded, (float *)tile->a->out + tile_row_at(tile, r));
}

#endif
