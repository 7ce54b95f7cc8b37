/* What is this?      The CPU as a backend: regions are host memory, so copies are memcpy and launches have ended
 *                    when they return.
 * State owned:       none; streams and memory are their holder's.
 * Must never:        differ from other backends in what a caller may rely on.
 * Read next:         backend.h, kernels/cpu/stream.c. */
#include "services/compute/backend/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/compute/worker/step.h"

static qn_err_t check(int device)
{
    (void)device;
    return QN_OK;
}

static void describe(const qn_stream_t *stream, int device, char *ret_text, size_t size)
{
    (void)device;
    snprintf(ret_text, size, "%u threads", qn_stream_threads(stream));
}

static bool asks_bf16(const char *activations) { return strcmp(activations, "bf16") == 0; }

/* Between the kernels of this backend there is f32. bf16 means that products round it on their way in, which the dot
 * instruction for bf16 needs, and bf16 weights in panels; all else is refused, since it would change nothing. */
static qn_err_t choose_activations(const char *choice, const qn_weight_t *weights, qn_scalar_t *ret_scalar)
{
    const uint32_t needed = QN_ISA_AVX512 | QN_ISA_AVX512_BF16;
    if (asks_bf16(choice) && (qn_kernels_isa() & needed) != needed)
        return qn_fail(QN_ERR_CONFIG, "compute.activations is bf16, but this CPU has no instructions for it "
                                      "(AVX512-BF16): use auto or f32");
    if (asks_bf16(choice) && weights && (weights->scalar != QN_SCALAR_BF16 || weights->layout != QN_LAYOUT_PANELS))
        return qn_fail(QN_ERR_CONFIG,
                       "compute.activations is bf16, but the weights are %s in %s, and the CPU has such products for "
                       "bf16 in panels only: use auto or f32",
                       qn_scalar_name(weights->scalar), weights->layout == QN_LAYOUT_PANELS ? "panels" : "rows");
    *ret_scalar = QN_SCALAR_F32;
    return QN_OK;
}

/* "matmul=..." at the beginning of a word, or "reference" at the beginning, which names all. */
static bool names_product(const char *choice, qn_op_t op)
{
    const char *name = qn_op_name(op);
    size_t length = strlen(name);
    if (strncmp(choice, "reference", 9) == 0 && (choice[9] == '\0' || choice[9] == ',')) return true;
    for (const char *at = choice; *at; at += strcspn(at, ","), at += *at == ',')
        if (strncmp(at, name, length) == 0 && at[length] == '=') return true;
    return false;
}

/* What is asked for by name must be what compute.activations means: of two wishes none is dropped. */
static qn_err_t choose_kernels(const char *choice, const char *activations, const qn_kernel_case_t *shape, int device,
                               qn_kernel_set_t *ret_set)
{
    (void)device;
    static const char BF16[] = "matmul=avx512bf16,expert_matmul=avx512bf16";
    if (!asks_bf16(activations)) return qn_kernels_choose(choice, shape, qn_kernels_isa(), ret_set);
    qn_kernel_set_t dots, asked;
    qn_err_t err = qn_kernels_choose(BF16, shape, qn_kernels_isa(), &dots);
    if (!err) err = qn_kernels_choose(choice, shape, qn_kernels_isa(), &asked);
    if (err) return err;
    for (unsigned op = 0; op < QN_OP_COUNT; op++) {
        bool product = op == QN_OP_MATMUL || op == QN_OP_EXPERT_MATMUL || op == QN_OP_NORM_MATMUL;
        if (product && names_product(choice, (qn_op_t)op) && asked.chosen[op] != dots.chosen[op])
            return qn_fail(QN_ERR_CONFIG,
                           "compute.activations is bf16, but compute.kernels names another %s than avx512bf16: leave "
                           "one of the two out",
                           qn_op_name((qn_op_t)op));
        if (product) asked.chosen[op] = dots.chosen[op];
    }
    *ret_set = asked;
    return QN_OK;
}

static const qn_kernel_t *kernels(int device, size_t *ret_count, uint32_t *ret_isa)
{
    (void)device;
    *ret_isa = qn_kernels_isa();
    return qn_kernels(ret_count);
}

static qn_err_t stream_create(const backend_stream_options_t *options, qn_stream_t **ret_stream)
{
    return qn_stream_create(&(qn_stream_options_t){.threads = options->threads, .nice = options->nice}, ret_stream);
}

static void copy(qn_stream_t *stream, void *to, const void *from, size_t bytes)
{
    (void)stream;
    if (bytes) memcpy(to, from, bytes);
}

static qn_err_t host_create(size_t bytes, void **ret_memory)
{
    if (bytes > SIZE_MAX - 64) return qn_fail(QN_ERR_LIMIT, "a host buffer of %zu bytes", bytes);
    void *memory = aligned_alloc(64, bytes / 64 * 64 + 64);
    if (!memory) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a host buffer of %zu bytes", bytes);
    *ret_memory = memory;
    return QN_OK;
}

static void host_destroy(void **memory)
{
    free(*memory);
    *memory = NULL;
}

/* Nothing is ever under way, so a mark is passed when it is set; one byte tells marks apart. */
struct backend_mark {
    char unused;
};

static qn_err_t mark_create(backend_mark_t **ret_mark)
{
    *ret_mark = malloc(sizeof **ret_mark);
    return *ret_mark ? QN_OK : qn_fail(QN_ERR_NO_MEMORY, "no memory for a mark");
}

static void mark_destroy(backend_mark_t **mark)
{
    free(*mark);
    *mark = NULL;
}

static void mark_set(qn_stream_t *stream, backend_mark_t *mark)
{
    (void)stream;
    (void)mark;
}

static bool mark_passed(qn_stream_t *stream, const backend_mark_t *mark)
{
    (void)stream;
    (void)mark;
    return true;
}

const backend_t *backend_cpu(void)
{
    static const backend_t CPU = {
        .name = "cpu",
        .synchronous = true,
        .steps_in_flight = 1,
        .logit_rows = STEP_LOGIT_ROWS,
        .chunks_are_decodes = true,
        .check = check,
        .describe = describe,
        .choose_activations = choose_activations,
        .choose_kernels = choose_kernels,
        .kernels = kernels,
        .stream_create = stream_create,
        .stream_destroy = qn_stream_destroy,
        .stream_wait = qn_stream_wait,
        .stream_error = qn_stream_wait,
        .stream_threads = qn_stream_threads,
        .upload = copy,
        .download = copy,
        .host_create = host_create,
        .host_destroy = host_destroy,
        .mark_create = mark_create,
        .mark_destroy = mark_destroy,
        .mark_set = mark_set,
        .mark_passed = mark_passed,
    };
    return &CPU;
}
