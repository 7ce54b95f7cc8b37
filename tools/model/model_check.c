/* What is this?      `quintet model check`: examines a model directory and tells all that is wrong with it at once.
 * State owned:       the findings.
 * Must never:        stop at the first problem when the next can still be found.
 * Read next:         model_scan.c; services/memory/weights/weights.c, which refuses the same things at load one by one. */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "common/file.h"
#include "services/memory/weights/weights.h"
#include "services/memory/weights/weights_source.h"
#include "services/tokenizer/tokenizer.h"
#include "tools/cli.h"
#include "tools/findings.h"
#include "tools/model/model_tool.h"

#define NAMED_MAX 6 /* tensors or files of one kind that are named; the rest is counted */

typedef struct {
    const qn_config_values_t *values;
    const char *path;
    findings_t findings;
    bool config_good;
    qn_model_config_t config;
    model_directory_t *directory; /* NULL: config.json, generation_config.json or the configuration is at fault */
    safetensors_t *checkpoint;    /* NULL: cannot be opened */
    qn_model_warnings_t warnings; /* of the checkpoint */
} check_t;

#define DOWNLOAD_AGAIN "download the file again, and compare its size and SHA-256 with those of its web page"

#define add(check, ...) findings_add(&(check)->findings, __VA_ARGS__)

static void add_err(check_t *check, qn_err_t err, const char *name, const char *remedy)
{
    add(check, FINDING_FAIL, err, name, remedy, "%s", qn_err_text());
}

/* ---- configuration ---- */

static const char *remedy_of_config(qn_err_t err)
{
    if (err == QN_ERR_NOT_FOUND) return "give the directory that holds config.json";
    if (err == QN_ERR_UNSUPPORTED) return "choose a model of an architecture and with features that are supported";
    return "mend what is named, or get config.json again from where the model is published";
}

static void check_config(check_t *check)
{
    char path[QN_PATH_MAX + 32], *text = NULL;
    size_t bytes;
    snprintf(path, sizeof path, "%s/config.json", check->path);
    qn_err_t err = qn_file_read(path, MODEL_DIRECTORY_TEXT_MAX, &text, &bytes);
    if (err == QN_ERR_NOT_FOUND) {
        add(check, FINDING_FAIL, err, "config", remedy_of_config(err), "%s is missing", path);
        return;
    }
    if (!err) err = qn_model_config_parse(text, bytes, NULL, 0, NULL, &check->config);
    if (err) {
        add_err(check, err, "config", remedy_of_config(err));
    } else {
        check->config_good = true;
        add(check, FINDING_OK, QN_OK, "config", NULL,
            "%s, %" PRIu32 " layers of width %" PRIu32 ", vocabulary %" PRIu32, check->config.architecture_name,
            check->config.layers, check->config.hidden, check->config.vocab);
    }
    free(text);
}

/* generation_config.json and what the configuration asks for: as memory reads them. */
static void check_directory(check_t *check)
{
    if (!check->config_good) return;
    qn_err_t err = model_directory_read(check->values, &check->directory);
    if (err == QN_ERR_CONFIG) {
        add_err(check, err, "length", "lower model.max_model_len, or leave it at 0");
        return;
    }
    if (err) {
        add_err(check, err, "generation", "mend or remove generation_config.json");
        return;
    }
    check->config = check->directory->config;
    if (check->config.eos_count == 0)
        add(check, FINDING_WARN, QN_OK, "generation", "add eos_token_id to generation_config.json",
            "no end token is known: answers end at max_tokens only");
    else
        add(check, FINDING_OK, QN_OK, "generation", NULL,
            "%" PRIu32 " end token%s, first %" PRIu32 "; up to %" PRIu32 " tokens a sequence", check->config.eos_count,
            check->config.eos_count == 1 ? "" : "s", check->config.eos[0], check->directory->max_model_len);
}

/* ---- files ---- */

/* A git clone without git-lfs leaves small texts where the large files should be. */
static bool is_lfs_pointer(const char *path)
{
    static const char BEGIN[] = "version https://git-lfs";
    char text[sizeof BEGIN] = "";
    int fd;
    uint64_t size;
    if (qn_file_open(AT_FDCWD, path, path, &fd, &size)) return false;
    ssize_t bytes = read(fd, text, sizeof BEGIN - 1);
    close(fd);
    return bytes == sizeof BEGIN - 1 && memcmp(text, BEGIN, sizeof BEGIN - 1) == 0;
}

