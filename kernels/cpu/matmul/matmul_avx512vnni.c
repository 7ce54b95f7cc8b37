/* What is this?      Products of int8 and int4 weights: activations as bytes, whole-number dot products (vpdpbusd);
 *                    alone, or with the norm before and the activation after them.
 * State owned:       none.
 * Must never:        add up the groups of one output in another order for another batch.
 * Read next:         matmul_dots.h, weight_layout.h, quantise_rows.h; matmul_avx512.c has the f32 and bf16 weights.
 *
 * A work item is one pair of panels and the tokens of one chunk of blocks. It walks the inputs in stretches: the
 * weights of a stretch stay in the first-level cache while all tiles of the chunk use them, and meanwhile those of the
 * next stretch are asked for. In a decode step there is one tile, and the weights are read from memory once, as two
 * ascending streams. */
#include "kernels/cpu/vector/vector_avx512.h"

#include "kernels/cpu/activation_functions.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/matmul/matmul_dots.h"
#include "kernels/fused.h"

#define CHUNK_BLOCKS 16
#define CHUNK_BYTES (512u << 10) /* the activations of a chunk stay in the second-level cache */
#define STRETCH_INPUTS 256       /* with int8: 8 KB of weights, 3 KB of a tile's activations */
#define STRETCH_GROUPS (STRETCH_INPUTS / QN_QUANTISE_INT8)
#define STREAM_BYTES (4u << 20) /* results that no cache would hold until they are read */

/* One launch of parts of one format. */
typedef struct {
    const qn_matmul_t *a;
    const qn_activate_t *activation; /* of parts 0 and 1, gate and up, whose panels make pairs; NULL: none */
    qn_quantised_t x;
    uint32_t chunk_blocks;
    size_t pairs; /* of all parts */
} product_t;

/* ---- one work item ---- */

/* To write a line that no cache has, the processor reads it first, except when it is told that nobody will need it
 * soon: of the results of a long prompt that is so, and half of their memory traffic is saved. */
static bool streams(const qn_matmul_part_t *part, const void *out, uint32_t tokens)
{
    return !part->residual && ((uintptr_t)out & 63) == 0 && part->outputs % LANES == 0 &&
           (size_t)tokens * part->outputs * sizeof(float) >= STREAM_BYTES;
}

/* PAIR panels of a part, or its last one alone: then the second is the same again, and dropped. With an activation, a
 * panel of the gate and that of the same outputs of `up`. */
typedef struct {
    const qn_matmul_part_t *part;
    const uint8_t *panel, *scales;
    ptrdiff_t second; /* bytes from the first panel to the second; 0 for a panel alone */
    size_t next;      /* bytes from the first panel to the next pair's */
    float *out;
    uint32_t first_output, outputs;
    bool streams; /* see streams() */
} pair_t;

/* Panels of one part in a pair. */
static uint32_t panels_of_part(const product_t *self) { return self->activation ? 1 : PAIR; }

static size_t pairs_of(const product_t *self, const qn_matmul_part_t *part)
{
    return (qn_panel_count(part->outputs) + panels_of_part(self) - 1) / panels_of_part(self);
}

static pair_t pair_at(const product_t *self, size_t index)
{
    const qn_matmul_part_t *part = self->a->parts;
    while (index >= pairs_of(self, part))
        index -= pairs_of(self, part++);
    const qn_weight_t *weight = &part->weight;
    size_t panel_bytes = qn_panel_bytes(weight->scalar, weight->group, self->a->inputs);
    uint32_t most = panels_of_part(self) * LANES;
    pair_t pair = {.part = part, .first_output = (uint32_t)index * most, .next = panels_of_part(self) * panel_bytes};
    uint32_t left = part->outputs - pair.first_output;
    pair.outputs = left < most ? left : most;
    pair.panel = (const uint8_t *)weight->data + index * pair.next;
    pair.scales = pair.panel + qn_panel_scales(weight->scalar, weight->group, self->a->inputs);
    if (self->activation)
        pair.second = (const uint8_t *)part[1].weight.data - (const uint8_t *)weight->data;
    else
        pair.second = left > LANES ? (ptrdiff_t)panel_bytes : 0;
    pair.out = self->activation ? self->activation->out : part->out;
    pair.streams = streams(part, pair.out, self->a->tokens);
    return pair;
}

