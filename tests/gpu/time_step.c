/* What is this?      Device time of whole steps: all layers, head and greedy sampler of a Llama shape with weights of
 *                    its own per layer, as one captured graph.
 * State owned:       device memory.
 * Must never:        leave out a launch that services/compute/forward.c makes.
 * Read next:         services/compute/forward.c. */
#include "tests/gpu/timing.h"

#define BLOCK 16

typedef struct { qn_weight_t norm, mlp_norm, q, k, v, o, gate, up, down; } layer_t;

typedef struct {
    timing_t timing;
    const model_shape_t *model;
    uint32_t runs, tokens, length;         /* each run: `tokens` at the end of `length` positions */
    layer_t layers[32];
    qn_weight_t embedding, norm, head;
    qn_kv_t kv;
    qn_slot_tables_t tables;
    qn_run_t *run_list;
    uint32_t *ids, *plan_ids, *positions, *rows;
    int64_t *kv_rows;
    void *x, *normed, *q, *k, *v, *attended, *gate, *up, *picked;
    float *angles, *frequencies, *logits, *scratch;
    qn_sample_t *samples;
    qn_sample_result_t *results;
    qn_top_entry_t *top;
} step_t;

static qn_weight_t weight(step_t *s, size_t count)
{
    return (qn_weight_t){ arena_take(&s->timing.arena, count * 2), QN_SCALAR_BF16 };
}

static void make_weights(step_t *s)
{
    const model_shape_t *m = s->model;
    size_t e = m->hidden, f = m->intermediate;
    size_t q = (size_t)m->heads * m->head_dim, kv = (size_t)m->kv_heads * m->head_dim;
    for (uint32_t i = 0; i < m->layers; i++)
        s->layers[i] = (layer_t){ weight(s, e), weight(s, e), weight(s, q * e), weight(s, kv * e), weight(s, kv * e),
                                  weight(s, e * q), weight(s, f * e), weight(s, f * e), weight(s, e * f) };
    s->norm = weight(s, e);
    s->embedding = weight(s, e * m->vocab);
    s->head = s->embedding;
}

static void make_state(step_t *s)
{
    arena_t *arena = &s->timing.arena;
    const model_shape_t *m = s->model;
    uint32_t table_blocks = (s->length + BLOCK - 1) / BLOCK, blocks = table_blocks * s->runs;
    s->kv = (qn_kv_t){ NULL, QN_SCALAR_BF16, m->layers, blocks, BLOCK, m->kv_heads, m->head_dim };
    s->kv.data = arena_take(arena, (size_t)m->layers * 2 * blocks * BLOCK * m->kv_heads * m->head_dim * 2);
    uint32_t *table = malloc((size_t)blocks * 4), *rows = malloc(s->runs * 4);
    qn_run_t *runs = malloc(s->runs * sizeof *runs);
    qn_sample_t *samples = malloc(s->runs * sizeof *samples);
    qn_slot_row_t *slots = calloc(s->runs, sizeof *slots);
    if (!table || !runs || !samples || !slots || !rows) exit(70);
    for (uint32_t i = 0; i < blocks; i++) table[i] = blocks - 1 - i;
    for (uint32_t i = 0; i < s->runs; i++) {
        runs[i] = (qn_run_t){ .slot = i, .position = s->length - s->tokens, .tokens = s->tokens,
                              .first = i * s->tokens, .from_slot = s->tokens == 1 };
        samples[i] = (qn_sample_t){ i, s->length };
        rows[i] = (i + 1) * s->tokens - 1;
        slots[i].last_token = i * 37 + 5, slots[i].top_p = 1;
    }
    s->tables = (qn_slot_tables_t){
        .rows = push(arena, slots, s->runs * sizeof *slots), .block_tables = push(arena, table, (size_t)blocks * 4),
        .stop_ids = arena_take(arena, s->runs * QN_STOP_IDS_MAX * 4), .slots = s->runs,
        .table_blocks = table_blocks, .vocab = m->vocab };
    s->run_list = push(arena, runs, s->runs * sizeof *runs);
    s->samples = push(arena, samples, s->runs * sizeof *samples);
    s->rows = push(arena, rows, s->runs * 4);
    free(table), free(runs), free(samples), free(slots), free(rows);
}

