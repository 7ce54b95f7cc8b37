/* What is this?      Device time of a whole step: every launch from input to sampler of a Llama shape with weights of
 *                    its own per layer, as one captured graph; by its parts or fused, and what each launch of a layer
 *                    adds to it.
 * State owned:       device memory.
 * Must never:        leave out a launch that services/compute/forward/forward.c makes.
 * Read next:         services/compute/forward/forward.c. */
#include "tests/gpu/timing.h"

#define BLOCK 16

/* What is fused in a step; else its parts are launched. */
typedef struct {
    bool norm, gate, attention;
} manner_t;

typedef struct {
    qn_weight_t norm, mlp_norm, q, k, v, o, gate, up, down;
} layer_t;

typedef struct {
    timing_t timing;
    const model_shape_t *model;
    uint32_t runs, tokens, length; /* each run: `tokens` at the end of `length` positions */
    manner_t manner;
    unsigned launches, most; /* so far; the step is cut off after `most` */
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
    return (qn_weight_t){.data = arena_take(&s->timing.arena, count * 2), .scalar = QN_SCALAR_BF16};
}

static void make_weights(step_t *s)
{
    const model_shape_t *m = s->model;
    size_t e = m->hidden, f = m->intermediate;
    size_t q = (size_t)m->heads * m->head_dim, kv = (size_t)m->kv_heads * m->head_dim;
    for (uint32_t i = 0; i < m->layers; i++)
        s->layers[i] =
            (layer_t){weight(s, e),     weight(s, e),     weight(s, q * e), weight(s, kv * e), weight(s, kv * e),
                      weight(s, e * q), weight(s, f * e), weight(s, f * e), weight(s, e * f)};
    s->norm = weight(s, e);
    s->embedding = weight(s, e * m->vocab);
    s->head = s->embedding;
}

static void make_state(step_t *s)
{
    arena_t *arena = &s->timing.arena;
    const model_shape_t *m = s->model;
    uint32_t table_blocks = (s->length + BLOCK - 1) / BLOCK, blocks = table_blocks * s->runs;
    s->kv = (qn_kv_t){NULL, QN_SCALAR_BF16, m->layers, blocks, BLOCK, m->kv_heads, m->head_dim};
    s->kv.data = arena_take(arena, (size_t)m->layers * 2 * blocks * BLOCK * m->kv_heads * m->head_dim * 2);
    uint32_t *table = malloc((size_t)blocks * 4), *rows = malloc(s->runs * 4);
    qn_run_t *runs = malloc(s->runs * sizeof *runs);
    qn_sample_t *samples = malloc(s->runs * sizeof *samples);
    qn_slot_row_t *slots = calloc(s->runs, sizeof *slots);
    if (!table || !runs || !samples || !slots || !rows) exit(70);
    for (uint32_t i = 0; i < blocks; i++)
        table[i] = blocks - 1 - i;
    for (uint32_t i = 0; i < s->runs; i++) {
        runs[i] = (qn_run_t){.slot = i,
                             .position = s->length - s->tokens,
                             .tokens = s->tokens,
                             .first = i * s->tokens,
                             .from_slot = s->tokens == 1};
        samples[i] = (qn_sample_t){i, s->length};
        rows[i] = (i + 1) * s->tokens - 1;
        slots[i].last_token = i * 37 + 5, slots[i].top_p = 1;
    }
    s->tables = (qn_slot_tables_t){.rows = push(arena, slots, s->runs * sizeof *slots),
                                   .block_tables = push(arena, table, (size_t)blocks * 4),
                                   .stop_ids = arena_take(arena, s->runs * QN_SLOT_STOP_IDS_MAX * 4),
                                   .slots = s->runs,
                                   .table_blocks = table_blocks,
                                   .vocab = m->vocab};
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
    for (size_t i = 0; i < t; i++)
        ids[i] = random_below(&s->timing.random, m->vocab);
    for (uint32_t i = 0; i < m->head_dim / 2; i++)
        frequencies[i] = powf(500000, -2.0f * (float)i / (float)m->head_dim);
    s->plan_ids = push(arena, ids, t * 4);
    s->frequencies = push(arena, frequencies, m->head_dim / 2 * 4);
    free(ids);
    s->logits = arena_take(arena, (size_t)s->runs * m->vocab * 4);
    s->scratch = arena_take(arena, (size_t)s->runs * 2 * m->vocab * 4);
    s->results = arena_take(arena, s->runs * sizeof *s->results);
    s->top = arena_take(arena, (size_t)s->runs * QN_ALTERNATIVES_MAX * sizeof *s->top);
}