static bool ends_in(const char *name, const char *end)
{
    size_t length = strlen(name), tail = strlen(end);
    return length >= tail && strcmp(name + length - tail, end) == 0;
}

static bool is_weights_name(const char *name) { return ends_in(name, ".safetensors"); }
static bool is_tokenizer_name(const char *name) { return strcmp(name, "tokenizer.json") == 0; }
static bool is_other_weights_name(const char *name)
{
    return ends_in(name, ".bin") || ends_in(name, ".pth") || ends_in(name, ".gguf");
}

/* How many entries have such a name. */
static size_t count_names(const check_t *check, bool (*matches)(const char *name))
{
    size_t count = 0;
    DIR *directory = opendir(check->path);
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        count += matches(entry->d_name);
    if (directory) closedir(directory);
    return count;
}

/* Adds a failure for each pointer of such a name, as far as they are named; returns how many. */
static size_t name_pointers(check_t *check, bool (*matches)(const char *name))
{
    char path[QN_PATH_MAX + 300];
    size_t pointers = 0;
    DIR *directory = opendir(check->path);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        snprintf(path, sizeof path, "%s/%s", check->path, entry->d_name);
        if (!matches(entry->d_name) || !is_lfs_pointer(path) || pointers++ >= NAMED_MAX) continue;
        add(check, FINDING_FAIL, QN_ERR_INVALID, "files", "fetch the contents: git lfs pull, or hf download",
            "%s is a Git LFS pointer, not the file itself", path);
    }
    if (directory) closedir(directory);
    return pointers;
}

static const char *remedy_of_weights(qn_err_t err)
{
    if (err == QN_ERR_NOT_FOUND) return "download the .safetensors files, or set model.load_format to dummy";
    return "mend what is named, or download it again and compare its size and SHA-256 with those of its web page";
}

static void open_weights(check_t *check)
{
    if (strcmp(check->values->model.load_format, "dummy") == 0) {
        add(check, FINDING_OK, QN_OK, "weights", NULL, "model.load_format is dummy: random numbers from model.seed");
        return;
    }
    qn_err_t err = safetensors_open(check->path, &check->checkpoint);
    if (err) {
        if (name_pointers(check, is_weights_name)) return;
        if (err == QN_ERR_NOT_FOUND && count_names(check, is_other_weights_name) &&
            !count_names(check, is_weights_name))
            add(check, FINDING_FAIL, err, "weights",
                "convert them with transformers: model.save_pretrained(DIR, safe_serialization=True)",
                "%s has weights, but none in .safetensors files", check->path);
        else
            add_err(check, err, "weights", remedy_of_weights(err));
        return;
    }
    uint64_t bytes = 0;
    char text[32];
    size_t files = safetensors_file_count(check->checkpoint);
    for (unsigned i = 0; i < files; i++)
        bytes += safetensors_file_bytes(check->checkpoint, i);
    add(check, FINDING_OK, QN_OK, "weights", NULL, "%zu tensors in %zu file%s, %s",
        safetensors_count(check->checkpoint), files, files == 1 ? "" : "s",
        model_tool_bytes_text(bytes, text, sizeof text));
}

/* ---- tensors ---- */

typedef struct {
    size_t missing, misshapen, unsupported;
} bad_tensors_t;

static void check_tensor(check_t *check, const qn_model_tensor_t *wanted, bad_tensors_t *bad)
{
    char has[200], means[64];
    uint64_t shape[2];
    const safetensors_tensor_t *found = weights_source_find(check->checkpoint, &check->config, wanted);
    if (!found) {
        bool head = wanted->role == QN_TENSOR_HEAD;
        if (bad->missing++ < NAMED_MAX)
            add(check, FINDING_FAIL, QN_ERR_INVALID, "tensors",
                head ? "the checkpoint may tie its head: then set \"tie_word_embeddings\" to true in config.json"
                     : "get the whole checkpoint; config.json must be of the same model",
                "tensor %s is missing; %s needs it", wanted->source, check->config.architecture_name);
        return;
    }
    const char *file = safetensors_file_path(check->checkpoint, found->file_index);
    weights_source_shape(wanted, shape);
    if (found->rank != wanted->rank || memcmp(found->shape, shape, wanted->rank * sizeof *shape) != 0) {
        if (bad->misshapen++ < NAMED_MAX)
            add(check, FINDING_FAIL, QN_ERR_INVALID, "tensors", "use the config.json that belongs to this checkpoint",
                "%s: tensor %s is %s, config.json means %s", file, found->name,
                model_tool_shape_text(found->shape, found->rank, has, sizeof has),
                model_tool_shape_text(shape, wanted->rank, means, sizeof means));
    } else if (!weights_source_readable(found->dtype) && bad->unsupported++ < NAMED_MAX) {
        add(check, FINDING_FAIL, QN_ERR_UNSUPPORTED, "tensors",
            "use a checkpoint in F64, F32, BF16 or F16; model.quantize "
            "makes int8 or int4 of it at load",
            "%s: tensor %s has dtype %s", file, found->name, safetensors_dtype_name(found->dtype));
    }
}