static void make_buffers(step_t *s)
{
    arena_t *arena = &s->timing.arena;
    const model_shape_t *m = s->model;
    size_t t = (size_t)s->runs * s->tokens, q = (size_t)m->heads * m->head_dim, kv = (size_t)m->kv_heads * m->head_dim;
    s->x = arena_take(arena, t * m->hidden * 2), s->normed = arena_take(arena, t * m->hidden * 2);
    s->q = arena_take(arena, t * q * 2), s->attended = arena_take(arena, t * q * 2);
    s->k = arena_take(arena, t * kv * 2), s->v = arena_take(arena, t * kv * 2);
    s->gate = arena_take(arena, t * m->intermediate * 2), s->up = arena_take(arena, t * m->intermediate * 2);
    s->picked = arena_take(arena, (size_t)s->runs * m->hidden * 2);
    s->angles = arena_take(arena, t * m->head_dim * 4);
    s->ids = arena_take(arena, t * 4), s->positions = arena_take(arena, t * 4), s->kv_rows = arena_take(arena, t * 8);
    uint32_t *ids = malloc(t * 4);
    float frequencies[128];
    if (!ids) exit(70);
    for (size_t i = 0; i < t; i++) ids[i] = random_below(&s->timing.random, m->vocab);
    for (uint32_t i = 0; i < m->head_dim / 2; i++) frequencies[i] = powf(500000, -2.0f * (float)i / (float)m->head_dim);
    s->plan_ids = push(arena, ids, t * 4);
    s->frequencies = push(arena, frequencies, m->head_dim / 2 * 4);
    free(ids);
    s->logits = arena_take(arena, (size_t)s->runs * m->vocab * 4);
    s->scratch = arena_take(arena, (size_t)s->runs * 2 * m->vocab * 4);
    s->results = arena_take(arena, s->runs * sizeof *s->results);
    s->top = arena_take(arena, (size_t)s->runs * QN_TOP_LOGPROBS_MAX * sizeof *s->top);
}

static void norm(step_t *s, const void *x, qn_weight_t by, uint32_t rows, void *out)
{
    qn_cuda_rmsnorm(s->timing.stream, &(qn_rmsnorm_t){ x, by, rows, s->model->hidden, 1e-5f, out });
}

static void attend(step_t *s, uint32_t layer, uint32_t t)
{
    const model_shape_t *m = s->model;
    const layer_t *w = &s->layers[layer];
    qn_stream_t *stream = s->timing.stream;
    uint32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    norm(s, s->x, w->norm, t, s->normed);
    qn_cuda_matmul(stream, &(qn_matmul_t){ s->normed, t, m->hidden, {
        { .weight = w->q, .out = s->q, .outputs = q }, { .weight = w->k, .out = s->k, .outputs = kv },
        { .weight = w->v, .out = s->v, .outputs = kv } }, 3 });
    qn_cuda_rope(stream, &(qn_rope_t){ s->angles, s->q, s->k, t, m->heads, m->kv_heads, m->head_dim });
    qn_cuda_kv_write(stream, &(qn_kv_write_t){ s->kv, layer, t, s->k, s->v, s->kv_rows });
    qn_attention_t attention = { s->kv, s->tables, s->run_list, s->runs, layer, m->heads, 0,
                                 1 / sqrtf((float)m->head_dim), s->q, s->attended };
    (s->tokens == 1 ? qn_cuda_attention_decode : qn_cuda_attention_prefill)(stream, &attention);
    qn_cuda_matmul(stream, &(qn_matmul_t){ s->attended, t, q, {
        { .weight = w->o, .out = s->x, .residual = s->x, .outputs = m->hidden } }, 1 });
}

static void feed(step_t *s, uint32_t layer, uint32_t t)
{
    const model_shape_t *m = s->model;
    const layer_t *w = &s->layers[layer];
    norm(s, s->x, w->mlp_norm, t, s->normed);
    qn_cuda_matmul(s->timing.stream, &(qn_matmul_t){ s->normed, t, m->hidden, {
        { .weight = w->gate, .out = s->gate, .outputs = m->intermediate },
        { .weight = w->up, .out = s->up, .outputs = m->intermediate } }, 2 });
    qn_cuda_activation(s->timing.stream, &(qn_activate_t){ s->gate, s->up, t, m->intermediate, s->gate });
    qn_cuda_matmul(s->timing.stream, &(qn_matmul_t){ s->gate, t, m->intermediate, {
        { .weight = w->down, .out = s->x, .residual = s->x, .outputs = m->hidden } }, 1 });
}

