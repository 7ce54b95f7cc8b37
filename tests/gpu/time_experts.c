/* What is this?      Device time of routing, the experts' products and the weighted sum, by batch, over the shapes of
 *                    Qwen3-30B-A3B (128 experts, 8 of them per token) and Mixtral-8x7B (8 and 2).
 * State owned:       none.
 * Must never:        count the weights of experts that no token has.
 * Read next:         kernels/cuda/expert_matmul.cu. */
#include "tests/gpu/timing.h"

typedef struct { const char *name; uint32_t hidden, width, experts, per_token; } experts_t;

typedef struct {
    timing_t *timing;
    qn_moe_route_t route;
    qn_expert_matmul_t up, down;
    qn_moe_combine_t combine;
    unsigned stage;              /* 0: all; else which */
} block_t;

static void launch_block(void *context, unsigned index)
{
    (void)index;
    block_t *b = context;
    if (!b->stage || b->stage == 1) qn_cuda_moe_route(b->timing->stream, &b->route);
    if (!b->stage || b->stage == 2) qn_cuda_expert_matmul(b->timing->stream, &b->up);
    if (!b->stage || b->stage == 3) qn_cuda_expert_matmul(b->timing->stream, &b->down);
    if (!b->stage || b->stage == 4) qn_cuda_moe_combine(b->timing->stream, &b->combine);
}

static qn_weight_t *make_weights(arena_t *arena, const experts_t *model)
{
    size_t bytes = (size_t)model->hidden * model->width * 2;
    qn_weight_t list[256] = { 0 };
    char *data = arena_take(arena, model->experts * bytes);
    for (uint32_t e = 0; e < model->experts; e++)
        list[e] = (qn_weight_t){ .data = data + e * bytes, .scalar = QN_SCALAR_BF16 };
    return push(arena, list, model->experts * sizeof *list);
}

static block_t make_block(timing_t *timing, const experts_t *m, uint32_t tokens)
{
    arena_t *arena = &timing->arena;
    arena->used = 0;
    uint32_t places = tokens * m->per_token;
    float *residual = arena_take(arena, (size_t)tokens * m->hidden * 2);
    float *weights = arena_take(arena, places * 4);
    uint32_t *at = arena_take(arena, places * 4), *rows = arena_take(arena, places * 4);
    uint32_t *offsets = arena_take(arena, (m->experts + 1) * 4);
    size_t outer = (size_t)places * m->hidden * 2, inner = (size_t)places * m->width * 2;
    void *x = arena_take(arena, outer), *out = arena_take(arena, outer);
    void *gate = arena_take(arena, inner), *up = arena_take(arena, inner);
    block_t b = { .timing = timing };
    b.route = (qn_moe_route_t){ .logits = arena_take(arena, (size_t)tokens * m->experts * 2), .tokens = tokens,
                                .experts = m->experts, .per_token = m->per_token, .normalise = true,
                                .ret_weights = weights, .ret_places = at, .ret_rows = rows, .ret_offsets = offsets };
    b.up = (qn_expert_matmul_t){ .x = x, .offsets = offsets, .places = places, .inputs = m->hidden,
                                 .experts = m->experts, .outputs = m->width, .part_count = 2,
                                 .weights = { make_weights(arena, m), make_weights(arena, m) }, .out = { gate, up },
                                 .scalar = QN_SCALAR_BF16 };
    b.down = (qn_expert_matmul_t){ .x = gate, .offsets = offsets, .places = places, .inputs = m->width,
                                   .experts = m->experts, .outputs = m->hidden, .part_count = 1,
                                   .weights = { make_weights(arena, m) }, .out = { out }, .scalar = QN_SCALAR_BF16 };
    b.combine = (qn_moe_combine_t){ .x = out, .weights = weights, .places = at, .residual = residual,
                                    .tokens = tokens, .per_token = m->per_token, .width = m->hidden, .out = residual };
    return b;
}

/* Experts that have tokens, as the device chose them. */
static uint32_t used_experts(const block_t *b)
{
    uint32_t offsets[257], used = 0;
    pull(offsets, b->route.ret_offsets, (b->route.experts + 1) * 4);
    for (uint32_t e = 0; e < b->route.experts; e++) used += offsets[e + 1] > offsets[e];
    return used;
}

void time_experts(timing_t *timing)
{
    static const experts_t MODELS[] = { { "Qwen3-30B-A3B", 2048, 768, 128, 8 }, { "Mixtral-8x7B", 4096, 14336, 8, 2 } };
    static const uint32_t TOKENS[] = { 1, 8, 64, 256, 4096 };
    static const char *const STAGES[] = { "all", "route", "gate+up", "down", "combine" };
    for (unsigned m = 0; m < 2; m++)
        for (unsigned t = 0; t < 5; t++)
            for (unsigned stage = 0; stage < 5; stage++) {
                const experts_t *model = &MODELS[m];
                block_t b = make_block(timing, model, TOKENS[t]);
                launch_block(&b, 0);
                must_ok(qn_cuda_stream_wait(timing->stream));
                b.stage = stage;
                double us = timing_run(timing, TOKENS[t] > 1000 ? 2 : 8, launch_block, &b);
                double each = (double)model->hidden * model->width, parts = stage == 0 ? 3 : stage == 2 ? 2 : 1;
                bool product = stage == 0 || stage == 2 || stage == 3;
                char shape[80];
                snprintf(shape, sizeof shape, "%s T %u %s", model->name, TOKENS[t], STAGES[stage]);
                timing_print("experts", shape, us,
                             product && TOKENS[t] <= 256 ? used_experts(&b) * each * parts * 2 : 0,
                             product && TOKENS[t] >= 64 ? 2.0 * TOKENS[t] * model->per_token * each * parts : 0);
            }
}