/* What is missing because whole files are: those are named, not what was in them. */
static bool files_are_missing(check_t *check)
{
    char absent[300];
    qn_model_tensor_t wanted;
    size_t files = safetensors_absent(check->checkpoint, absent, sizeof absent);
    for (size_t i = 0; files && i < qn_model_tensor_count(&check->config); i++) {
        qn_model_tensor_at(&check->config, i, &wanted);
        if (weights_source_find(check->checkpoint, &check->config, &wanted)) continue;
        add(check, FINDING_FAIL, QN_ERR_NOT_FOUND, "weights", "download what is missing",
            "%zu of the %zu files that hold the weights are missing: %s", files,
            files + safetensors_file_count(check->checkpoint), absent);
        return true;
    }
    return false;
}

static bool check_tensors(check_t *check)
{
    bad_tensors_t bad = {0};
    if (files_are_missing(check)) return false;
    qn_err_t err = weights_source_settle(check->checkpoint, &check->config, &check->warnings);
    if (err) {
        add_err(check, err, "tensors", "use the config.json that belongs to this checkpoint");
        return false;
    }
    size_t count = qn_model_tensor_count(&check->config);
    for (size_t i = 0; i < count; i++) {
        qn_model_tensor_t wanted;
        qn_model_tensor_at(&check->config, i, &wanted);
        check_tensor(check, &wanted, &bad);
    }
    size_t all = bad.missing + bad.misshapen + bad.unsupported;
    if (all == 0)
        add(check, FINDING_OK, QN_OK, "tensors", NULL, "all %zu are there with their shapes", count);
    else if (bad.missing > NAMED_MAX || bad.misshapen > NAMED_MAX || bad.unsupported > NAMED_MAX)
        add(check, FINDING_FAIL, QN_ERR_INVALID, "tensors", "get config.json and the whole checkpoint from one place",
            "of %zu tensors %zu are missing, %zu misshapen, %zu of an unsupported dtype; the first of each are named",
            count, bad.missing, bad.misshapen, bad.unsupported);
    return all == 0;
}

/* ---- memory ---- */

static qn_err_t plan(const check_t *check, weights_t **ret_weights)
{
    weights_format_t format;
    qn_err_t err = weights_format_choose(check->values, &format);
    if (err) return err;
    if (!check->checkpoint) return weights_plan_dummy(&check->config, check->values->model.seed, &format, ret_weights);
    return weights_plan(check->path, &check->config, &format, ret_weights);
}

static const char *remedy_of_memory(qn_err_t err)
{
    if (err == QN_ERR_NO_MEMORY) return "free memory, or set model.quantize to int8 or int4";
    if (err == QN_ERR_CONFIG || err == QN_ERR_LIMIT) return "change the configuration";
    return DOWNLOAD_AGAIN;
}

