/* What is this?      What a stream says when the device fails under it.
 * State owned:       a process of its own, whose context nobody needs afterwards.
 * Must never:        run in the process of the other checks: a fault ends a context for good.
 * Read next:         kernels/cuda/stream.cu. */
#include "tests/gpu/check.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned failed(const char *what)
{
    printf("lost device: %s  FAILED\n", what);
    return 1;
}

/* A kernel reads where nothing is; the device is lost to this process. */
unsigned check_lost_in_child(void)
{
    qn_stream_t *stream;
    uint32_t *rows;
    must_ok(qn_cuda_stream_create(&(qn_cuda_options_t){.activations = QN_SCALAR_BF16,
                                                       .max_sequences = 1,
                                                       .heads = 1,
                                                       .kv_heads = 1,
                                                       .head_dim = 32},
                                  &stream));
    must(cudaMalloc((void **)&rows, 4096), "rows");
    must(cudaMemset(rows, 0, 4096), "rows");
    const void *nowhere = (const void *)(uintptr_t)4096;
    qn_cuda_gather_rows(stream,
                        &(qn_gather_rows_t){.x = nowhere, .rows = rows, .row_count = 1, .width = 32, .out = rows});
    qn_err_t first = qn_cuda_stream_wait(stream);
    if (first != QN_ERR_DEVICE) return failed("not an error of the device");
    printf("lost device: \"%s\"  ok\n", qn_err_text());
    bool kept = qn_cuda_stream_error(stream) == first && qn_cuda_stream_wait(stream) == first;
    return kept ? 0 : failed("the error is forgotten");
}

unsigned check_lost(void)
{
    char *arguments[] = {"check_kernels", "lost_in_child", NULL};
    pid_t child;
    int status = 0;
    fflush(stdout);
    if (posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ) || waitpid(child, &status, 0) != child)
        return failed("the process did not start");
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : failed("the process");
}
