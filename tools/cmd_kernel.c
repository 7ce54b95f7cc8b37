/* What is this?      `quintet kernel check`: a shared object with kernels against the reference, in this process.
 * State owned:       none.
 * Must never:        be run inside a service: the object may be wrong in any way.
 * Read next:         kernels/plugin.h, services/compute/kernels/object_check.h. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sysexits.h>
#include <unistd.h>

#include "services/compute/kernels/object_check.h"
#include "services/compute/kernels/object_file.h"
#include "tools/cli.h"

typedef struct {
    bool lines;
} report_t;

static void begins(void *context, const char *what)
{
    const report_t *report = context;
    if (!report->lines) return;
    printf("begin %s\n", what);
    fflush(stdout); /* before the object's code runs */
}

static void right(void *context, const qn_kernel_t *kernel, unsigned cases, double worst_error)
{
    const report_t *report = context;
    if (report->lines)
        printf("right %s=%s %u %.3g\n", qn_op_name(kernel->op), kernel->name, cases, worst_error);
    else
        printf("%s=%s is right: %u cases, greatest relative error %.2g\n", qn_op_name(kernel->op), kernel->name, cases,
               worst_error);
    fflush(stdout);
}

/* "heads,kv_heads,head_dim,hidden,intermediate,vocab,block_tokens". */
static bool read_shape(const char *text, qn_kernel_case_t *ret_shape)
{
    char rest;
    *ret_shape = (qn_kernel_case_t){.activations = QN_SCALAR_F32};
    qn_kernel_case_t *s = ret_shape;
    return sscanf(text, "%u,%u,%u,%u,%u,%u,%u%c", &s->heads, &s->kv_heads, &s->head_dim, &s->hidden, &s->intermediate,
                  &s->vocab, &s->block_tokens, &rest) == 7 &&
           s->heads && s->kv_heads && s->head_dim && s->hidden && s->intermediate && s->vocab && s->block_tokens;
}

static int check(const char *path, uint64_t given_fd, const qn_kernel_case_t *shape, report_t *report)
{
    object_file_t file = {.fd = (int)given_fd};
    object_check_t options = {.shape = shape, .begins = begins, .right = right, .context = report};
    char directory[QN_PATH_MAX];
    qn_err_t err = QN_OK;
    if (!given_fd) {
        const char *slash = strrchr(path, '/');
        int length = slash ? (int)(slash - path) : 1;
        snprintf(directory, sizeof directory, "%.*s", length ? length : 1, slash ? path : ".");
        err = object_file_open(directory, path, &file);
    }
    if (!err) err = object_check(file.fd, path, &options);
    if (err && report->lines) printf("wrong %s\n", qn_err_text());
    if (!err && report->lines) printf("done\n");
    fflush(stdout);
    return err ? cli_fail(EX_DATAERR, "%s", qn_err_text()) : EX_OK;
}

int cmd_kernel(int argc, char **argv)
{
    report_t report = {false};
    uint64_t fd = 0;
    const char *sizes = NULL;
    const cli_option_t options[] = {
        {"lines", 0, CLI_FLAG, &report.lines, NULL, NULL, "what it does and finds, a line each, for programs", 0, 0},
        {"fd", 0, CLI_COUNT, &fd, NULL, "N", "the object is open here; PATH is its name only", 3, 1023},
        {"shape", 0, CLI_TEXT, &sizes, NULL, "H,K,D,E,F,V,P",
         "a model's heads, kv heads, head dimension, width, width of its MLP, vocabulary, block size, too", 0, 0},
    };
    const cli_command_t command = {
        .name = "kernel",
        .arguments = "check [OPTION]... PATH",
        .summary = "Checks the kernels of a shared object against the reference, over shapes of all kinds.",
        .details =
            "The object's code runs in this process: a kernel that crashes ends it. Exit status 65 when one is wrong.\n\n"
            "example:\n  quintet kernel check build/kernels/example_rmsnorm.so",
        .options = options,
        .option_count = sizeof options / sizeof *options,
    };
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (argc != 3 || strcmp(argv[1], "check") != 0) return cli_usage("quintet kernel check PATH");
    qn_kernel_case_t shape;
    if (sizes && !read_shape(sizes, &shape))
        return cli_usage("--shape wants seven numbers from 1 on, not \"%s\"", sizes);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    static const int CRASHES[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    for (size_t i = 0; i < sizeof CRASHES / sizeof *CRASHES; i++)
        signal(CRASHES[i], SIG_DFL); /* a crash is to be seen as one, whatever watches this build */
    return check(argv[2], fd, sizes ? &shape : NULL, &report);
}
