/* What is this?      Products of int8 and int4 weights: activations as bytes, whole-number dot products (vpdpbusd).
 * State owned:       none.
 * Must never:        add up the groups of one output in another order for another batch.
 * Read next:         weight_layout.h, quantise_rows.h; matmul_avx512.c has the f32 and bf16 weights.
 *
 * vpdpbusd multiplies 64 unsigned bytes (weights: 4 inputs of the 16 outputs of a panel) with 64 signed ones (one
 * token's 4 inputs, broadcast) and adds each lane's four products to 32 bits. A lane is an output, so no sum over lanes
 * is ever needed. Within a group of inputs the sums are whole numbers and exact, whatever their order. Each group then
 * makes one step of the float chain of its output, groups ascending:
 *
 *   int8   sum += (float)dot * x_scale                 and at the end  out = sum * w_scale
 *   int4   sum += ((float)dot * w_scale) * x_scale
 *
 * A tile is PAIR panels times the tokens of one block: at 12 tokens 24 of the 32 registers hold sums, and 14 loads feed
 * 24 vpdpbusd. The float sums stay in the first-level cache, touched once a group.
 *
 * A work item is one pair of panels and the tokens of one chunk of blocks. It walks the inputs in stretches: the
 * weights of a stretch stay in the first-level cache while all tiles of the chunk use them, and meanwhile those of the
 * next stretch are asked for. In a decode step there is one tile, and the weights are read from memory once, as two
 * ascending streams. */
#include <immintrin.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/quantise_rows.h"
#include "kernels/weight_layout.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES QN_PANEL_ROWS
#define LINE 64
#define PAIR 2                     /* panels of a tile */
#define TILE QN_QUANTISE_TOKENS
#define CHUNK_BLOCKS 16
#define CHUNK_BYTES (512u << 10)   /* the activations of a chunk stay in the second-level cache */
#define STRETCH_INPUTS 256         /* with int8: 8 KB of weights, 3 KB of a tile's activations */
#define STREAM_BYTES (4u << 20)    /* results that no cache would hold until they are read */

/* One launch of parts of one format. */
typedef struct {
    const qn_matmul_t *a;
    qn_quantised_t x;
    uint32_t chunk_blocks;
    size_t pairs;                  /* of all parts */
} product_t;

/* What a tile needs for one stretch. Weights and scales of the pair's second panel follow `panel_bytes` on. */
typedef struct {
    const uint8_t *weights, *weight_scales, *next;
    size_t panel_bytes;
    uint32_t groups;
    uint32_t next_lines;           /* lines of the next stretch to ask for with each group, per panel */
    bool only_tile;                /* of its stretch: the next one follows at once */
    const int8_t *x;
    const float *x_scales;
    const int32_t *x_starts;
    float *sums;                   /* [tokens][PAIR][LANES] */
} tile_t;

INLINE __m512i broadcast_quad(const int8_t *x)
{
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return _mm512_set1_epi32(quad);
}

/* Assembler, for it says that the sums stay where they are: gcc 12 copies and spills them around the intrinsic. */
INLINE void add_dot(__m512i *sum, __m512i weights, __m512i x)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(weights), "v"(x));
}

INLINE void ask_for_next(tile_t *tile)
{
    for (uint32_t i = 0; i < tile->next_lines; i++, tile->next += LINE)
        for (uint32_t p = 0; p < PAIR; p++) {
            const char *line = (const char *)tile->next + p * tile->panel_bytes;
            if (tile->only_tile) _mm_prefetch(line, _MM_HINT_T0);
            else _mm_prefetch(line, _MM_HINT_T1);
        }
}

/* A quad of inputs of all tokens: dots[p][t] += weights[p] . x[t] */
INLINE void add_quads(__m512i dots[PAIR][TILE], const __m512i weights[PAIR], const int8_t *x, const uint32_t stride,
                      const uint32_t tokens)
{
    for (uint32_t t = 0; t < tokens; t++) {
        __m512i quad = broadcast_quad(x + t * stride);
        for (uint32_t p = 0; p < PAIR; p++) add_dot(&dots[p][t], weights[p], quad);
    }
}

/* The barrier keeps the float sums in memory: the compiler would hold them in registers that it does not have. */
INLINE void start_dots(__m512i dots[PAIR][TILE], const tile_t *tile, const uint32_t tokens)
{
    __asm__ volatile("" ::: "memory");
    for (uint32_t t = 0; t < tokens; t++) {
        __m512i start = _mm512_set1_epi32(tile->x_starts[t]);
        for (uint32_t p = 0; p < PAIR; p++) dots[p][t] = start;
    }
}

