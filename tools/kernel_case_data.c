/* What is this?      Memory, random numbers and packed weights for the cases of `quintet bench kernels`.
 * State owned:       none; a case owns what is made here.
 * Must never:        give two runs different numbers.
 * Read next:         kernel_cases.c. */
#include "tools/kernel_case_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "kernels/weight_layout.h"

/* ---- memory and numbers ---- */

void *case_hold(kernel_case_t *c, size_t bytes)
{
    void *memory = c->memory_count < KERNEL_CASE_MEMORY_MAX ? aligned_alloc(64, (bytes + 127) / 64 * 64) : NULL;
    if (memory) c->memory[c->memory_count++] = memory;
    else c->no_memory = true;
    return memory;
}

void *case_hold_zero(kernel_case_t *c, size_t bytes)
{
    void *memory = case_hold(c, bytes);
    if (memory) memset(memory, 0, bytes);
    return memory;
}

float case_next_number(uint64_t *state)
{
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    return (float)(*state >> 40) * 0x1p-23f - 1;
}

void case_fill(float *values, size_t count, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; values && i < count; i++) values[i] = case_next_number(&state);
}

float *case_floats(kernel_case_t *c, size_t count, uint64_t seed)
{
    float *values = case_hold(c, count * sizeof *values);
    case_fill(values, count, seed);
    return values;
}

uint32_t *case_ids(kernel_case_t *c, size_t count, uint32_t limit)
{
    uint32_t *ids = case_hold(c, count * sizeof *ids);
    for (size_t i = 0; ids && i < count; i++) ids[i] = (uint32_t)(i * 2654435761u >> 4) % limit;
    return ids;
}

void *case_copy(kernel_case_t *c, const void *from, size_t bytes)
{
    void *to = case_hold(c, bytes);
    if (to && from) memcpy(to, from, bytes);
    return to;
}

void case_add_output(kernel_case_t *c, const void *tested, const void *exact, size_t count, bool is_id)
{
    QN_ASSERT(c->output_count < KERNEL_CASE_OUTPUTS_MAX);
    c->outputs[c->output_count++] = (kernel_output_t){ tested, exact, count, is_id };
}

case_pair_t case_output_pair(kernel_case_t *c, size_t count)
{
    case_pair_t pair = { case_hold_zero(c, count * sizeof(float)), case_hold_zero(c, count * sizeof(float)) };
    case_add_output(c, pair.tested, pair.exact, count, false);
    return pair;
}

/* ---- weights ---- */

uint64_t case_weight_bytes(qn_scalar_t scalar, uint64_t outputs, uint64_t inputs)
{
    uint64_t bytes = 0;
    qn_err_t err = qn_weight_bytes(scalar, QN_LAYOUT_PANELS, 32, outputs, inputs, &bytes);
    QN_ASSERT(!err);
    return bytes;
}

/* A random matrix in panels, values of deviation about 1/sqrt(inputs). */
qn_weight_t case_panels(kernel_case_t *c, qn_scalar_t scalar, uint64_t outputs, uint64_t inputs, uint64_t seed)
{
    qn_weight_t weight = { .scalar = scalar, .layout = QN_LAYOUT_PANELS, .group = scalar == QN_SCALAR_INT4 ? 32 : 0 };
    float *rows = malloc(QN_PANEL_ROWS * inputs * sizeof *rows);
    char *data = case_hold(c, case_weight_bytes(scalar, outputs, inputs));
    float scale = 1 / sqrtf((float)inputs);
    if (!rows) c->no_memory = true;
    for (uint64_t p = 0; rows && data && p < qn_panel_count(outputs); p++) {
        case_fill(rows, QN_PANEL_ROWS * inputs, seed + p);
        for (uint64_t i = 0; i < QN_PANEL_ROWS * inputs; i++) rows[i] *= scale;
        qn_weight_pack(scalar, weight.group, outputs, inputs, p, 1, rows,
                       data + p * qn_panel_bytes(scalar, weight.group, inputs));
    }
    free(rows);
    weight.data = data;
    return weight;
}

qn_weight_t case_vector(kernel_case_t *c, uint32_t count, uint64_t seed)
{
    return (qn_weight_t){ .data = case_floats(c, count, seed), .scalar = QN_SCALAR_F32 };
}