static void check_memory(check_t *check)
{
    weights_t *weights = NULL;
    model_kv_t kv = {0};
    char needs[32], cache[32], has[32];
    qn_err_t err = plan(check, &weights);
    if (!err) check->warnings = *weights_warnings(weights);
    if (!err) err = model_tool_kv(check->values, check->directory, weights_bytes(weights), &kv);
    if (err) {
        add_err(check, err, "memory", remedy_of_memory(err));
    } else {
        uint32_t length = check->directory->max_model_len;
        bool lowered = kv.size.block_count && kv.size.max_model_len < length;
        model_tool_bytes_text(weights_bytes(weights), needs, sizeof needs);
        model_tool_bytes_text(kv.size.bytes, cache, sizeof cache);
        model_tool_bytes_text(kv.free_bytes, has, sizeof has);
        if (kv.free_bytes == 0)
            add(check, FINDING_WARN, QN_OK, "memory", NULL,
                "weights %s in GPU memory, which cannot be looked at here: %s", needs, qn_err_text());
        else
            add(check, FINDING_OK, QN_OK, "memory", NULL, "weights %s and KV cache %s of %s free", needs, cache, has);
        if (lowered)
            add(check, FINDING_WARN, QN_OK, "length", "raise memory.kv_bytes, or set memory.kv_dtype to bf16",
                "the KV cache holds %" PRIu32 " of the %" PRIu32 " tokens the model can do", kv.size.max_model_len,
                length);
    }
    weights_destroy(&weights);
}

/* ---- numbers ---- */

typedef struct {
    uint64_t read, all;
    size_t bad, zero;
    bool visible;
    int percent;
} progress_t;

static void show_progress(progress_t *progress)
{
    int percent = progress->all ? (int)(progress->read * 100 / progress->all) : 100;
    if (!progress->visible || percent == progress->percent) return;
    progress->percent = percent;
    fprintf(stderr, "\rreading the weights: %d %%%s", percent, percent == 100 ? "\r\033[K" : "");
}

static qn_err_t check_numbers_of(check_t *check, const safetensors_tensor_t *tensor, progress_t *progress)
{
    model_scan_t scan;
    qn_err_t err = model_tool_scan(check->checkpoint, tensor, &scan);
    if (err) return err;
    const char *file = safetensors_file_path(check->checkpoint, tensor->file_index);
    progress->read += tensor->bytes;
    show_progress(progress);
    uint64_t width = tensor->rank == 2 && tensor->shape[1] ? tensor->shape[1] : 1;
    if (scan.not_finite && progress->bad++ < NAMED_MAX)
        add(check, FINDING_FAIL, QN_ERR_INVALID, "numbers", DOWNLOAD_AGAIN,
            "%s: %" PRIu64 " of the %" PRIu64 " numbers of tensor %s are NaN or infinite, the first in row %" PRIu64
            ", column %" PRIu64,
            file, scan.not_finite, safetensors_elements(tensor), tensor->name, scan.first / width, scan.first % width);
    if (scan.all_zero && tensor->rank == 2 && progress->zero++ < NAMED_MAX)
        add(check, FINDING_WARN, QN_OK, "numbers", DOWNLOAD_AGAIN,
            "%s: every number of tensor %s is zero: has the file a hole?", file, tensor->name);
    return QN_OK;
}

/* Of each source the model needs, once; in the order of the bytes. */
static void check_numbers(check_t *check)
{
    size_t count = safetensors_count(check->checkpoint);
    bool *needed = calloc(count + 1, sizeof *needed);
    progress_t progress = {.visible = isatty(STDERR_FILENO), .percent = -1};
    qn_err_t err = needed ? QN_OK : qn_fail(QN_ERR_NO_MEMORY, "no memory for a list of %zu tensors", count);
    for (size_t i = 0; !err && i < qn_model_tensor_count(&check->config); i++) {
        qn_model_tensor_t wanted;
        qn_model_tensor_at(&check->config, i, &wanted);
        const safetensors_tensor_t *source = weights_source_find(check->checkpoint, &check->config, &wanted);
        size_t index = (size_t)(source - safetensors_at(check->checkpoint, 0));
        if (!needed[index]) progress.all += source->bytes;
        needed[index] = true;
    }
    for (size_t i = 0; !err && i < count; i++)
        if (needed[i]) err = check_numbers_of(check, safetensors_at(check->checkpoint, i), &progress);
    free(needed);
    if (err)
        add_err(check, err, "numbers", DOWNLOAD_AGAIN);
    else if (progress.bad > NAMED_MAX)
        add(check, FINDING_FAIL, QN_ERR_INVALID, "numbers", DOWNLOAD_AGAIN,
            "%zu tensors have numbers that are NaN or "
            "infinite; the first are named",
            progress.bad);
    else if (progress.bad == 0)
        add(check, FINDING_OK, QN_OK, "numbers", NULL, "all are finite");
}

/* ---- tokenizer ---- */