static __m512 load_some(const qn_weight_t *vector, uint32_t first, __mmask16 mask)
{
    if (vector->scalar == QN_SCALAR_F32) return _mm512_maskz_loadu_ps(mask, (const float *)vector->data + first);
    __m256i halves = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)vector->data + first);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* Asks for the lines that a tile's results go to, a tile's time ahead. */
static void ask_for_results(const pair_t *pair, uint32_t first, uint32_t tokens)
{
    const float *out = pair->out + (size_t)first * pair->part->outputs + pair->first_output;
    for (uint32_t t = 0; t < tokens; t++, out += pair->part->outputs)
        for (uint32_t output = 0; output < pair->outputs; output += LANES)
            __asm__ volatile("prefetchw %0" : : "m"(out[output]));
}

INLINE void store_result(const pair_t *pair, float *out, __m512 value, __mmask16 mask)
{
    if (pair->streams)
        _mm512_stream_ps(out, value);
    else
        _mm512_mask_storeu_ps(out, mask, value);
}

/* What becomes of the sums of outputs that begin a panel, whose scales these are: out = sum * scale + bias */
typedef struct {
    __m512 scale, bias;
} ending_t;

static ending_t ending_of(const qn_matmul_part_t *part, const uint8_t *scales, uint32_t output, __mmask16 mask)
{
    ending_t ending = {_mm512_set1_ps(1), _mm512_setzero_ps()};
    if (part->weight.scalar == QN_SCALAR_INT8) ending.scale = _mm512_load_ps(scales);
    if (part->bias.data) ending.bias = load_some(&part->bias, output, mask);
    return ending;
}

static __mmask16 lanes_of(uint32_t outputs)
{
    return outputs >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << outputs) - 1);
}

/* Panel p of the pair, `tokens` from `first` on. */
static void store_panel(const pair_t *pair, uint32_t p, const float *sums, uint32_t first, uint32_t tokens)
{
    const qn_matmul_part_t *part = pair->part;
    uint32_t output = pair->first_output + p * LANES;
    __mmask16 mask = lanes_of(part->outputs - output);
    ending_t ending = ending_of(part, pair->scales + p * pair->second, output, mask);
    size_t at = (size_t)first * part->outputs + output;
    for (uint32_t t = 0; t < tokens; t++, at += part->outputs) {
        __m512 value = _mm512_fmadd_ps(_mm512_load_ps(sums + (t * PAIR + p) * LANES), ending.scale, ending.bias);
        if (part->residual)
            value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, (const float *)part->residual + at));
        store_result(pair, pair->out + at, value, mask);
    }
}

/* f(gate) * up of the pair. */
INLINE void store_activated(const pair_t *pair, const qn_activation_t kind, const float *sums, uint32_t first,
                            uint32_t tokens)
{
    const qn_matmul_part_t *part = pair->part;
    __mmask16 mask = lanes_of(pair->outputs);
    ending_t gate = ending_of(&part[0], pair->scales, pair->first_output, mask);
    ending_t up = ending_of(&part[1], pair->scales + pair->second, pair->first_output, mask);
    float *out = pair->out + (size_t)first * part->outputs + pair->first_output;
    for (uint32_t t = 0; t < tokens; t++, sums += PAIR * LANES, out += part->outputs) {
        __m512 value = activate(kind, _mm512_fmadd_ps(_mm512_load_ps(sums), gate.scale, gate.bias));
        value = _mm512_mul_ps(value, _mm512_fmadd_ps(_mm512_load_ps(sums + LANES), up.scale, up.bias));
        store_result(pair, out, value, mask);
    }
}