INLINE void add_to_sum(float *sum, __m512 dot, float scale)
{
    _mm512_store_ps(sum, _mm512_fmadd_ps(dot, _mm512_set1_ps(scale), _mm512_load_ps(sum)));
}

INLINE void next_group(tile_t *tile, const uint32_t group, const uint32_t tokens)
{
    tile->x += tokens * group;
    tile->x_scales += tokens;
    tile->x_starts += tokens;
}

INLINE void multiply_int8(tile_t tile, const uint32_t group, const uint32_t tokens)
{
    for (uint32_t g = 0; g < tile.groups; g++, next_group(&tile, group, tokens)) {
        __m512i dots[PAIR][TILE], weights[PAIR];
        ask_for_next(&tile);
        start_dots(dots, &tile, tokens);
        for (uint32_t c = 0; c < group; c += 4, tile.weights += LINE) {
            for (uint32_t p = 0; p < PAIR; p++) weights[p] = _mm512_load_si512(tile.weights + p * tile.panel_bytes);
            add_quads(dots, weights, tile.x + c, group, tokens);
        }
        for (uint32_t t = 0; t < tokens; t++)
            for (uint32_t p = 0; p < PAIR; p++)
                add_to_sum(tile.sums + (t * PAIR + p) * LANES, _mm512_cvtepi32_ps(dots[p][t]), tile.x_scales[t]);
    }
}

/* 16 bf16 scales. */
INLINE __m512 load_scales(const uint8_t *from)
{
    __m256i halves = _mm256_load_si256((const __m256i *)(const void *)from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

INLINE void multiply_int4(tile_t tile, const uint32_t group, const uint32_t tokens)
{
    const __m512i low = _mm512_set1_epi8(15);
    for (uint32_t g = 0; g < tile.groups; g++, next_group(&tile, group, tokens)) {
        __m512i dots[PAIR][TILE], bytes[PAIR], weights[PAIR];
        ask_for_next(&tile);
        start_dots(dots, &tile, tokens);
        for (uint32_t c = 0; c < group; c += 8, tile.weights += LINE) {
            for (uint32_t p = 0; p < PAIR; p++) {
                bytes[p] = _mm512_load_si512(tile.weights + p * tile.panel_bytes);
                weights[p] = _mm512_and_si512(bytes[p], low);
            }
            add_quads(dots, weights, tile.x + c, group, tokens);
            for (uint32_t p = 0; p < PAIR; p++)
                weights[p] = _mm512_and_si512(_mm512_srli_epi16(bytes[p], 4), low);
            add_quads(dots, weights, tile.x + c + 4, group, tokens);
        }
        for (uint32_t p = 0; p < PAIR; p++) {
            __m512 scale = load_scales(tile.weight_scales + p * tile.panel_bytes);
            for (uint32_t t = 0; t < tokens; t++)
                add_to_sum(tile.sums + (t * PAIR + p) * LANES, _mm512_mul_ps(_mm512_cvtepi32_ps(dots[p][t]), scale),
                           tile.x_scales[t]);
        }
        tile.weight_scales += LANES * sizeof(uint16_t);
    }
}

/* One piece of machine code per number of tokens, for their sums must be registers. Sanitizers would take minutes over
 * all of them: a checked build runs the same loops with the number in a variable. */
#ifdef QN_CHECKED
#define TILES(name, multiply, group) \
    static void name(const tile_t *tile, uint32_t tokens) { multiply(*tile, group, tokens); }
#else
#define TILES(name, multiply, group) \
    static void name(const tile_t *tile, uint32_t tokens) \
    { \
        switch (tokens) { \
        case 1: multiply(*tile, group, 1); break; \
        case 2: multiply(*tile, group, 2); break; \
        case 3: multiply(*tile, group, 3); break; \
        case 4: multiply(*tile, group, 4); break; \
        case 5: multiply(*tile, group, 5); break; \
        case 6: multiply(*tile, group, 6); break; \
        case 7: multiply(*tile, group, 7); break; \
        case 8: multiply(*tile, group, 8); break; \
        case 9: multiply(*tile, group, 9); break; \
        case 10: multiply(*tile, group, 10); break; \
        case 11: multiply(*tile, group, 11); break; \
        default: multiply(*tile, group, TILE); break; \
        } \
    }
#endif

TILES(int8_tile, multiply_int8, QN_INT8_GROUP)
TILES(int4_tile_32, multiply_int4, 32)
TILES(int4_tile_64, multiply_int4, 64)

/* ---- one work item ---- */

/* PAIR panels of a part, or its last one alone: then the second is the same again, and dropped. */
typedef struct {
    const qn_matmul_part_t *part;
    const uint8_t *panel, *scales;
    size_t panel_bytes;            /* 0 for a panel alone */
    uint32_t first_output, outputs;
} pair_t;

static size_t pairs_of(const qn_matmul_part_t *part)
{
    return (qn_panel_count(part->outputs) + PAIR - 1) / PAIR;
}

static pair_t pair_at(const product_t *self, size_t index)
{
    const qn_matmul_part_t *part = self->a->parts;
    while (index >= pairs_of(part)) index -= pairs_of(part++);
    const qn_weight_t *weight = &part->weight;
    size_t panel_bytes = qn_panel_bytes(weight->scalar, weight->group, self->a->inputs);
    pair_t pair = { .part = part, .first_output = (uint32_t)index * PAIR * LANES };
    uint32_t left = part->outputs - pair.first_output;
    pair.outputs = left < PAIR * LANES ? left : PAIR * LANES;
    pair.panel = (const uint8_t *)weight->data + index * PAIR * panel_bytes;
    pair.scales = pair.panel + qn_panel_scales(weight->scalar, weight->group, self->a->inputs);
    pair.panel_bytes = left > LANES ? panel_bytes : 0;
    return pair;
}

static __m512 load_some(const qn_weight_t *vector, uint32_t first, __mmask16 mask)
{
    if (vector->scalar == QN_SCALAR_F32) return _mm512_maskz_loadu_ps(mask, (const float *)vector->data + first);
    __m256i halves = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)vector->data + first);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* To write a line that no cache has, the processor reads it first, except when it is told that nobody will need it
 * soon: of the results of a long prompt that is so, and half of their memory traffic is saved. */
static bool streams(const qn_matmul_part_t *part, uint32_t tokens)
{
    return !part->residual && ((uintptr_t)part->out & 63) == 0 && part->outputs % LANES == 0
        && (size_t)tokens * part->outputs * sizeof(float) >= STREAM_BYTES;
}

/* Panel p of the pair, `tokens` from `first` on. */
static void store_panel(const pair_t *pair, uint32_t p, const float *sums, uint32_t first, uint32_t tokens,
                        bool stream)
{
    const qn_matmul_part_t *part = pair->part;
    uint32_t output = pair->first_output + p * LANES, left = part->outputs - output;
    __mmask16 mask = left >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
    __m512 scale = _mm512_set1_ps(1), bias = _mm512_setzero_ps();
    if (part->weight.scalar == QN_SCALAR_INT8) scale = _mm512_load_ps(pair->scales + p * pair->panel_bytes);
    if (part->bias.data) bias = load_some(&part->bias, output, mask);
    for (uint32_t t = 0; t < tokens; t++) {
        size_t at = (size_t)(first + t) * part->outputs + output;
        __m512 value = _mm512_load_ps(sums + (t * PAIR + p) * LANES);
        value = _mm512_fmadd_ps(value, scale, bias);
        if (part->residual)
            value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, (const float *)part->residual + at));
        if (stream) _mm512_stream_ps((float *)part->out + at, value);
        else _mm512_mask_storeu_ps((float *)part->out + at, mask, value);
    }
}

