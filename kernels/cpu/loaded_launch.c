/* What is this?      Launches of kernels from shared objects: arguments translated to plugin.h, items dealt to the threads.
 * State owned:       none (qn_loaded_grain is for checks).
 * Must never:        show an object what plugin.h does not promise.
 * Read next:         kernels/plugin.h, loaded.c.
 *
 * A launch gets no word about which row it is of, so there is one function for each operation and place of a loaded
 * kernel; they are made by macros. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/loaded_internal.h"
#include "kernels/weight_layout.h"

#define RUNS_MAX 64 /* translated at a time */

size_t qn_loaded_grain = 0;

typedef struct {
    const qn_plugin_kernel_t *kernel;
    const void *arguments;
} call_t;

static void run_items(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const call_t *call = arguments;
    call->kernel->run(call->arguments, (uint32_t)begin, (uint32_t)(end - begin));
}

static void deal(qn_stream_t *stream, const qn_plugin_kernel_t *kernel, const void *arguments, size_t items,
                 size_t cost)
{
    size_t grain = qn_loaded_grain ? qn_loaded_grain : qn_grain(cost);
    qn_cpu_split(stream, items, grain, run_items, &(call_t){kernel, arguments});
}

static uint32_t format_of(qn_scalar_t scalar) { return 1u << scalar; }
_Static_assert(1u << QN_SCALAR_F32 == QN_PLUGIN_F32 && 1u << QN_SCALAR_BF16 == QN_PLUGIN_BF16 &&
                   1u << QN_SCALAR_INT8 == QN_PLUGIN_INT8 && 1u << QN_SCALAR_INT4 == QN_PLUGIN_INT4,
               "formats are bits of scalars");
_Static_assert((unsigned)QN_ACTIVATION_SILU == QN_PLUGIN_SILU &&
                   (unsigned)QN_ACTIVATION_GELU_TANH == QN_PLUGIN_GELU_TANH &&
                   (unsigned)QN_ACTIVATION_GELU == QN_PLUGIN_GELU && (unsigned)QN_ACTIVATION_RELU == QN_PLUGIN_RELU,
               "kinds are those of activation.h");

/* ---- an operation each ---- */

static void launch_rmsnorm(const qn_plugin_kernel_t *kernel, qn_stream_t *stream, const void *arguments)
{
    const qn_rmsnorm_t *a = arguments;
    qn_plugin_rmsnorm_t to = {.x = a->x,
                              .weight = a->weight.data,
                              .residual = a->residual,
                              .out = a->out,
                              .width = a->width,
                              .format = format_of(a->weight.scalar),
                              .eps = a->eps,
                              .weight_offset = a->weight_offset};
    deal(stream, kernel, &to, a->rows, 4 * (size_t)a->width);
}

static void launch_layernorm(const qn_plugin_kernel_t *kernel, qn_stream_t *stream, const void *arguments)
{
    const qn_layernorm_t *a = arguments;
    qn_plugin_layernorm_t to = {.x = a->x,
                                .weight = a->weight.data,
                                .bias = a->bias.data,
                                .out = a->out,
                                .width = a->width,
                                .format = format_of(a->weight.scalar),
                                .eps = a->eps};
    deal(stream, kernel, &to, a->rows, 6 * (size_t)a->width);
}

static void launch_activation(const qn_plugin_kernel_t *kernel, qn_stream_t *stream, const void *arguments)
{
    const qn_activate_t *a = arguments;
    qn_plugin_activation_t to = {
        .gate = a->gate, .up = a->up, .out = a->out, .width = a->width, .kind = (uint32_t)a->kind};
    deal(stream, kernel, &to, a->tokens, 20 * (size_t)a->width);
}

static void launch_softcap(const qn_plugin_kernel_t *kernel, qn_stream_t *stream, const void *arguments)
{
    const qn_softcap_t *a = arguments;
    qn_plugin_softcap_t to = {.x = a->x, .width = a->width, .cap = a->cap};
    deal(stream, kernel, &to, a->rows, 20 * (size_t)a->width);
}

static void launch_matmul(const qn_plugin_kernel_t *kernel, qn_stream_t *stream, const void *arguments)
{
    const qn_matmul_t *a = arguments;
    for (uint32_t p = 0; p < a->part_count; p++) {
        const qn_matmul_part_t *part = &a->parts[p];
        const qn_weight_t *weight = &part->weight;
        QN_ASSERT(weight->layout == QN_LAYOUT_PANELS);
        qn_plugin_matmul_t to = {.x = a->x,
                                 .weight = weight->data,
                                 .bias = part->bias.data,
                                 .residual = part->residual,
                                 .out = part->out,
                                 .panel_bytes = qn_panel_bytes(weight->scalar, weight->group, a->inputs),
                                 .tokens = a->tokens,
                                 .inputs = a->inputs,
                                 .outputs = part->outputs,
                                 .format = format_of(weight->scalar),
                                 .bias_format = part->bias.data ? format_of(part->bias.scalar) : 0,
                                 .group = weight->group};
        deal(stream, kernel, &to, qn_panel_count(part->outputs), (size_t)a->tokens * a->inputs * QN_PANEL_ROWS);
    }
}

