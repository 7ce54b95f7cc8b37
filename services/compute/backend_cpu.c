/* What is this?      The CPU as a backend: regions are host memory, so copies are memcpy and launches have ended
 *                    when they return.
 * State owned:       none; streams and memory are their holder's.
 * Must never:        differ from other backends in what a caller may rely on.
 * Read next:         backend.h, kernels/cpu/stream.c. */
#include "services/compute/backend.h"

#include <stdlib.h>
#include <string.h>

static qn_err_t choose_kernels(const char *choice, const qn_kernel_case_t *shape, qn_kernel_set_t *ret_set)
{
    return qn_kernels_choose(choice, shape, qn_kernels_isa(), ret_set);
}

static qn_err_t stream_create(const backend_stream_options_t *options, qn_stream_t **ret_stream)
{
    return qn_stream_create(&(qn_stream_options_t){ .threads = options->threads, .nice = options->nice }, ret_stream);
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

const backend_t *backend_cpu(void)
{
    static const backend_t CPU = {
        .name = "cpu", .choose_kernels = choose_kernels, .stream_create = stream_create,
        .stream_destroy = qn_stream_destroy, .stream_wait = qn_stream_wait, .upload = copy, .download = copy,
        .host_create = host_create, .host_destroy = host_destroy,
    };
    return &CPU;
}