/* Groups [begin, end) of one pair, for blocks [first, last). */
static void multiply_stretch(const product_t *self, const pair_t *pair, uint32_t first, uint32_t last, uint32_t begin,
                             uint32_t end, float *sums)
{
    const qn_quantised_t *x = &self->x;
    bool int8 = pair->part->weight.scalar == QN_SCALAR_INT8;
    size_t group_bytes = (size_t)x->group * LANES / (int8 ? 1 : 2);
    uint32_t lines = (uint32_t)(group_bytes / LINE), blocks = last - first;
    tile_t tile = {
        .weights = pair->panel + begin * group_bytes, .next = pair->panel + end * group_bytes,
        .weight_scales = pair->scales + (size_t)begin * LANES * sizeof(uint16_t), .panel_bytes = pair->panel_bytes,
        .groups = end - begin, .next_lines = (lines + blocks - 1) / blocks,
        .only_tile = blocks == 1 };
    if (end == x->groups) tile.next = pair->panel + PAIR * pair->panel_bytes;
    uint32_t first_token = qn_quantised_first(x, first);
    for (uint32_t b = first; b < last; b++) {
        uint32_t token = qn_quantised_first(x, b), tokens = qn_quantised_first(x, b + 1) - token;
        size_t place = (size_t)token * x->groups + (size_t)begin * tokens;
        tile.x = x->values + place * x->group;
        tile.x_scales = x->scales + place;
        tile.x_starts = x->starts + place;
        tile.sums = sums + (size_t)(token - first_token) * PAIR * LANES;
        if (int8) int8_tile(&tile, tokens);
        else if (x->group == 32) int4_tile_32(&tile, tokens);
        else int4_tile_64(&tile, tokens);
        tile.next += (size_t)tile.groups * tile.next_lines * LINE;
    }
}