static void store_tile(const product_t *self, const pair_t *pair, const float *sums, uint32_t first, uint32_t tokens)
{
    if (!self->activation) {
        for (uint32_t p = 0; p * LANES < pair->outputs; p++)
            store_panel(pair, p, sums, first, tokens);
        return;
    }
    switch (self->activation->kind) {
    case QN_ACTIVATION_SILU: store_activated(pair, QN_ACTIVATION_SILU, sums, first, tokens); break;
    case QN_ACTIVATION_GELU_TANH: store_activated(pair, QN_ACTIVATION_GELU_TANH, sums, first, tokens); break;
    case QN_ACTIVATION_GELU: store_activated(pair, QN_ACTIVATION_GELU, sums, first, tokens); break;
    case QN_ACTIVATION_RELU: store_activated(pair, QN_ACTIVATION_RELU, sums, first, tokens); break;
    }
}

/* Inputs that an int8 panel has, with those that pad it. */
static uint32_t panel_inputs(uint32_t inputs) { return (inputs + QN_INT8_GROUP - 1) / QN_INT8_GROUP * QN_INT8_GROUP; }

/* [sum(w), -128] of the outputs of one panel, for a group. */
static __m512i sum_group(const uint8_t *weights, uint32_t inputs)
{
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i even = _mm512_set1_epi32(-128 * (int32_t)inputs), odd = _mm512_setzero_si512();
    for (const uint8_t *end = weights + inputs * LANES; weights < end; weights += 2 * LINE) {
        add_dot(&even, _mm512_load_si512(weights), ones);
        add_dot(&odd, _mm512_load_si512(weights + LINE), ones);
    }
    return pair_with_sums(_mm512_add_epi32(even, odd));
}

/* What start_dots_int8 reads for the groups of a tile. */
static void sum_weights(const tile_t *tile, int32_t *starts)
{
    for (uint32_t g = 0; g < tile->groups; g++)
        for (uint32_t p = 0; p < PAIR; p++)
            _mm512_store_si512(starts + (g * PAIR + p) * LANES,
                               sum_group(tile->weights + p * tile->second + g * QN_QUANTISE_INT8 * LANES,
                                         g + 1 < tile->groups ? QN_QUANTISE_INT8 : tile->last_inputs));
}

static uint32_t stretch_groups(const qn_quantised_t *x) { return STRETCH_INPUTS / x->group; }

/* Groups [begin, end) of one pair, for blocks [first, last). The results of a tile are stored when it is done: while
 * they go to memory, the next tile is multiplied. */
