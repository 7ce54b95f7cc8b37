/* What is this?      Attention in vectors. Prefill shares out whole tiles of several tokens. Decode has one token per
 *                    run, so that one long sequence must be shared out by its positions: every chunk of every run is a
 *                    piece of work (Flash-Decoding, Dao et al. 2023), whose result goes into the stream's shared memory;
 *                    then each head merges its chunks in ascending order, as a tile does.
 * State owned:       none.
 * Must never:        run on a machine without the instructions it is compiled for: registry.c sees to it.
 * Read next:         vector.h, attention_tile.h, attention.c. */
#include "kernels/cpu/vector/vector.h"
#include "kernels/cpu/vector/vector_transpose.h"

#include "kernels/cpu/attention/attention_tile.h"

/* Pieces of work in a fixed order, weighed by what they cost: a share gets those whose middle lies in its part. */
typedef struct {
    uint64_t at, from, to;
} share_t;

static share_t make_share(uint64_t total, size_t begin, size_t end, size_t shares)
{
    return (share_t){.from = 2 * total * begin / shares, .to = 2 * total * end / shares};
}

static bool share_takes(share_t *share, uint64_t cost)
{
    uint64_t middle = 2 * share->at + cost;
    share->at += cost;
    return middle >= share->from && middle < share->to;
}

/* Shares that repay waking their threads, of `positions` that some head of each tile of a token looks at. */
static size_t share_count(qn_stream_t *stream, const qn_attention_t *a, uint64_t positions)
{
    uint64_t cost = positions * (a->heads + a->kv.kv_heads) * a->kv.head_dim * 2 / VEC_LANES / tiles_per_token(a);
    uint64_t shares = cost / qn_grain(1) + 1, threads = qn_stream_threads(stream);
    return shares < threads ? shares : threads;
}

/* ---- prefill ---- */

typedef struct {
    const qn_attention_t *a;
    qn_stream_t *stream;
    uint64_t cost; /* of all tiles */
    size_t shares;
    uint32_t tile_tokens;
} prefill_t;

static uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

static uint64_t prefill_cost(const qn_attention_t *a, uint32_t tile_tokens)
{
    uint64_t cost = 0;
    for (uint32_t i = 0; i < a->run_count; i++)
        for (uint32_t t = 0; t < a->runs[i].tokens; t += tile_tokens) {
            uint32_t tokens = smaller(a->runs[i].tokens - t, tile_tokens);
            tile_t tile = make_tile(a, &a->runs[i], t, tokens, 0);
            cost += (uint64_t)tokens * (tile.end - tile.begin) * tiles_per_token(a);
        }
    return cost;
}

static void prefill_shares(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    const prefill_t *p = arguments;
    const qn_attention_t *a = p->a;
    work_t *work = qn_cpu_workspace(p->stream, thread);
    share_t share = make_share(p->cost, begin, end, p->shares);
    for (uint32_t i = 0; i < a->run_count; i++)
        for (uint32_t t = 0; t < a->runs[i].tokens; t += p->tile_tokens)
            for (uint32_t index = 0; index < tiles_per_token(a); index++) {
                tile_t tile = make_tile(a, &a->runs[i], t, smaller(a->runs[i].tokens - t, p->tile_tokens), index);
                if (share_takes(&share, (uint64_t)tile.tokens * (tile.end - tile.begin))) attend_tile(work, &tile);
            }
}

/* Large tiles use each key often; but every thread should get a few. */
static uint32_t tokens_per_tile(const qn_stream_t *stream, const qn_attention_t *a)
{
    size_t tokens = 0;
    for (uint32_t i = 0; i < a->run_count; i++)
        tokens += a->runs[i].tokens;
    size_t most = TILE_ROWS / heads_per_tile(a), even = tokens * tiles_per_token(a) / (4 * qn_stream_threads(stream));
    if (even < most) most = even;
    return most ? (uint32_t)most : 1;
}

void KERNEL(qn_cpu_attention_prefill)(qn_stream_t *stream, const void *arguments)
{
    const qn_attention_t *a = arguments;
    QN_ASSERT(a->kv.head_dim <= QN_ATTENTION_DIM_MAX);
    prefill_t prefill = {.a = a, .stream = stream, .tile_tokens = tokens_per_tile(stream, a)};
    prefill.cost = prefill_cost(a, prefill.tile_tokens);
    prefill.shares = share_count(stream, a, prefill.cost);
    qn_cpu_split(stream, prefill.shares, 1, prefill_shares, &prefill);
}

/* ---- decode ---- */

/* The chunks of all runs, one run after the other, are numbered as columns. A wave is as many of them as the shared
 * memory holds; a run that it cuts is carried over in one of two extra slots, taken in turns. */
