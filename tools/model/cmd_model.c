/* What is this?      `quintet model`: what is in a model directory, and would it load?
 * State owned:       none.
 * Must never:        change the directory, or need a running service.
 * Read next:         model_tool.h, model_show.c, model_check.c. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sysexits.h>

#include "common/region/region.h"
#include "tools/cli.h"
#include "tools/model/model_tool.h"

/* ---- shared by both halves ---- */

const char *model_tool_shape_text(const uint64_t *shape, unsigned rank, char *text, size_t capacity)
{
    size_t used = (size_t)snprintf(text, capacity, "[");
    for (unsigned i = 0; i < rank && used < capacity; i++)
        used += (size_t)snprintf(text + used, capacity - used, "%s%" PRIu64, i ? ", " : "", shape[i]);
    if (used < capacity) snprintf(text + used, capacity - used, "]");
    return text;
}

const char *model_tool_bytes_text(uint64_t bytes, char *text, size_t capacity)
{
    static const char *const UNITS[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    size_t unit = 0;
    for (; value >= 1024 && unit < sizeof UNITS / sizeof *UNITS - 1; unit++)
        value /= 1024;
    snprintf(text, capacity, "%.*f %s", unit == 0 ? 0 : value < 10 ? 2 : 1, value, UNITS[unit]);
    return text;
}

qn_err_t model_tool_kv(const qn_config_values_t *values, const model_directory_t *directory, uint64_t weights,
                       model_kv_t *ret_kv)
{
    bool bf16 = qn_config_kv_is_bf16(values);
    kv_size_request_t request = {.block_tokens = (uint32_t)values->memory.block_tokens,
                                 .max_model_len = directory->max_model_len,
                                 .max_model_len_asked = directory->max_model_len_asked,
                                 .max_sequences = (uint32_t)values->scheduler.max_sequences,
                                 .asked_bytes = values->memory.kv_bytes};
    *ret_kv = (model_kv_t){.dtype = bf16 ? "bf16" : "f32"};
    qn_err_t err =
        qn_model_kv_block_bytes(&directory->config, request.block_tokens, bf16 ? 2 : 4, &request.block_bytes);
    if (err) return err;
    ret_kv->token_bytes = request.block_bytes / request.block_tokens;
    request.device = strcmp(values->compute.backend, "cpu") != 0;
    qn_share_t share = request.device ? QN_SHARE_CUDA_IPC : QN_SHARE_MEMFD;
    int32_t device = request.device ? (int32_t)values->compute.device : -1;
    if (request.device)
        request.reserve_bytes = kv_size_compute_bytes(&directory->config, values->scheduler.max_step_tokens,
                                                      values->scheduler.max_sequences);
    err = qn_region_free_bytes(share, device, &ret_kv->free_bytes);
    if (err && request.device) return QN_OK;
    if (!err) err = qn_region_largest_bytes(share, device, &request.largest_bytes);
    if (!err && weights + request.reserve_bytes > ret_kv->free_bytes)
        err = qn_fail(QN_ERR_NO_MEMORY, "the weights need %" PRIu64 " bytes%s, %" PRIu64 " are free", weights,
                      request.device ? " of the GPU, and computing more" : "", ret_kv->free_bytes);
    request.free_bytes = ret_kv->free_bytes - weights;
    return err ? err : kv_size_decide(&request, &ret_kv->size);
}

/* ---- the command ---- */

typedef struct {
    bool json, tensors, quick;
} flags_t;

/* DIR stands for model.path and tokenizer.path, below what --set says; a slash at its end says nothing. */
static int load_config(const qn_config_arguments_t *arguments, const char *directory, qn_config_t **ret_config)
{
    char model[QN_PATH_MAX + 16], tokenizer[QN_PATH_MAX + 16];
    const char *sets[QN_CONFIG_SETS_MAX + 2];
    size_t count = 0;
    if (directory) {
        size_t length = strlen(directory);
        if (length >= QN_PATH_MAX) return cli_usage("the path is longer than %d bytes", QN_PATH_MAX - 1);
        while (length > 1 && directory[length - 1] == '/')
            length--;
        snprintf(model, sizeof model, "model.path=%.*s", (int)length, directory);
        snprintf(tokenizer, sizeof tokenizer, "tokenizer.path=%.*s", (int)length, directory);
        sets[count++] = model;
        sets[count++] = tokenizer;
    }
    for (size_t i = 0; i < arguments->set_count; i++)
        sets[count++] = arguments->sets[i];
    qn_err_t err = qn_config_load(arguments->path, sets, count, arguments->run_dir, ret_config);
    return err ? cli_fail_err(err) : -1;
}

static int check_directory(const char *path)
{
    struct stat info;
    if (path[0] == '\0') return cli_usage("give a model directory: there is no bundled model here");
    if (stat(path, &info) != 0) return cli_fail(EX_NOINPUT, "%s: no such directory", path);
    if (!S_ISDIR(info.st_mode))
        return cli_fail(EX_NOINPUT, "%s is a file; give the Hugging Face directory that holds it", path);
    return -1;
}

static int run(const qn_config_arguments_t *arguments, const flags_t *flags, bool check, const char *directory)
{
    qn_config_t *config = NULL;
    int status = load_config(arguments, directory, &config);
    if (status >= 0) return status;
    const qn_config_values_t *values = qn_config_values(config);
    status = check_directory(values->model.path);
    if (status < 0)
        status = check ? model_tool_check(values, flags->json, flags->quick)
                       : model_tool_show(values, flags->json, flags->tensors);
    qn_config_free(&config);
    return status;
}

int cmd_model(int argc, char **argv)
{
    flags_t flags = {0};
    const cli_option_t options[] = {
        {.name = "json", .letter = 'j', .kind = CLI_FLAG, .value = &flags.json, .help = "answer in JSON"},
        {.name = "tensors", .kind = CLI_FLAG, .value = &flags.tensors, .help = "show: every tensor"},
        {.name = "quick", .kind = CLI_FLAG, .value = &flags.quick, .help = "check: do not read the weights"},
    };
    qn_config_arguments_t arguments;
    const cli_command_t command = {
        .name = "model",
        .arguments = "show [DIR] | check [DIR]",
        .summary = "Describes a Hugging Face model directory, or finds what is wrong with it.",
        .details =
            "show   architecture, shape, tensors, and the memory it takes in each weight format\n"
            "check  everything that would go wrong at load, found without a server\n"
            "\n"
            "DIR is model.path, and tokenizer.path too; without it the configured model is meant.\n"
            "\n"
            "examples:\n"
            "  quintet model show Qwen2.5-0.5B --set model.quantize=int4\n"
            "  quintet model check --quick -j Qwen2.5-0.5B\n"
            "\n"
            "Exit status of check: 0 when nothing fails (there may be warnings), else that of the first\n"
            "failure: 65 damaged or contradictory files, 66 a file is missing, 69 not supported, 71 too little memory,\n"
            "74 unreadable, 78 configuration.\n",
        .options = options,
        .option_count = sizeof options / sizeof options[0],
        .configuration = &arguments,
    };
    int done = cli_parse(&command, &argc, argv);
    if (done >= 0) return done;
    const char *verb = argc > 1 ? argv[1] : "";
    bool check = strcmp(verb, "check") == 0;
    if (argc > 3 || (!check && strcmp(verb, "show") != 0)) return cli_usage("expected show [DIR] or check [DIR]");
    if (check && flags.tensors) return cli_usage("--tensors is for show");
    if (!check && flags.quick) return cli_usage("--quick is for check");
    return run(&arguments, &flags, check, argc > 2 ? argv[2] : NULL);
}
