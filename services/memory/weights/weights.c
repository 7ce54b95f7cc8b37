/* What is this?      The plan of the weights region: the table of tensors, checked against the model, and its
 *                    fingerprint.
 * State owned:       the table; the open checkpoint until its files are closed.
 * Must never:        accept a model with a tensor missing or misshapen: compute could only compute wrongly with it.
 * Read next:         weights_fill.c for the bytes, model_tensors.h for what must be there. */
#include "services/memory/weights/weights.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/checksum.h"
#include "services/memory/weights/weights_internal.h"
#include "services/memory/weights/weights_source.h"

#define SAMPLE_BYTES 256

/* ---- life ---- */

static qn_err_t weights_new(const qn_model_config_t *config, weights_t **ret_weights)
{
    size_t capacity = qn_model_tensor_count(config);
    if (capacity > QN_TENSORS_MAX) return qn_fail(QN_ERR_LIMIT, "the model has more than %d tensors", QN_TENSORS_MAX);
    weights_t *weights = calloc(1, sizeof *weights);
    if (!weights) return qn_fail(QN_ERR_NO_MEMORY, "weights: no memory");
    weights->config = *config;
    qn_arena_init(&weights->arena, 0);
    weights->tensors = calloc(capacity + 1, sizeof *weights->tensors);
    weights->origins = calloc(capacity + 1, sizeof *weights->origins);
    weights->order = calloc(capacity + 1, sizeof *weights->order);
    if (!weights->tensors || !weights->origins || !weights->order) {
        weights_destroy(&weights);
        return qn_fail(QN_ERR_NO_MEMORY, "weights: no memory for a table of %zu tensors", capacity);
    }
    *ret_weights = weights;
    return QN_OK;
}

void weights_destroy(weights_t **weights_pointer)
{
    weights_t *weights = *weights_pointer;
    if (!weights) return;
    weights_close_files(weights);
    qn_arena_fini(&weights->arena);
    free(weights->tensors);
    free(weights->origins);
    free(weights->order);
    free(weights);
    *weights_pointer = NULL;
}

void weights_close_files(weights_t *weights) { safetensors_close(&weights->checkpoint); }

/* ---- the table ---- */

/* Appends a tensor in `format`; gives it its place. */
static qn_err_t place_tensor(weights_t *weights, const qn_model_tensor_t *wanted, const weights_format_t *format,
                             safetensors_dtype_t dtype)
{
    weights_tensor_t *placed = &weights->tensors[weights->count];
    qn_weight_t weight;
    uint64_t inputs = wanted->rank == 2 ? wanted->shape[1] : 1, bytes = 0;
    uint64_t offset = (weights->bytes + QN_REGION_ALIGN - 1) / QN_REGION_ALIGN * QN_REGION_ALIGN;
    weights_format_of(format, wanted, dtype != SAFETENSORS_BF16, &weight);
    qn_err_t err = qn_weight_bytes(weight.scalar, weight.layout, weight.group, wanted->shape[0], inputs, &bytes);
    if (err || bytes > QN_REGION_BYTES_MAX || offset > QN_REGION_BYTES_MAX - bytes)
        return qn_fail(QN_ERR_LIMIT, "the model is larger than 2^46 bytes (at tensor '%s')", wanted->name);
    *placed = (weights_tensor_t){.name = qn_arena_strndup(&weights->arena, wanted->name, strlen(wanted->name)),
                                 .scalar = weight.scalar,
                                 .layout = weight.layout,
                                 .group = weight.group,
                                 .rank = wanted->rank,
                                 .shape = {wanted->shape[0], wanted->rank == 2 ? wanted->shape[1] : 0},
                                 .offset = offset,
                                 .bytes = bytes};
    weights->origins[weights->count] = (weights_origin_t){.dtype = dtype,
                                                          .transposed = wanted->transposed,
                                                          .source_first = wanted->source_first,
                                                          .source_outputs = wanted->source_outputs,
                                                          .outputs = wanted->shape[0],
                                                          .inputs = inputs,
                                                          .role = wanted->role};
    weights->order[weights->count] = (uint32_t)weights->count;
    weights->bytes = offset + bytes;
    weights->count++;
    return QN_OK;
}

static void print_shape(char *ret_text, size_t size, const uint64_t *shape, uint32_t rank)
{
    size_t used = (size_t)snprintf(ret_text, size, "[");
    for (uint32_t i = 0; i < rank && used < size; i++)
        used += (size_t)snprintf(ret_text + used, size - used, "%s%" PRIu64, i ? ", " : "", shape[i]);
    if (used < size) snprintf(ret_text + used, size - used, "]");
}