static void launch_step(void *context, unsigned index)
{
    (void)index;
    step_t *s = context;
    const model_shape_t *m = s->model;
    qn_stream_t *stream = s->timing.stream;
    uint32_t t = s->runs * s->tokens;
    qn_cuda_step_input(stream, &(qn_step_input_t){ s->tables, s->run_list, s->runs, s->plan_ids, BLOCK, s->ids,
                                                   s->positions, s->kv_rows });
    qn_cuda_embedding(stream, &(qn_embedding_t){ s->embedding, s->ids, t, m->hidden, s->x });
    qn_cuda_rope_angles(stream, &(qn_rope_angles_t){ s->positions, s->frequencies, 1, t, m->head_dim, s->angles });
    for (uint32_t layer = 0; layer < m->layers; layer++) attend(s, layer, t), feed(s, layer, t);
    qn_cuda_gather_rows(stream, &(qn_gather_rows_t){ s->x, s->rows, s->runs, m->hidden, s->picked });
    norm(s, s->picked, s->norm, s->runs, s->picked);
    qn_cuda_matmul_logits(stream, &(qn_matmul_t){ s->picked, s->runs, m->hidden, {
        { .weight = s->head, .out = s->logits, .outputs = m->vocab } }, 1 });
    qn_cuda_sampler(stream, &(qn_sampler_t){ s->tables, s->samples, s->runs, s->logits, s->scratch, s->results,
                                             s->top });
}

static double weight_bytes(const model_shape_t *m)
{
    double q = (double)m->heads * m->head_dim, kv = (double)m->kv_heads * m->head_dim;
    return 2 * (m->layers * (m->hidden * (2 * q + 2 * kv) + 3.0 * m->hidden * m->intermediate)
                + (double)m->hidden * m->vocab);
}

static void time_step(const model_shape_t *model, uint32_t runs, uint32_t length, uint32_t tokens, bool dependent)
{
    static step_t s;
    double kv = 4.0 * model->layers * runs * length * model->kv_heads * model->head_dim;
    size_t each = (size_t)model->hidden * 8 + (size_t)model->intermediate * 4
        + (size_t)model->heads * model->head_dim * 8;
    size_t bytes = (size_t)(weight_bytes(model) * 1.01 + kv * 1.1) + (size_t)runs * tokens * each * 2
        + (size_t)runs * model->vocab * 16 + ((size_t)256 << 20);
    s = (step_t){ .model = model, .runs = runs, .tokens = tokens, .length = length };
    timing_make(&s.timing, &(qn_cuda_options_t){ .activations = QN_SCALAR_BF16, .dependent_launch = dependent,
                .max_sequences = 256, .heads = model->heads, .kv_heads = model->kv_heads,
                .head_dim = model->head_dim }, bytes);
    timing_fill(&s.timing, 0.02f);
    make_weights(&s);
    make_state(&s);
    make_buffers(&s);
    double us = timing_run(&s.timing, tokens > 1 ? 1 : 4, launch_step, &s);
    char shape[80];
    snprintf(shape, sizeof shape, "%s N %u length %u tokens %u%s", model->name, runs, length, tokens,
             dependent ? "" : " (no PDL)");
    double flop = weight_bytes(model) * runs * tokens + 2.0 * model->layers * runs * tokens * (2.0 * length - tokens)
        * model->heads * model->head_dim;
    timing_print("step", shape, us, tokens == 1 ? weight_bytes(model) + kv : 0, tokens > 1 || runs >= 64 ? flop : 0);
    timing_free(&s.timing);
}

void time_steps(void)
{
    static const uint32_t BATCHES[] = { 1, 4, 16, 64, 256 };
    time_step(&LLAMA_1B, 1, 1024, 1, false);
    for (unsigned i = 0; i < 5; i++) time_step(&LLAMA_1B, BATCHES[i], 1024, 1, true);
    time_step(&LLAMA_8B, 1, 1024, 1, false);
    for (unsigned i = 0; i < 5; i++) time_step(&LLAMA_8B, BATCHES[i], 1024, 1, true);
    time_step(&LLAMA_1B, 1, 8192, 8192, true);
    time_step(&LLAMA_8B, 1, 8192, 8192, true);
}