typedef struct {
    const qn_attention_t *a;
    qn_stream_t *stream;
    float *memory; /* [capacity + 2] slots */
    size_t slot_floats, capacity;
    uint64_t begin, end; /* the wave's columns */
    uint64_t cost;
    size_t shares;
    unsigned turn;
} decode_t;

typedef struct {
    uint64_t first, count;
    uint32_t chunk;
} columns_t;

static columns_t columns_of(const tile_t *tile, uint64_t first)
{
    uint32_t chunk = tile->begin / CHUNK;
    return (columns_t){.first = first, .count = (tile->end - 1) / CHUNK - chunk + 1, .chunk = chunk};
}

static size_t slot_floats(const qn_attention_t *a)
{
    uint32_t padded = (a->kv.head_dim + VEC_LANES - 1) / VEC_LANES * VEC_LANES;
    return ((size_t)a->heads * (padded + 2) + 15) / 16 * 16;
}

/* Rows of the heads from `head` on in slot `index`. */
static part_t slot_part(const decode_t *d, uint64_t index, uint32_t head, uint32_t padded)
{
    float *slot = d->memory + index * d->slot_floats, *totals = slot + (size_t)d->a->heads * padded;
    return (part_t){.sums = slot + (size_t)head * padded, .best = totals + head, .total = totals + d->a->heads + head};
}

static span_t column_span(const tile_t *tile, const columns_t *columns, uint64_t column)
{
    return make_span(tile->begin, tile->end, (uint32_t)(columns->chunk + (column - columns->first)) * CHUNK);
}

#define BUNDLE_MAX TILE_ROWS

/* Tiles of a token that may go together: as many as work_t has rows for. */
static uint32_t bundle_size(const tile_t *tile)
{
    uint32_t by_rows = TILE_ROWS / tile->rows, by_queries = TILE_ROWS * QN_ATTENTION_DIM_MAX / query_floats(tile);
    return by_rows < by_queries ? by_rows : by_queries;
}

/* Tiles [first, first + count) of one column. */
static void decode_piece(const decode_t *d, work_t *work, const qn_run_t *run, const columns_t *columns,
                         uint64_t column, uint32_t first, uint32_t count)
{
    tile_t tiles[BUNDLE_MAX];
    for (uint32_t i = 0; i < count; i++) {
        tiles[i] = make_tile(d->a, run, 0, 1, first + i);
        load_queries(&tiles[i], work->q + i * query_floats(tiles));
    }
    span_t span = column_span(tiles, columns, column);
    part_t part = columns->count == 1 ? work_part(work, 0)
                                      : slot_part(d, column - d->begin, tiles[0].first_head, tiles[0].padded);
    bundle_t bundle = {tiles, count};
    attend_chunk(work, &bundle, &span, &part);
    for (uint32_t i = 0; columns->count == 1 && i < count; i++) {
        part_t own = part_of(&bundle, i, &part);
        for (uint32_t r = 0; r < tiles[i].rows; r++)
            write_row(&own, r, d->a->kv.head_dim, tiles[i].padded, (float *)d->a->out + tile_row_at(&tiles[i], r));
    }
}

static uint64_t column_cost(const tile_t *tile, const columns_t *columns, uint64_t column)
{
    span_t span = column_span(tile, columns, column);
    return span.end - span.begin;
}

/* Aims at what comes after the column's first block: the rest of it, then the next one's first block. A block's heads
 * are read in bundles; the first bundle brings all. */
static void aim_foresight(const decode_t *d, work_t *work, const qn_run_t *run, const columns_t *columns,
                          uint64_t column, uint32_t tiles)
{
    tile_t tile = make_tile(d->a, run, 0, 1, 0), next = tile;
    span_t span = column_span(&tile, columns, column);
    uint32_t from = span.first + (span.begin / BLOCK + 1) * BLOCK, after = span.first + CHUNK;
    if (column + 1 == columns->first + columns->count) {
        if (run + 1 < d->a->runs + d->a->run_count) next = make_tile(d->a, run + 1, 0, 1, 0);
        after = run + 1 < d->a->runs + d->a->run_count ? next.begin : next.end;
    }
    work->foresight =
        (foresight_t){.kv = &d->a->kv,
                      .layer = d->a->layer,
                      .rate = (tiles_per_token(d->a) + tiles - 1) / tiles,
                      .regions = {{tile.table, 0, from, span.first + span.end},
                                  {tile.table, 1, span.first + span.begin, span.first + span.end},
                                  {next.table, 0, after, smaller(next.end, (after / BLOCK + 1) * BLOCK)}}};
}