static void launch_attention(const qn_plugin_kernel_t *kernel, qn_stream_t *stream, const void *arguments)
{
    const qn_attention_t *a = arguments;
    size_t scalar = qn_scalar_bytes(a->kv.scalar);
    const char *kv = a->kv.data;
    for (uint32_t done = 0; done < a->run_count; done += RUNS_MAX) {
        qn_plugin_run_t runs[RUNS_MAX];
        uint32_t count = a->run_count - done < RUNS_MAX ? a->run_count - done : RUNS_MAX;
        for (uint32_t i = 0; i < count; i++) {
            const qn_run_t *from = &a->runs[done + i];
            runs[i] = (qn_plugin_run_t){from->position, from->tokens, from->first,
                                        a->tables.block_tables + (size_t)from->slot * a->tables.table_blocks};
        }
        qn_plugin_attention_t to = {.q = a->q,
                                    .keys = kv + scalar * qn_kv_offset(&a->kv, a->layer, 0, 0, 0),
                                    .values = kv + scalar * qn_kv_offset(&a->kv, a->layer, 1, 0, 0),
                                    .out = a->out,
                                    .runs = runs,
                                    .heads = a->heads,
                                    .kv_heads = a->kv.kv_heads,
                                    .head_dim = a->kv.head_dim,
                                    .block_tokens = a->kv.block_tokens,
                                    .window = a->window,
                                    .format = format_of(a->kv.scalar),
                                    .scale = a->scale,
                                    .softcap = a->softcap};
        deal(stream, kernel, &to, (size_t)count * a->heads, 20000);
    }
}

/* ---- a function for each operation and place ---- */

#define EIGHT(X, op, a, b, c, d, e, f, g, h) X(op, a) X(op, b) X(op, c) X(op, d) X(op, e) X(op, f) X(op, g) X(op, h)
#define PLACES(X, op)                    \
    EIGHT(X, op, 0, 1, 2, 3, 4, 5, 6, 7) \
    EIGHT(X, op, 8, 9, 10, 11, 12, 13, 14, 15) EIGHT(X, op, 16, 17, 18, 19, 20, 21, 22, 23)
#define LAUNCH(op, place)                                                \
    static void op##_##place(qn_stream_t *stream, const void *arguments) \
    {                                                                    \
        launch_##op(&qn_loaded[place].kernel, stream, arguments);        \
    }
#define NAME(op, place) op##_##place,

PLACES(LAUNCH, rmsnorm)
PLACES(LAUNCH, layernorm)
PLACES(LAUNCH, activation)
PLACES(LAUNCH, softcap)
PLACES(LAUNCH, matmul)
PLACES(LAUNCH, attention)

typedef void (*launch_t)(qn_stream_t *stream, const void *arguments);

void (*qn_loaded_launch(qn_op_t op, size_t place))(qn_stream_t *stream, const void *arguments)
{
    static const launch_t RMSNORM[] = {PLACES(NAME, rmsnorm)}, LAYERNORM[] = {PLACES(NAME, layernorm)},
                          ACTIVATION[] = {PLACES(NAME, activation)}, SOFTCAP[] = {PLACES(NAME, softcap)},
                          MATMUL[] = {PLACES(NAME, matmul)}, ATTENTION[] = {PLACES(NAME, attention)};
    _Static_assert(sizeof RMSNORM / sizeof *RMSNORM == QN_LOADED_KERNELS_MAX, "a function for every place");
    switch (op) {
    case QN_OP_RMSNORM: return RMSNORM[place];
    case QN_OP_LAYERNORM: return LAYERNORM[place];
    case QN_OP_ACTIVATION: return ACTIVATION[place];
    case QN_OP_SOFTCAP: return SOFTCAP[place];
    case QN_OP_MATMUL: return MATMUL[place];
    case QN_OP_ATTENTION_PREFILL:
    case QN_OP_ATTENTION_DECODE: return ATTENTION[place];
    default: return NULL;
    }
}

static bool accepts(size_t place, const qn_kernel_case_t *shape)
{
    const qn_plugin_kernel_t *kernel = &qn_loaded[place].kernel;
    qn_plugin_shape_t to = {.heads = shape->heads,
                            .kv_heads = shape->kv_heads,
                            .head_dim = shape->head_dim,
                            .hidden = shape->hidden,
                            .intermediate = shape->intermediate,
                            .vocab = shape->vocab,
                            .block_tokens = shape->block_tokens};
    return shape->activations == QN_SCALAR_F32 && (!kernel->accepts || kernel->accepts(&to));
}

#define ACCEPTS(op, place) \
    static bool op##_##place(const qn_kernel_case_t *shape) { return accepts(place, shape); }
PLACES(ACCEPTS, accepts)

bool (*qn_loaded_accepts(size_t place))(const qn_kernel_case_t *shape)
{
    static bool (*const ACCEPTS_OF[])(const qn_kernel_case_t *) = {PLACES(NAME, accepts)};
    return ACCEPTS_OF[place];
}