static void multiply_stretch(const product_t *self, const pair_t *pair, uint32_t first, uint32_t last, uint32_t begin,
                             uint32_t end, float *sums)
{
    const qn_quantised_t *x = &self->x;
    bool int8 = pair->part->weight.scalar == QN_SCALAR_INT8, last_stretch = end == x->groups;
    size_t group_bytes = (size_t)x->group * LANES / (int8 ? 1 : 2);
    uint32_t blocks = last - first, next_groups = last_stretch ? 0 : end;
    next_groups = x->groups - next_groups < stretch_groups(x) ? x->groups - next_groups : stretch_groups(x);
    uint32_t next_lines = (uint32_t)(next_groups * group_bytes / LINE), shares = blocks * (end - begin);
    tile_t tile = {.weights = pair->panel + begin * group_bytes,
                   .next = pair->panel + end * group_bytes,
                   .weight_scales = pair->scales + (size_t)begin * LANES * sizeof(uint16_t),
                   .second = pair->second,
                   .groups = end - begin,
                   .next_lines = (next_lines + shares - 1) / shares,
                   .only_tile = blocks == 1,
                   .last_inputs = x->group};
    _Alignas(64) int32_t starts[STRETCH_GROUPS * PAIR * LANES];
    if (int8 && last_stretch) tile.last_inputs = panel_inputs(x->inputs) - (end - 1) * x->group;
    if (int8 && x->block_tokens + (x->longer > 0) > OWN_SUMS) {
        sum_weights(&tile, starts);
        tile.weight_starts = starts;
    }
    if (last_stretch) tile.next = pair->panel + pair->next;
    uint32_t first_token = qn_quantised_first(x, first);
    for (uint32_t b = first; b < last; b++) {
        uint32_t token = qn_quantised_first(x, b), tokens = qn_quantised_first(x, b + 1) - token;
        size_t place = (size_t)token * x->groups + (size_t)begin * tokens;
        tile.x = x->values + place * x->group;
        tile.x_scales = x->scales + place;
        tile.x_starts = x->starts + place;
        tile.sums = sums + (size_t)(token - first_token) * PAIR * LANES;
        if (last_stretch && !pair->streams) ask_for_results(pair, token, tokens);
        if (int8)
            int8_tile(&tile, tokens);
        else if (x->group == 32)
            int4_tile_32(&tile, tokens);
        else
            int4_tile_64(&tile, tokens);
        tile.next += (size_t)tile.groups * tile.next_lines * LINE;
        if (last_stretch) store_tile(self, pair, tile.sums, token, tokens);
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
    uint32_t stretch = stretch_groups(x);
    for (uint32_t begin = 0; begin < x->groups; begin += stretch) {
        uint32_t end = x->groups - begin < stretch ? x->groups : begin + stretch;
        multiply_stretch(self, &pair, first, last, begin, end, sums);
    }
}

/* ---- launches ---- */

static void multiply_items(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    for (size_t item = begin; item < end; item++)
        multiply_item(arguments, item);
    _mm_sfence(); /* streamed results are to be seen before the split's end is */
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

static void multiply_format(qn_stream_t *stream, const qn_matmul_t *a, const qn_activate_t *activation)
{
    const qn_weight_t *weight = &a->parts[0].weight;
    bool int8 = weight->scalar == QN_SCALAR_INT8;
    product_t self = {.a = a,
                      .activation = activation,
                      .x =
                          qn_quantised_plan(a->tokens, a->inputs, int8 ? QN_QUANTISE_INT8 : weight->group, a->scratch)};
    self.chunk_blocks = chunk_blocks(&self.x);
    for (uint32_t p = 0; p < (activation ? 1 : a->part_count); p++)
        self.pairs += pairs_of(&self, &a->parts[p]);
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
    bool done[QN_MATMUL_PARTS] = {false};
    for (uint32_t first = 0; first < a->part_count; first++) {
        if (done[first]) continue;
        uint32_t format = format_of(&a->parts[first].weight);
        qn_matmul_t same = {.x = a->x, .tokens = a->tokens, .inputs = a->inputs, .scratch = a->scratch};
        for (uint32_t p = first; p < a->part_count; p++) {
            if (format_of(&a->parts[p].weight) != format) continue;
            same.parts[same.part_count++] = a->parts[p];
            done[p] = true;
        }
        if (format == 0)
            qn_cpu_matmul_avx512(stream, &same);
        else
            multiply_format(stream, &same, NULL);
    }
}

/* Gate and up of one integer format, and nothing between them and the activation. */
static bool fuses(const qn_matmul_t *a, const qn_activate_t *activation)
{
    const qn_matmul_part_t *gate = &a->parts[0], *up = &a->parts[1];
    return activation->out && a->part_count == 2 && a->tokens && format_of(&gate->weight) != 0 &&
           format_of(&gate->weight) == format_of(&up->weight) && gate->outputs == up->outputs &&
           activation->gate == gate->out && activation->up == up->out && !gate->residual && !up->residual;
}

void qn_cpu_norm_matmul_vnni(qn_stream_t *stream, const void *arguments)
{
    const qn_norm_matmul_t *a = arguments;
    if (a->norm.x) qn_cpu_rmsnorm_avx512(stream, &a->norm);
    if (fuses(&a->matmul, &a->activation)) {
        multiply_format(stream, &a->matmul, &a->activation);
        return;
    }
    qn_cpu_matmul_vnni(stream, &a->matmul);
    if (a->activation.out) qn_cpu_activation_avx512(stream, &a->activation);
}
