/* What is this?      The plan of the weights region: the table of tensors, checked against the model, and its
 *                    fingerprint.
 * State owned:       the table; the open checkpoint until its files are closed.
 * Must never:        accept a model with a tensor missing or misshapen: compute could only compute wrongly with it.
 * Read next:         weights_fill.c for the bytes, model_tensors.h for what must be there. */
#include "services/memory/weights.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/assert.h"
#include "services/memory/fingerprint.h"
#include "services/memory/weights_internal.h"

#define SAMPLE_BYTES 256

/* ---- life ---- */

static qn_err_t weights_new(size_t capacity, weights_t **ret_weights)
{
    weights_t *weights = calloc(1, sizeof *weights);
    if (!weights) return qn_fail(QN_ERR_NO_MEMORY, "weights: no memory");
    qn_arena_init(&weights->arena, 0);
    weights->tensors = calloc(capacity + 1, sizeof *weights->tensors);
    weights->origins = calloc(capacity + 1, sizeof *weights->origins);
    if (!weights->tensors || !weights->origins) {
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
    free(weights);
    *weights_pointer = NULL;
}

void weights_close_files(weights_t *weights) { safetensors_close(&weights->checkpoint); }

/* ---- the table ---- */

/* The dtype in the region; false when the schema has no name for it. */
static bool to_wire_dtype(safetensors_dtype_t dtype, qn_dtype_t *ret_dtype)
{
    switch (dtype) {
    case SAFETENSORS_F32: *ret_dtype = QN_DTYPE_F32; return true;
    case SAFETENSORS_BF16: *ret_dtype = QN_DTYPE_BF16; return true;
    case SAFETENSORS_F16: *ret_dtype = QN_DTYPE_F32; return true; /* widened: no kernel computes with it */
    case SAFETENSORS_I8: *ret_dtype = QN_DTYPE_I8; return true;
    case SAFETENSORS_U8: *ret_dtype = QN_DTYPE_U8; return true;
    case SAFETENSORS_I32: *ret_dtype = QN_DTYPE_I32; return true;
    case SAFETENSORS_I64: *ret_dtype = QN_DTYPE_I64; return true;
    default: return false;
    }
}

/* Appends a tensor whose bytes are set; gives it its place. */
static qn_err_t place_tensor(weights_t *weights, const weights_tensor_t *tensor, const char *name)
{
    weights_tensor_t *placed = &weights->tensors[weights->count];
    uint64_t offset = (weights->bytes + QN_REGION_ALIGN - 1) / QN_REGION_ALIGN * QN_REGION_ALIGN;
    if (tensor->bytes > QN_REGION_BYTES_MAX || offset > QN_REGION_BYTES_MAX - tensor->bytes)
        return qn_fail(QN_ERR_LIMIT, "the model is larger than 2^46 bytes (at tensor '%s')", name);
    *placed = *tensor;
    placed->name = qn_arena_strndup(&weights->arena, name, strlen(name));
    placed->offset = offset;
    weights->bytes = offset + tensor->bytes;
    weights->count++;
    return QN_OK;
}

static qn_err_t place_checkpoint(weights_t *weights)
{
    for (size_t i = 0; i < safetensors_count(weights->checkpoint); i++) {
        const safetensors_tensor_t *source = safetensors_at(weights->checkpoint, i);
        weights_tensor_t tensor = { .rank = source->rank, .bytes = source->bytes };
        _Static_assert(sizeof tensor.shape == sizeof source->shape, "one rank for both");
        memcpy(tensor.shape, source->shape, sizeof tensor.shape);
        if (!to_wire_dtype(source->dtype, &tensor.dtype)) {
            weights->left_out++;
            continue;
        }
        if (source->dtype == SAFETENSORS_F16) tensor.bytes *= 2; /* a size within a file: cannot overflow */
        weights->origins[weights->count].source = (uint32_t)i;
        qn_err_t err = place_tensor(weights, &tensor, source->name);
        if (err) return err;
    }
    return QN_OK;
}

/* ---- is it the model? ---- */

static void print_shape(char *ret_text, size_t size, const uint64_t *shape, uint32_t rank)
{
    size_t used = (size_t)snprintf(ret_text, size, "[");
    for (uint32_t i = 0; i < rank && used < size; i++)
        used += (size_t)snprintf(ret_text + used, size - used, "%s%" PRIu64, i ? ", " : "", shape[i]);
    if (used < size) snprintf(ret_text + used, size - used, "]");
}

static qn_err_t check_tensor(const safetensors_t *checkpoint, const qn_model_tensor_t *wanted, const char *directory)
{
    char found_shape[200], wanted_shape[64];
    const safetensors_tensor_t *found = safetensors_find(checkpoint, wanted->name);
    if (!found)
        return qn_fail(QN_ERR_INVALID, "%s: tensor '%s' is missing: is the download complete, and is config.json of "
                       "the same model?", directory, wanted->name);
    const char *path = safetensors_file_path(checkpoint, found->file_index);
    if (found->rank != wanted->rank || memcmp(found->shape, wanted->shape, wanted->rank * sizeof *wanted->shape) != 0) {
        print_shape(found_shape, sizeof found_shape, found->shape, found->rank);
        print_shape(wanted_shape, sizeof wanted_shape, wanted->shape, wanted->rank);
        return qn_fail(QN_ERR_INVALID, "%s: tensor '%s' has shape %s, config.json means %s", path, wanted->name,
                       found_shape, wanted_shape);
    }
    if (found->dtype != SAFETENSORS_BF16 && found->dtype != SAFETENSORS_F32 && found->dtype != SAFETENSORS_F16)
        return qn_fail(QN_ERR_UNSUPPORTED, "%s: tensor '%s' has dtype %s; weights of F32, BF16 and F16 are supported",
                       path, wanted->name, safetensors_dtype_name(found->dtype));
    return QN_OK;
}

static qn_err_t check_model(const safetensors_t *checkpoint, const qn_model_config_t *config, const char *directory)
{
    qn_model_tensor_t wanted;
    size_t count = qn_model_tensor_count(config);
    for (size_t i = 0; i < count; i++) {
        qn_model_tensor_at(config, i, &wanted);
        qn_err_t err = check_tensor(checkpoint, &wanted, directory);
        if (err) return err;
    }
    return QN_OK;
}

/* ---- fingerprint ---- */

static uint64_t hash_table(const weights_t *weights, uint64_t hash)
{
    for (size_t i = 0; i < weights->count; i++) {
        const weights_tensor_t *tensor = &weights->tensors[i];
        uint64_t numbers[4] = { tensor->dtype, tensor->rank, tensor->offset, tensor->bytes };
        hash = fingerprint_bytes(tensor->name, strlen(tensor->name), hash);
        hash = fingerprint_bytes(numbers, sizeof numbers, hash);
        hash = fingerprint_bytes(tensor->shape, sizeof tensor->shape, hash);
    }
    return hash;
}

static qn_err_t hash_files(const safetensors_t *checkpoint, uint64_t *hash)
{
    for (unsigned i = 0; i < safetensors_file_count(checkpoint); i++) {
        struct stat info;
        if (fstat(safetensors_file_fd(checkpoint, i), &info) < 0)
            return qn_fail(QN_ERR_IO, "%s: %s", safetensors_file_path(checkpoint, i), strerror(errno));
        uint64_t numbers[3] = { (uint64_t)info.st_size, (uint64_t)info.st_mtim.tv_sec, (uint64_t)info.st_mtim.tv_nsec };
        *hash = fingerprint_bytes(numbers, sizeof numbers, *hash);
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
            return qn_fail(QN_ERR_IO, "%s: tensor '%s': %s", safetensors_file_path(weights->checkpoint,
                           source->file_index), source->name, got < 0 ? strerror(errno) : "the file became shorter");
        *hash = fingerprint_bytes(sample, bytes, *hash);
    }
    return QN_OK;
}

/* 0 on the wire means "none". */
static uint64_t not_zero(uint64_t hash) { return hash ? hash : 1; }

/* ---- plans ---- */

static qn_err_t plan_checkpoint(const char *directory, const qn_model_config_t *config, weights_t *weights)
{
    qn_err_t err = check_model(weights->checkpoint, config, directory);
    if (!err) err = place_checkpoint(weights);
    uint64_t hash = hash_table(weights, 0);
    if (!err) err = hash_files(weights->checkpoint, &hash);
    if (!err) err = hash_samples(weights, &hash);
    weights->fingerprint = not_zero(hash);
    return err;
}

qn_err_t weights_plan(const char *directory, const qn_model_config_t *config, weights_t **ret_weights)
{
    safetensors_t *checkpoint = NULL;
    weights_t *weights = NULL;
    qn_err_t err = safetensors_open(directory, &checkpoint);
    if (err) return err;
    err = weights_new(safetensors_count(checkpoint), &weights);
    if (err) {
        safetensors_close(&checkpoint);
        return err;
    }
    weights->checkpoint = checkpoint;
    err = plan_checkpoint(directory, config, weights);
    if (err) weights_destroy(&weights);
    else *ret_weights = weights;
    return err;
}

qn_err_t weights_plan_dummy(const qn_model_config_t *config, uint64_t seed, weights_t **ret_weights)
{
    weights_t *weights = NULL;
    size_t count = qn_model_tensor_count(config);
    if (count > QN_TENSORS_MAX) return qn_fail(QN_ERR_LIMIT, "the model has more than %d tensors", QN_TENSORS_MAX);
    qn_err_t err = weights_new(count, &weights);
    for (size_t i = 0; !err && i < count; i++) {
        qn_model_tensor_t wanted;
        qn_model_tensor_at(config, i, &wanted);
        weights_tensor_t tensor = { .dtype = QN_DTYPE_BF16, .rank = wanted.rank, .bytes = 2 };
        for (uint32_t j = 0; j < wanted.rank; j++) {
            tensor.shape[j] = wanted.shape[j];
            tensor.bytes *= wanted.shape[j]; /* two extents, each bounded by model_config.h: cannot overflow */
        }
        weights->origins[i].role = wanted.role;
        err = place_tensor(weights, &tensor, wanted.name);
    }
    if (err) {
        weights_destroy(&weights);
        return err;
    }
    weights->dummy = true;
    weights->seed = seed;
    weights->fingerprint = not_zero(fingerprint_bytes(&seed, sizeof seed, hash_table(weights, 0)));
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