/* Whether the next launch is still made. */
static bool go(step_t *s) { return s->launches++ < s->most; }

/* A product, its norm before and its activation after it where given. */
static void multiply(step_t *s, const qn_norm_matmul_t *a)
{
    qn_stream_t *stream = s->timing.stream;
    qn_norm_matmul_t rest = *a;
    if (a->norm.x && !s->manner.norm) {
        if (go(s)) qn_cuda_rmsnorm(stream, &a->norm);
        rest.norm.x = NULL;
    }
    if (!s->manner.gate) rest.activation.out = NULL;
    if (go(s)) qn_cuda_norm_matmul(stream, &rest);
    if (a->activation.out && !s->manner.gate && go(s)) qn_cuda_activation(stream, &a->activation);
}

static qn_rmsnorm_t norm_of(const step_t *s, const void *x, qn_weight_t by, uint32_t rows, void *out)
{
    return (qn_rmsnorm_t){.x = x, .weight = by, .rows = rows, .width = s->model->hidden, .eps = 1e-5f, .out = out};
}

static void project(step_t *s, const layer_t *w, uint32_t t)
{
    const model_shape_t *m = s->model;
    uint32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    multiply(s, &(qn_norm_matmul_t){.norm = norm_of(s, s->x, w->norm, t, s->normed),
                                    .matmul = {.x = s->normed,
                                               .tokens = t,
                                               .inputs = m->hidden,
                                               .part_count = 3,
                                               .parts = {{.weight = w->q, .out = s->q, .outputs = q},
                                                         {.weight = w->k, .out = s->k, .outputs = kv},
                                                         {.weight = w->v, .out = s->v, .outputs = kv}}}});
}

static void attend(step_t *s, uint32_t layer, uint32_t t)
{
    const model_shape_t *m = s->model;
    qn_stream_t *stream = s->timing.stream;
    qn_decode_attention_t a = {
        .rope = {.angles = s->angles,
                 .q = s->q,
                 .k = s->k,
                 .tokens = t,
                 .heads = m->heads,
                 .kv_heads = m->kv_heads,
                 .head_dim = m->head_dim},
        .write = {.kv = s->kv, .layer = layer, .tokens = t, .k = s->k, .v = s->v, .kv_rows = s->kv_rows},
        .attention = {.kv = s->kv,
                      .tables = s->tables,
                      .runs = s->run_list,
                      .run_count = s->runs,
                      .layer = layer,
                      .heads = m->heads,
                      .scale = 1 / sqrtf((float)m->head_dim),
                      .q = s->q,
                      .out = s->attended}};
    if (s->manner.attention && s->tokens == 1) {
        if (go(s)) qn_cuda_decode_attention(stream, &a);
        return;
    }
    if (go(s)) qn_cuda_rope(stream, &a.rope);
    if (go(s)) qn_cuda_kv_write(stream, &a.write);
    if (go(s)) (s->tokens == 1 ? qn_cuda_attention_decode : qn_cuda_attention_prefill)(stream, &a.attention);
}

static void run_layer(step_t *s, uint32_t layer, uint32_t t)
{
    const model_shape_t *m = s->model;
    const layer_t *w = &s->layers[layer];
    project(s, w, t);
    attend(s, layer, t);
    multiply(s, &(qn_norm_matmul_t){
                    .matmul = {.x = s->attended,
                               .tokens = t,
                               .inputs = m->heads * m->head_dim,
                               .part_count = 1,
                               .parts = {{.weight = w->o, .out = s->x, .residual = s->x, .outputs = m->hidden}}}});
    multiply(s, &(qn_norm_matmul_t){
                    .norm = norm_of(s, s->x, w->mlp_norm, t, s->normed),
                    .activation = {.gate = s->gate, .up = s->up, .tokens = t, .width = m->intermediate, .out = s->gate},
                    .matmul = {.x = s->normed,
                               .tokens = t,
                               .inputs = m->hidden,
                               .part_count = 2,
                               .parts = {{.weight = w->gate, .out = s->gate, .outputs = m->intermediate},
                                         {.weight = w->up, .out = s->up, .outputs = m->intermediate}}}});
    multiply(s, &(qn_norm_matmul_t){
                    .matmul = {.x = s->gate,
                               .tokens = t,
                               .inputs = m->intermediate,
                               .part_count = 1,
                               .parts = {{.weight = w->down, .out = s->x, .residual = s->x, .outputs = m->hidden}}}});
}