static qn_err_t fail_missing(const safetensors_t *checkpoint, const char *source, const char *directory)
{
    char absent[200];
    size_t files = safetensors_absent(checkpoint, absent, sizeof absent);
    if (files)
        return qn_fail(QN_ERR_NOT_FOUND, "%s: tensor '%s' is missing, and so are %zu of the weight files: %s",
                       directory, source, files, absent);
    return qn_fail(QN_ERR_INVALID,
                   "%s: tensor '%s' is missing: is the download complete, and is config.json of the same model?",
                   directory, source);
}

static qn_err_t check_source(const safetensors_t *checkpoint, const qn_model_tensor_t *wanted,
                             const safetensors_tensor_t *found, const char *directory)
{
    char found_shape[200], wanted_shape[64];
    if (!found) return fail_missing(checkpoint, wanted->source, directory);
    const char *path = safetensors_file_path(checkpoint, found->file_index);
    uint64_t shape[2];
    weights_source_shape(wanted, shape);
    if (found->rank != wanted->rank || memcmp(found->shape, shape, wanted->rank * sizeof *shape) != 0) {
        print_shape(found_shape, sizeof found_shape, found->shape, found->rank);
        print_shape(wanted_shape, sizeof wanted_shape, shape, wanted->rank);
        return qn_fail(QN_ERR_INVALID, "%s: tensor '%s' has shape %s, config.json means %s", path, found->name,
                       found_shape, wanted_shape);
    }
    if (!weights_source_readable(found->dtype))
        return qn_fail(QN_ERR_UNSUPPORTED,
                       "%s: tensor '%s' has dtype %s; weights of F64, F32, BF16 and F16 are supported", path,
                       found->name, safetensors_dtype_name(found->dtype));
    return QN_OK;
}

/* Files are read from front to back. */
static int by_source(const void *left, const void *right, void *weights_pointer)
{
    const weights_t *weights = weights_pointer;
    uint32_t i = *(const uint32_t *)left, j = *(const uint32_t *)right;
    uint32_t source = weights->origins[i].source, other = weights->origins[j].source;
    if (source != other) return source < other ? -1 : 1;
    return i < j ? -1 : 1;
}

/* Marks the sources that are used; counts and names the others. */
static qn_err_t look_at_rest(weights_t *weights)
{
    size_t all = safetensors_count(weights->checkpoint), used = 0;
    bool *needed = calloc(all + 1, sizeof *needed);
    if (!needed) return qn_fail(QN_ERR_NO_MEMORY, "weights: no memory for a list of %zu tensors", all);
    for (size_t i = 0; i < weights->count; i++) {
        uint32_t source = weights->origins[i].source;
        used += !needed[source];
        needed[source] = true;
    }
    weights_source_warn_left_out(weights->checkpoint, &weights->config, needed, &weights->warnings);
    weights->left_out = all - used;
    free(needed);
    return QN_OK;
}

/* Every tensor of the model, found and placed. */
static qn_err_t place_checkpoint(const char *directory, const weights_format_t *format, weights_t *weights)
{
    size_t count = qn_model_tensor_count(&weights->config);
    for (size_t i = 0; i < count; i++) {
        qn_model_tensor_t wanted;
        qn_model_tensor_at(&weights->config, i, &wanted);
        const safetensors_tensor_t *found = weights_source_find(weights->checkpoint, &weights->config, &wanted);
        qn_err_t err = check_source(weights->checkpoint, &wanted, found, directory);
        if (!err) err = place_tensor(weights, &wanted, format, found->dtype);
        if (err) return err;
        weights->origins[i].source = (uint32_t)(found - safetensors_at(weights->checkpoint, 0));
    }
    qsort_r(weights->order, count, sizeof *weights->order, by_source, weights);
    return look_at_rest(weights);
}

/* ---- fingerprint ---- */

static uint64_t hash_table(const weights_t *weights, uint64_t hash)
{
    for (size_t i = 0; i < weights->count; i++) {
        const weights_tensor_t *tensor = &weights->tensors[i];
        uint64_t numbers[6] = {tensor->scalar, tensor->layout, tensor->group,
                               tensor->rank,   tensor->offset, tensor->bytes};
        hash = qn_fingerprint(tensor->name, strlen(tensor->name), hash);
        hash = qn_fingerprint(numbers, sizeof numbers, hash);
        hash = qn_fingerprint(tensor->shape, sizeof tensor->shape, hash);
    }
    return hash;
}