static void decode_run(const decode_t *d, work_t *work, const qn_run_t *run, const columns_t *columns, share_t *share)
{
    uint64_t from = columns->first > d->begin ? columns->first : d->begin;
    tile_t tile = make_tile(d->a, run, 0, 1, 0);
    uint32_t tiles = tiles_per_token(d->a), most = bundle_size(&tile);
    for (uint64_t column = from; column < columns->first + columns->count && column < d->end; column++) {
        uint32_t first = tiles, last = 0;
        for (uint32_t index = 0; index < tiles; index++) {
            if (!share_takes(share, column_cost(&tile, columns, column))) continue;
            if (first == tiles) first = index;
            last = index + 1;
        }
        if (first < last) aim_foresight(d, work, run, columns, column, smaller(last - first, most));
        for (uint32_t index = first; index < last; index += most) {
            decode_piece(d, work, run, columns, column, index, smaller(last - index, most));
            work->foresight.rate = 0;
        }
    }
}

static void decode_shares(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    const decode_t *d = arguments;
    work_t *work = qn_cpu_workspace(d->stream, thread);
    share_t share = make_share(d->cost, begin, end, d->shares);
    uint64_t column = 0;
    for (uint32_t i = 0; i < d->a->run_count && column < d->end; i++) {
        tile_t tile = make_tile(d->a, &d->a->runs[i], 0, 1, 0);
        columns_t columns = columns_of(&tile, column);
        column += columns.count;
        if (column > d->begin) decode_run(d, work, &d->a->runs[i], &columns, &share);
    }
}

/* Merges what the wave has of one head of a run, and writes it when the run ends here. */
static void merge_head(const decode_t *d, const qn_run_t *run, const columns_t *columns, uint32_t head, uint32_t padded)
{
    uint64_t column = columns->first, end = columns->first + columns->count;
    part_t state = slot_part(d, d->capacity + d->turn % 2, head, padded);
    if (column >= d->begin)
        state = slot_part(d, column++ - d->begin, head, padded);
    else
        column = d->begin;
    for (; column < end && column < d->end; column++) {
        part_t part = slot_part(d, column - d->begin, head, padded);
        merge_row(&state, &part, 0, padded);
    }
    if (end <= d->end) {
        size_t row = ((size_t)run->first * d->a->heads + head) * d->a->kv.head_dim;
        write_row(&state, 0, d->a->kv.head_dim, padded, (float *)d->a->out + row);
        return;
    }
    part_t carried = slot_part(d, d->capacity + (d->turn + 1) % 2, head, padded);
    clear_part(&carried, 1);
    merge_row(&carried, &state, 0, padded);
}

/* Items are the heads. */
static void merge_heads(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const decode_t *d = arguments;
    uint64_t column = 0;
    for (uint32_t i = 0; i < d->a->run_count && column < d->end; i++) {
        tile_t tile = make_tile(d->a, &d->a->runs[i], 0, 1, 0);
        columns_t columns = columns_of(&tile, column);
        column += columns.count;
        if (column <= d->begin || columns.count == 1) continue;
        for (size_t head = begin; head < end; head++)
            merge_head(d, &d->a->runs[i], &columns, (uint32_t)head, tile.padded);
    }
}

/* Columns of all runs; the cost of those in the wave; true when a run in it has several. */
static bool measure_wave(decode_t *d, uint64_t *ret_columns)
{
    uint64_t column = 0;
    bool merge = false;
    d->cost = 0;
    for (uint32_t i = 0; i < d->a->run_count; i++) {
        tile_t tile = make_tile(d->a, &d->a->runs[i], 0, 1, 0);
        columns_t columns = columns_of(&tile, column);
        uint64_t from = column > d->begin ? column : d->begin;
        column += columns.count;
        for (uint64_t c = from; c < column && c < d->end; c++) {
            d->cost += column_cost(&tile, &columns, c) * tiles_per_token(d->a);
            merge |= columns.count > 1;
        }
    }
    *ret_columns = column;
    return merge;
}

static void decode_wave(decode_t *d, uint64_t *ret_columns)
{
    bool merge = measure_wave(d, ret_columns);
    d->shares = share_count(d->stream, d->a, d->cost);
    qn_cpu_split(d->stream, d->shares, 1, decode_shares, d);
    if (!merge) return;
    uint64_t wave = smaller((uint32_t)d->capacity, (uint32_t)(*ret_columns - d->begin));
    qn_cpu_split(d->stream, d->a->heads, qn_grain(wave * d->a->kv.head_dim / VEC_LANES * 2), merge_heads, d);
}

void KERNEL(qn_cpu_attention_decode)(qn_stream_t *stream, const void *arguments)
{
    const qn_attention_t *a = arguments;
    decode_t d = {.a = a, .stream = stream, .memory = qn_cpu_shared(stream), .slot_floats = slot_floats(a)};
    d.capacity = QN_SHARED_BYTES / sizeof(float) / d.slot_floats;
    QN_ASSERT(a->kv.head_dim <= QN_ATTENTION_DIM_MAX && d.capacity > 2);
    d.capacity -= 2;
    uint64_t columns;
    do {
        d.end = d.begin + d.capacity;
        decode_wave(&d, &columns);
        d.begin = d.end;
        d.turn++;
    } while (d.begin < columns);
}