static void launch_step(void *context, unsigned index)
{
    (void)index;
    step_t *s = context;
    const model_shape_t *m = s->model;
    qn_stream_t *stream = s->timing.stream;
    uint32_t t = s->runs * s->tokens;
    s->launches = 0;
    qn_cuda_step_input(stream, &(qn_step_input_t){.tables = s->tables,
                                                  .runs = s->run_list,
                                                  .run_count = s->runs,
                                                  .ids = s->plan_ids,
                                                  .block_tokens = BLOCK,
                                                  .ret_ids = s->ids,
                                                  .ret_positions = s->positions,
                                                  .ret_kv_rows = s->kv_rows});
    qn_cuda_embedding(stream, &(qn_embedding_t){.table = s->embedding,
                                                .ids = s->ids,
                                                .tokens = t,
                                                .width = m->hidden,
                                                .multiplier = 1,
                                                .out = s->x});
    qn_cuda_rope_angles(stream, &(qn_rope_angles_t){.positions = s->positions,
                                                    .frequencies = s->frequencies,
                                                    .scale = 1,
                                                    .tokens = t,
                                                    .head_dim = m->head_dim,
                                                    .out = s->angles});
    for (uint32_t layer = 0; layer < m->layers; layer++)
        run_layer(s, layer, t);
    if (s->launches > s->most) return;
    qn_cuda_gather_rows(
        stream,
        &(qn_gather_rows_t){.x = s->x, .rows = s->rows, .row_count = s->runs, .width = m->hidden, .out = s->picked});
    multiply(s, &(qn_norm_matmul_t){.norm = norm_of(s, s->picked, s->norm, s->runs, s->normed),
                                    .logits = true,
                                    .matmul = {.x = s->normed,
                                               .tokens = s->runs,
                                               .inputs = m->hidden,
                                               .part_count = 1,
                                               .parts = {{.weight = s->head, .out = s->logits, .outputs = m->vocab}}}});
    qn_cuda_sampler(stream, &(qn_sampler_t){.tables = s->tables,
                                            .samples = s->samples,
                                            .sample_count = s->runs,
                                            .logits = s->logits,
                                            .scratch = s->scratch,
                                            .ret_results = s->results,
                                            .ret_top = s->top});
}

static double layer_weights(const model_shape_t *m)
{
    double q = (double)m->heads * m->head_dim, kv = (double)m->kv_heads * m->head_dim;
    return m->layers * (m->hidden * (2 * q + 2 * kv) + 3.0 * m->hidden * m->intermediate);
}

static double head_weights(const model_shape_t *m) { return (double)m->hidden * m->vocab; }

static double weight_bytes(const model_shape_t *m) { return 2 * (layer_weights(m) + head_weights(m)); }

/* Of a step, as `quintet bench step` counts them: the head is for the last token of each run alone, and a token sees
 * itself and those before it. */
static double operations_of(const step_t *s)
{
    const model_shape_t *m = s->model;
    double tokens = (double)s->runs * s->tokens, seen = s->length - (s->tokens - 1) / 2.0;
    return 2 * (tokens * layer_weights(m) + s->runs * head_weights(m)) +
           4.0 * m->layers * tokens * seen * m->heads * m->head_dim;
}