static void multiply_item(const product_t *self, size_t item)
{
    _Alignas(64) float sums[CHUNK_BLOCKS * TILE * PAIR * LANES];
    const qn_quantised_t *x = &self->x;
    uint32_t first = (uint32_t)(item / self->pairs) * self->chunk_blocks;
    uint32_t last = x->blocks - first < self->chunk_blocks ? x->blocks : first + self->chunk_blocks;
    uint32_t token = qn_quantised_first(x, first), tokens = qn_quantised_first(x, last) - token;
    pair_t pair = pair_at(self, item % self->pairs);
    memset(sums, 0, (size_t)tokens * PAIR * LANES * sizeof *sums);
    uint32_t stretch = STRETCH_INPUTS / x->group;
    for (uint32_t begin = 0; begin < x->groups; begin += stretch) {
        uint32_t end = x->groups - begin < stretch ? x->groups : begin + stretch;
        multiply_stretch(self, &pair, first, last, begin, end, sums);
    }
    bool stream = streams(pair.part, x->tokens);
    for (uint32_t p = 0; p * LANES < pair.outputs; p++) store_panel(&pair, p, sums, token, tokens, stream);
}

/* ---- launches ---- */

static void multiply_items(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    for (size_t item = begin; item < end; item++) multiply_item(arguments, item);
    _mm_sfence();  /* streamed results are to be seen before the split's end is */
}

static void quantise_tokens(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const product_t *self = arguments;
    for (size_t token = begin; token < end; token++)
        qn_quantise_row_avx512(&self->x, (uint32_t)token, (const float *)self->a->x + token * self->a->inputs);
}

/* Blocks whose activations fit the second-level cache. */
static uint32_t chunk_blocks(const qn_quantised_t *x)
{
    size_t blocks = CHUNK_BYTES / ((size_t)TILE * x->groups * x->group);
    if (blocks > CHUNK_BLOCKS) blocks = CHUNK_BLOCKS;
    return blocks ? (uint32_t)blocks : 1;
}

static void multiply_format(qn_stream_t *stream, const qn_matmul_t *a)
{
    const qn_weight_t *weight = &a->parts[0].weight;
    bool int8 = weight->scalar == QN_SCALAR_INT8;
    product_t self = { .a = a, .x = qn_quantised_plan(a->tokens, a->inputs, int8 ? QN_INT8_GROUP : weight->group,
                                                      int8 ? 128 : 8, a->scratch) };
    self.chunk_blocks = chunk_blocks(&self.x);
    for (uint32_t p = 0; p < a->part_count; p++) self.pairs += pairs_of(&a->parts[p]);
    size_t chunks = (self.x.blocks + self.chunk_blocks - 1) / self.chunk_blocks;
    uint32_t item_tokens = a->tokens < self.chunk_blocks * TILE ? a->tokens : self.chunk_blocks * TILE;
    /* A vector operation is one operation; a decode step waits for memory, eight of them a line. */
    size_t cost = (size_t)a->inputs * PAIR * LANES / LINE * (8 + item_tokens);
    qn_cpu_split(stream, a->tokens, qn_grain(a->inputs), quantise_tokens, &self);
    qn_cpu_split(stream, chunks * self.pairs, qn_grain(cost), multiply_items, &self);
}

/* Which launch a part belongs to: all floats together, and each integer format with its group. */
static uint32_t format_of(const qn_weight_t *weight)
{
    if (weight->scalar == QN_SCALAR_INT8) return 1;
    return weight->scalar == QN_SCALAR_INT4 ? weight->group : 0;
}

void qn_cpu_matmul_vnni(qn_stream_t *stream, const void *arguments)
{
    const qn_matmul_t *a = arguments;
    if (a->tokens == 0) return;
    bool done[QN_MATMUL_PARTS] = { false };
    for (uint32_t first = 0; first < a->part_count; first++) {
        if (done[first]) continue;
        uint32_t format = format_of(&a->parts[first].weight);
        qn_matmul_t same = { .x = a->x, .tokens = a->tokens, .inputs = a->inputs, .scratch = a->scratch };
        for (uint32_t p = first; p < a->part_count; p++) {
            if (format_of(&a->parts[p].weight) != format) continue;
            same.parts[same.part_count++] = a->parts[p];
            done[p] = true;
        }
        if (format == 0) qn_cpu_matmul_avx512(stream, &same);
        else multiply_format(stream, &same);
    }
}