static void check_ids(check_t *check, const tokenizer_t *tokenizer)
{
    uint32_t limit = tokenizer_id_limit(tokenizer), vocab = check->config.vocab;
    size_t ordinary = 0, bytes;
    for (uint32_t id = vocab; id < limit; id++)
        ordinary += tokenizer_token_text(tokenizer, id, &bytes) && !tokenizer_is_special(tokenizer, id);
    if (ordinary)
        add(check, FINDING_WARN, QN_OK, "tokenizer", "use the tokenizer.json that belongs to this model",
            "its ids go up to %" PRIu32 ", but config.json's \"vocab_size\" is %" PRIu32
            ": prompts with any of the %zu "
            "ordinary tokens beyond are refused",
            limit - 1, vocab, ordinary);
    else if (limit > vocab)
        add(check, FINDING_WARN, QN_OK, "tokenizer", NULL,
            "special tokens up to id %" PRIu32 " are beyond "
            "\"vocab_size\" %" PRIu32 ": prompts with them are refused",
            limit - 1, vocab);
    else
        add(check, FINDING_OK, QN_OK, "tokenizer", NULL, "%zu tokens, ids below %" PRIu32 "%s",
            tokenizer_vocab_size(tokenizer), limit,
            tokenizer_info(tokenizer)->chat_template ? ", a chat template" : "");
}

static void check_tokenizer(check_t *check)
{
    tokenizer_t *tokenizer = NULL;
    name_pointers(check, is_tokenizer_name);
    qn_err_t err = tokenizer_open(check->values->tokenizer.path, &tokenizer);
    bool own_path = strcmp(check->values->tokenizer.path, check->path) != 0 && check->values->tokenizer.path[0];
    if (err == QN_ERR_NOT_FOUND && own_path)
        add_err(check, err, "tokenizer", "set tokenizer.path to a directory with tokenizer.json, or leave it out");
    else if (err == QN_ERR_NOT_FOUND)
        add(check, FINDING_WARN, QN_OK, "tokenizer", "add tokenizer.json, or set tokenizer.path, to serve text",
            "there is none: the model serves token ids only");
    else if (err)
        add_err(check, err, "tokenizer",
                err == QN_ERR_UNSUPPORTED ? "remove it to serve token ids only" : DOWNLOAD_AGAIN);
    else if (check->config_good)
        check_ids(check, tokenizer);
    for (size_t i = 0; !err && i < tokenizer_note_count(tokenizer); i++)
        add(check, FINDING_WARN, QN_OK, "tokenizer", NULL, "%s", tokenizer_note(tokenizer, i));
    tokenizer_close(&tokenizer);
}

/* ---- report ---- */

static void print_json(const check_t *check)
{
    json_t *all =
        json_pack("{s:o, s:s, s:o}", "directory", cli_text_json(check->path), "result",
                  finding_level_name(findings_worst(&check->findings)), "checks", findings_json(&check->findings));
    cli_print_json(all);
    json_decref(all);
}

/* What is served all the same, and how. */
static void add_warnings(check_t *check, const qn_model_warnings_t *warnings)
{
    for (uint32_t i = 0; i < warnings->count; i++)
        add(check, FINDING_WARN, QN_OK, "contradictions", NULL, "%s", warnings->texts[i]);
    if (warnings->dropped)
        add(check, FINDING_WARN, QN_OK, "contradictions", NULL, "%" PRIu32 " more of this kind", warnings->dropped);
}

static void examine(check_t *check, bool quick)
{
    check_config(check);
    check_directory(check);
    open_weights(check);
    bool tensors_good = check->config_good && check->checkpoint && check_tensors(check);
    bool dummy = strcmp(check->values->model.load_format, "dummy") == 0;
    if (check->directory && (tensors_good || dummy)) check_memory(check);
    if (tensors_good && !quick) check_numbers(check);
    if (check->directory) add_warnings(check, &check->directory->warnings);
    add_warnings(check, &check->warnings);
    check_tokenizer(check);
}

int model_tool_check(const qn_config_values_t *values, bool json, bool quick)
{
    static check_t check;
    check.values = values;
    check.path = values->model.path;
    examine(&check, quick);
    if (json)
        print_json(&check);
    else
        findings_print(&check.findings);
    safetensors_close(&check.checkpoint);
    model_directory_free(&check.directory);
    int status = cli_finish_output();
    return status ? status : qn_err_exit_status(findings_first_failure(&check.findings));
}