static void make_step(step_t *s, const model_shape_t *model, uint32_t runs, uint32_t length, uint32_t tokens)
{
    double kv = 4.0 * model->layers * runs * length * model->kv_heads * model->head_dim;
    size_t each =
        (size_t)model->hidden * 8 + (size_t)model->intermediate * 4 + (size_t)model->heads * model->head_dim * 8;
    size_t bytes = (size_t)(weight_bytes(model) * 1.01 + kv * 1.1) + (size_t)runs * tokens * each * 2 +
                   (size_t)runs * model->vocab * 16 + ((size_t)256 << 20);
    *s = (step_t){.model = model, .runs = runs, .tokens = tokens, .length = length, .most = UINT32_MAX};
    timing_make(&s->timing,
                &(qn_cuda_options_t){.activations = QN_SCALAR_BF16,
                                     .dependent_launch = true,
                                     .max_sequences = 256,
                                     .heads = model->heads,
                                     .kv_heads = model->kv_heads,
                                     .head_dim = model->head_dim},
                bytes);
    timing_fill(&s->timing, 0.02f);
    make_weights(s);
    make_state(s);
    make_buffers(s);
}

static void time_manner(step_t *s, const char *note, manner_t manner)
{
    const model_shape_t *m = s->model;
    s->manner = manner;
    double us = timing_run(&s->timing, s->tokens > 1 ? 1 : 4, launch_step, s);
    double kv = 4.0 * m->layers * s->runs * s->length * m->kv_heads * m->head_dim;
    char shape[80];
    snprintf(shape, sizeof shape, "%s N %u len %u %s", m->name, s->runs, s->length, note);
    timing_print("step", shape, us, s->tokens == 1 ? weight_bytes(m) + kv : 0,
                 s->tokens > 1 || s->runs >= 64 ? operations_of(s) : 0);
}

/* What each launch of a layer adds, on average over six layers: a step is cut off after each. */
static void time_launches(step_t *s, const char *note, manner_t manner)
{
    enum { SKIPPED = 2, TIMED = 6, LAUNCHES_MAX = 10 };
    const model_shape_t *m = s->model;
    s->manner = manner;
    launch_step(s, 0);
    must_ok(qn_cuda_stream_wait(s->timing.stream));
    unsigned each = (s->launches - (manner.norm ? 1 : 2)) / m->layers; /* without the final norm and head */
    double sums[LAUNCHES_MAX] = {0}, before = 0;
    s->most = SKIPPED * each;
    before = timing_run(&s->timing, 4, launch_step, s);
    for (unsigned i = 0; i < each * TIMED; i++) {
        s->most++;
        double us = timing_run(&s->timing, 4, launch_step, s);
        sums[i % each] += us - before;
        before = us;
    }
    s->most = UINT32_MAX;
    printf("  a layer's launches, %s N %u %s:", m->name, s->runs, note);
    for (unsigned i = 0; i < each; i++)
        printf(" %.2f", sums[i] / TIMED);
    printf(" us\n");
}

static void time_model(const model_shape_t *model)
{
    static const uint32_t BATCHES[] = {1, 4, 8, 16, 64, 256};
    static step_t s;
    for (unsigned i = 0; i < 6; i++) {
        make_step(&s, model, BATCHES[i], 1024, 1);
        time_manner(&s, "parts", (manner_t){0});
        time_manner(&s, "fused attention", (manner_t){.attention = true});
        if (BATCHES[i] <= 8) time_manner(&s, "fused norm", (manner_t){.norm = true});
        if (BATCHES[i] <= 8) time_manner(&s, "fused gate", (manner_t){.gate = true});
        if (BATCHES[i] <= 8) time_manner(&s, "all fused", (manner_t){true, true, true});
        if (i == 0) time_launches(&s, "all fused", (manner_t){true, true, true});
        if (i == 0 || BATCHES[i] == 64) time_launches(&s, "parts", (manner_t){0});
        timing_free(&s.timing);
    }
}

static void time_prefill(const model_shape_t *model)
{
    static step_t s;
    make_step(&s, model, 1, 8192, 8192);
    time_manner(&s, "prefill", (manner_t){0});
    timing_free(&s.timing);
}

void time_prefills(void)
{
    time_prefill(&LLAMA_1B);
    time_prefill(&LLAMA_8B);
}

void time_steps(void)
{
    time_model(&LLAMA_1B);
    time_model(&LLAMA_8B);
    time_prefills();
}