static qn_err_t hash_files(const safetensors_t *checkpoint, uint64_t *hash)
{
    for (unsigned i = 0; i < safetensors_file_count(checkpoint); i++) {
        struct stat info;
        if (fstat(safetensors_file_fd(checkpoint, i), &info) < 0)
            return qn_fail(QN_ERR_IO, "%s: %s", safetensors_file_path(checkpoint, i), strerror(errno));
        uint64_t numbers[3] = {(uint64_t)info.st_size, (uint64_t)info.st_mtim.tv_sec, (uint64_t)info.st_mtim.tv_nsec};
        *hash = qn_fingerprint(numbers, sizeof numbers, *hash);
    }
    return QN_OK;
}

/* pread, not the mapping: a file that shrinks meanwhile must be an error and not a signal. */
static qn_err_t hash_samples(const weights_t *weights, uint64_t *hash)
{
    uint8_t sample[SAMPLE_BYTES];
    for (size_t i = 0; i < weights->count; i++) {
        const safetensors_tensor_t *source = safetensors_at(weights->checkpoint, weights->origins[i].source);
        size_t bytes = source->bytes < SAMPLE_BYTES ? source->bytes : SAMPLE_BYTES;
        uint64_t offset = source->file_offset + (source->bytes - bytes) / 2;
        ssize_t got = pread(safetensors_file_fd(weights->checkpoint, source->file_index), sample, bytes, (off_t)offset);
        if (got != (ssize_t)bytes)
            return qn_fail(QN_ERR_IO, "%s: tensor '%s': %s",
                           safetensors_file_path(weights->checkpoint, source->file_index), source->name,
                           got < 0 ? strerror(errno) : "the file became shorter");
        *hash = qn_fingerprint(sample, bytes, *hash);
    }
    return QN_OK;
}

/* 0 on the wire means "none". */
static uint64_t not_zero(uint64_t hash) { return hash ? hash : 1; }

/* ---- plans ---- */

static qn_err_t plan_checkpoint(const char *directory, const weights_format_t *format, weights_t *weights)
{
    qn_err_t err = place_checkpoint(directory, format, weights);
    uint64_t hash = hash_table(weights, 0);
    if (!err) err = hash_files(weights->checkpoint, &hash);
    if (!err) err = hash_samples(weights, &hash);
    weights->fingerprint = not_zero(hash);
    return err;
}

qn_err_t weights_plan(const char *directory, const qn_model_config_t *config, const weights_format_t *format,
                      weights_t **ret_weights)
{
    safetensors_t *checkpoint = NULL;
    weights_t *weights = NULL;
    qn_model_config_t settled = *config;
    qn_model_warnings_t warnings = {0};
    qn_err_t err = safetensors_open(directory, &checkpoint);
    if (!err) err = weights_source_settle(checkpoint, &settled, &warnings);
    if (!err) err = weights_new(&settled, &weights);
    if (err) {
        safetensors_close(&checkpoint);
        return err;
    }
    weights->checkpoint = checkpoint;
    weights->warnings = warnings;
    err = plan_checkpoint(directory, format, weights);
    if (err)
        weights_destroy(&weights);
    else
        *ret_weights = weights;
    return err;
}

qn_err_t weights_plan_dummy(const qn_model_config_t *config, uint64_t seed, const weights_format_t *format,
                            weights_t **ret_weights)
{
    weights_t *weights = NULL;
    size_t count = qn_model_tensor_count(config);
    qn_err_t err = weights_new(config, &weights);
    for (size_t i = 0; !err && i < count; i++) {
        qn_model_tensor_t wanted;
        qn_model_tensor_at(config, i, &wanted);
        /* Dummy weights: there is no source. */
        wanted.transposed = false;
        wanted.source_first = 0;
        wanted.source_outputs = wanted.shape[0];
        err = place_tensor(weights, &wanted, format, SAFETENSORS_BF16);
    }
    if (err) {
        weights_destroy(&weights);
        return err;
    }
    weights->dummy = true;
    weights->seed = seed;
    weights->dummy_norm = 1 - config->norm_weight_offset;
    weights->fingerprint = not_zero(qn_fingerprint(&seed, sizeof seed, hash_table(weights, 0)));
    *ret_weights = weights;
    return QN_OK;
}

/* ---- reading ---- */

size_t weights_count(const weights_t *weights) { return weights->count; }

const weights_tensor_t *weights_at(const weights_t *weights, size_t index)
{
    QN_ASSERT(index < weights->count);
    return &weights->tensors[index];
}

uint64_t weights_bytes(const weights_t *weights) { return weights->bytes; }

uint64_t weights_fingerprint(const weights_t *weights) { return weights->fingerprint; }

size_t weights_left_out(const weights_t *weights) { return weights->left_out; }

const qn_model_config_t *weights_config(const weights_t *weights) { return &weights->config; }

const qn_model_warnings_t *weights_warnings(const weights_t *weights) { return &weights->warnings; }
