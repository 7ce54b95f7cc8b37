/* What is this?      The reader of safetensors files, and the table of their tensors.
 * State owned:       the mappings and descriptors of the files, the tensor table (arena), its index by name.
 * Must never:        trust a number of the file before it is checked; write; convert (but for safetensors_read_f32).
 * Read next:         safetensors_directory.c for shards, weights.h for what becomes of the tensors. */
#include "services/memory/weights/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/file.h"
#include "common/limits.h"
#include "services/memory/weights/safetensors_internal.h"

static const struct {
    const char *name;
    size_t bytes;
} dtypes[SAFETENSORS_DTYPE_COUNT] = {
    [SAFETENSORS_BOOL] = {"BOOL", 1},       [SAFETENSORS_U8] = {"U8", 1},
    [SAFETENSORS_I8] = {"I8", 1},           [SAFETENSORS_F8_E4M3] = {"F8_E4M3", 1},
    [SAFETENSORS_F8_E5M2] = {"F8_E5M2", 1}, [SAFETENSORS_F8_E8M0] = {"F8_E8M0", 1},
    [SAFETENSORS_I16] = {"I16", 2},         [SAFETENSORS_U16] = {"U16", 2},
    [SAFETENSORS_F16] = {"F16", 2},         [SAFETENSORS_BF16] = {"BF16", 2},
    [SAFETENSORS_I32] = {"I32", 4},         [SAFETENSORS_U32] = {"U32", 4},
    [SAFETENSORS_F32] = {"F32", 4},         [SAFETENSORS_I64] = {"I64", 8},
    [SAFETENSORS_U64] = {"U64", 8},         [SAFETENSORS_F64] = {"F64", 8},
    [SAFETENSORS_OTHER] = {"unknown", 1},
};

#define ABSENT_NAMED 6   /* files that are named; the rest is counted */
#define REPLACED_NAMED 3 /* tensors */

/* ---- life ---- */

safetensors_t *safetensors_new(size_t files)
{
    safetensors_t *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint) return NULL;
    qn_arena_init(&checkpoint->arena, 0);
    checkpoint->files = calloc(files ? files : 1, sizeof *checkpoint->files);
    if (!checkpoint->files) {
        free(checkpoint);
        return NULL;
    }
    for (size_t i = 0; i < files; i++)
        checkpoint->files[i].fd = -1;
    return checkpoint;
}

void safetensors_close(safetensors_t **checkpoint_pointer)
{
    safetensors_t *checkpoint = *checkpoint_pointer;
    if (!checkpoint) return;
    for (size_t i = 0; i < checkpoint->file_count; i++) {
        checkpoint_file_t *file = &checkpoint->files[i];
        if (file->mapped) munmap((void *)(uintptr_t)file->bytes, file->length);
        if (file->fd >= 0) close(file->fd);
    }
    qn_arena_fini(&checkpoint->arena);
    free(checkpoint->files);
    free(checkpoint->tensors);
    free(checkpoint->by_name);
    free(checkpoint->absent);
    free(checkpoint);
    *checkpoint_pointer = NULL;
}

/* ---- one tensor of a header ---- */

static qn_err_t check_name(const char *name, size_t length, const char *path)
{
    if (length == 0) return qn_fail(QN_ERR_INVALID, "%s: a tensor has an empty name", path);
    if (length > SAFETENSORS_NAME_MAX)
        return qn_fail(QN_ERR_INVALID, "%s: tensor name '%.32s...' has %zu bytes, at most %d are allowed", path, name,
                       length, SAFETENSORS_NAME_MAX);
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return qn_fail(QN_ERR_INVALID, "%s: a tensor name has a control character at byte %zu", path, i);
    }
    return QN_OK;
}

static bool read_count(const json_t *value, uint64_t *ret_count)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
    *ret_count = (uint64_t)json_integer_value(value);
    return true;
}

static qn_err_t parse_dtype(const json_t *entry, const char *path, safetensors_tensor_t *tensor)
{
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype) return qn_fail(QN_ERR_INVALID, "%s: tensor '%s' has no dtype", path, tensor->name);
    tensor->dtype = SAFETENSORS_OTHER;
    for (int i = 0; i < SAFETENSORS_OTHER; i++)
        if (strcmp(dtypes[i].name, dtype) == 0) tensor->dtype = (safetensors_dtype_t)i;
    return QN_OK;
}

/* Shape, and in *ret_bytes what it takes. */
static qn_err_t parse_shape(const json_t *entry, const char *path, safetensors_tensor_t *tensor, uint64_t *ret_bytes)
{
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape)) return qn_fail(QN_ERR_INVALID, "%s: tensor '%s' has no shape", path, tensor->name);
    size_t rank = json_array_size(shape);
    if (rank > SAFETENSORS_RANK_MAX)
        return qn_fail(QN_ERR_INVALID, "%s: tensor '%s' has %zu dimensions, at most %d are allowed", path, tensor->name,
                       rank, SAFETENSORS_RANK_MAX);
    uint64_t bytes = dtypes[tensor->dtype].bytes;
    for (size_t i = 0; i < rank; i++) {
        if (!read_count(json_array_get(shape, i), &tensor->shape[i]))
            return qn_fail(QN_ERR_INVALID, "%s: tensor '%s': shape[%zu] is not a count", path, tensor->name, i);
        if (__builtin_mul_overflow(bytes, tensor->shape[i], &bytes))
            return qn_fail(QN_ERR_INVALID, "%s: tensor '%s': its shape overflows 64 bits", path, tensor->name);
    }
    tensor->rank = (unsigned)rank;
    *ret_bytes = bytes;
    return QN_OK;
}

/* Offsets, checked against the shape's bytes and the end of the file. Sets bytes, file_offset and data. */
static qn_err_t parse_offsets(const json_t *entry, const checkpoint_file_t *file, uint64_t data_start,
                              uint64_t shape_bytes, safetensors_tensor_t *tensor)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    uint64_t begin, end, data_bytes = file->length - data_start;
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !read_count(json_array_get(offsets, 0), &begin) ||
        !read_count(json_array_get(offsets, 1), &end))
        return qn_fail(QN_ERR_INVALID, "%s: tensor '%s': data_offsets is not [begin, end)", file->path, tensor->name);
    if (begin > end)
        return qn_fail(QN_ERR_INVALID, "%s: tensor '%s': data_offsets run backwards (%" PRIu64 " to %" PRIu64 ")",
                       file->path, tensor->name, begin, end);
    if (end > data_bytes)
        return qn_fail(QN_ERR_INVALID,
                       "%s: tensor '%s' ends at data byte %" PRIu64 ", but the file has only %" PRIu64
                       ": truncated download?",
                       file->path, tensor->name, end, data_bytes);
    if (tensor->dtype != SAFETENSORS_OTHER && end - begin != shape_bytes)
        return qn_fail(QN_ERR_INVALID, "%s: tensor '%s' spans %" PRIu64 " bytes, its shape and dtype %s take %" PRIu64,
                       file->path, tensor->name, end - begin, dtypes[tensor->dtype].name, shape_bytes);
    tensor->bytes = end - begin;
    tensor->file_offset = data_start + begin;
    tensor->data = file->bytes + tensor->file_offset;
    return QN_OK;
}

static qn_err_t parse_tensor(safetensors_t *checkpoint, unsigned file_index, uint64_t data_start, const char *name,
                             const json_t *entry)
{
    const checkpoint_file_t *file = &checkpoint->files[file_index];
    size_t length = strlen(name);
    qn_err_t err = check_name(name, length, file->path);
    if (err) return err;
    if (!json_is_object(entry))
        return qn_fail(QN_ERR_INVALID, "%s: tensor '%s' is not described by an object", file->path, name);
    safetensors_tensor_t tensor = {.name = name, .file_index = file_index};
    uint64_t shape_bytes = 0;
    if ((err = parse_dtype(entry, file->path, &tensor))) return err;
    if ((err = parse_shape(entry, file->path, &tensor, &shape_bytes))) return err;
    if ((err = parse_offsets(entry, file, data_start, shape_bytes, &tensor))) return err;
    tensor.name = qn_arena_strndup(&checkpoint->arena, name, length);
    QN_ASSERT(checkpoint->count < checkpoint->capacity);
    checkpoint->tensors[checkpoint->count++] = tensor;
    return QN_OK;
}

/* ---- one file ---- */

static int by_offset(const void *left_pointer, const void *right_pointer)
{
    const safetensors_tensor_t *left = left_pointer, *right = right_pointer;
    if (left->file_offset != right->file_offset) return left->file_offset < right->file_offset ? -1 : 1;
    if (left->bytes != right->bytes) return left->bytes < right->bytes ? -1 : 1;
    return strcmp(left->name, right->name);
}

/* The tensors from `first` on must follow each other from data_start to the last byte. */
static qn_err_t check_layout(safetensors_t *checkpoint, const checkpoint_file_t *file, size_t first,
                             uint64_t data_start)
{
    uint64_t position = data_start;
    if (checkpoint->count > first)
        qsort(checkpoint->tensors + first, checkpoint->count - first, sizeof *checkpoint->tensors, by_offset);
    for (size_t i = first; i < checkpoint->count; i++) {
        const safetensors_tensor_t *tensor = &checkpoint->tensors[i];
        if (tensor->file_offset < position)
            return qn_fail(QN_ERR_INVALID, "%s: tensors '%s' and '%s' overlap", file->path, tensor[-1].name,
                           tensor->name);
        if (tensor->file_offset > position)
            return qn_fail(QN_ERR_INVALID, "%s: %" PRIu64 " bytes before tensor '%s' belong to no tensor", file->path,
                           tensor->file_offset - position, tensor->name);
        position += tensor->bytes;
    }
    if (position != file->length)
        return qn_fail(QN_ERR_INVALID, "%s: the last %" PRIu64 " bytes belong to no tensor", file->path,
                       file->length - position);
    return QN_OK;
}

static qn_err_t reserve_tensors(safetensors_t *checkpoint, size_t more, const char *path)
{
    size_t needed = checkpoint->count + more;
    if (needed > QN_TENSORS_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: more than %d tensors in one checkpoint", path, QN_TENSORS_MAX);
    if (needed <= checkpoint->capacity) return QN_OK;
    size_t capacity = needed > 2 * checkpoint->capacity ? needed : 2 * checkpoint->capacity;
    safetensors_tensor_t *grown = realloc(checkpoint->tensors, capacity * sizeof *grown);
    if (!grown) return qn_fail(QN_ERR_NO_MEMORY, "%s: no memory for %zu tensor descriptions", path, capacity);
    checkpoint->tensors = grown;
    checkpoint->capacity = capacity;
    return QN_OK;
}

static qn_err_t load_header(const checkpoint_file_t *file, json_t **ret_header, uint64_t *ret_data_start)
{
    uint64_t header_bytes = 0;
    if (file->length < 8)
        return qn_fail(QN_ERR_INVALID, "%s: %" PRIu64 " bytes are too few for a safetensors file", file->path,
                       file->length);
    for (int i = 7; i >= 0; i--)
        header_bytes = header_bytes << 8 | file->bytes[i];
    if (header_bytes > file->length - 8)
        return qn_fail(QN_ERR_INVALID,
                       "%s: the header claims %" PRIu64 " bytes, the file has %" PRIu64
                       ": truncated, or not a safetensors file (a git-lfs pointer?)",
                       file->path, header_bytes, file->length);
    if (header_bytes > SAFETENSORS_HEADER_BYTES_MAX)
        return qn_fail(QN_ERR_INVALID, "%s: the header has %" PRIu64 " bytes, at most %u are allowed", file->path,
                       header_bytes, SAFETENSORS_HEADER_BYTES_MAX);
    if (header_bytes < 2 || file->bytes[8] != '{')
        return qn_fail(QN_ERR_INVALID, "%s: the header does not begin with '{'", file->path);
    json_error_t error;
    *ret_header = json_loadb((const char *)file->bytes + 8, header_bytes, JSON_REJECT_DUPLICATES, &error);
    if (!*ret_header) return qn_fail(QN_ERR_INVALID, "%s: header byte %d: %s", file->path, error.position, error.text);
    *ret_data_start = 8 + header_bytes;
    return QN_OK;
}

static qn_err_t parse_file(safetensors_t *checkpoint, unsigned file_index)
{
    const checkpoint_file_t *file = &checkpoint->files[file_index];
    size_t first = checkpoint->count;
    uint64_t data_start = 0;
    json_t *header = NULL;
    qn_err_t err = load_header(file, &header, &data_start);
    if (err) return err;
    err = reserve_tensors(checkpoint, json_object_size(header), file->path);
    const char *name;
    json_t *entry;
    if (!err) {
        json_object_foreach(header, name, entry)
        {
            if (strcmp(name, "__metadata__") == 0) continue;
            if ((err = parse_tensor(checkpoint, file_index, data_start, name, entry))) break;
        }
    }
    json_decref(header);
    return err ? err : check_layout(checkpoint, file, first, data_start);
}

qn_err_t safetensors_add_file(safetensors_t *checkpoint, int directory_fd, const char *name, const char *path)
{
    checkpoint_file_t *file = &checkpoint->files[checkpoint->file_count++];
    uint64_t bytes;
    file->path = qn_arena_strndup(&checkpoint->arena, path, strlen(path));
    qn_err_t err = qn_file_open(directory_fd, name, path, &file->fd, &bytes);
    if (err) return err;
    if (bytes == 0) return qn_fail(QN_ERR_INVALID, "%s: empty file", path);
    void *mapping = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file->fd, 0);
    if (mapping == MAP_FAILED)
        return qn_fail(QN_ERR_IO, "%s: cannot map %" PRIu64 " bytes: %s", path, bytes, strerror(errno));
    file->bytes = mapping;
    file->length = bytes;
    file->mapped = true;
    return parse_file(checkpoint, (unsigned)(checkpoint->file_count - 1));
}

/* ---- index by name ---- */

/* By name, and of equal names the last file's first. */
static int by_name(const void *left_index, const void *right_index, void *tensors_pointer)
{
    const safetensors_tensor_t *tensors = tensors_pointer;
    const safetensors_tensor_t *left = &tensors[*(const uint32_t *)left_index];
    const safetensors_tensor_t *right = &tensors[*(const uint32_t *)right_index];
    int order = strcmp(left->name, right->name);
    return order ? order : (left->file_index < right->file_index) - (left->file_index > right->file_index);
}

/* `times`: how many there were before; the first of them are named. */
static qn_err_t replace_tensor(safetensors_t *checkpoint, const safetensors_tensor_t *taken,
                               safetensors_tensor_t *replaced, size_t times)
{
    const char *wins = checkpoint->files[taken->file_index].path, *loses = checkpoint->files[replaced->file_index].path;
    if (checkpoint->equal_names_refused)
        return qn_fail(QN_ERR_INVALID,
                       "tensor '%s' is in both %s and %s, and there is no index: remove the file that does not belong "
                       "to the model",
                       taken->name, loses, wins);
    if (times < REPLACED_NAMED)
        qn_model_warn(&checkpoint->warnings, "tensor '%s' is in both %s and %s: it is taken from the last", taken->name,
                      loses, wins);
    replaced->replaced = true;
    return QN_OK;
}

qn_err_t safetensors_build_index(safetensors_t *checkpoint)
{
    uint32_t *sorted = checkpoint->by_name = malloc((checkpoint->count + 1) * sizeof *sorted);
    if (!sorted) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the index of %zu tensors", checkpoint->count);
    for (size_t i = 0; i < checkpoint->count; i++)
        sorted[i] = (uint32_t)i;
    if (checkpoint->count > 1) qsort_r(sorted, checkpoint->count, sizeof *sorted, by_name, checkpoint->tensors);
    size_t kept = 0;
    for (size_t i = 0; i < checkpoint->count; i++) {
        safetensors_tensor_t *tensor = &checkpoint->tensors[sorted[i]];
        const safetensors_tensor_t *before = kept ? &checkpoint->tensors[sorted[kept - 1]] : NULL;
        bool again = before && strcmp(before->name, tensor->name) == 0;
        qn_err_t err = again ? replace_tensor(checkpoint, before, tensor, i - kept) : QN_OK;
        if (err) return err;
        if (!again) sorted[kept++] = sorted[i];
    }
    checkpoint->name_count = kept;
    if (checkpoint->count - kept > REPLACED_NAMED)
        qn_model_warn(&checkpoint->warnings, "%zu tensors are in several files: each is taken from the last by name",
                      checkpoint->count - kept);
    return QN_OK;
}

const safetensors_tensor_t *safetensors_find(const safetensors_t *checkpoint, const char *name)
{
    size_t low = 0, high = checkpoint->name_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const safetensors_tensor_t *tensor = &checkpoint->tensors[checkpoint->by_name[middle]];
        int order = strcmp(name, tensor->name);
        if (order == 0) return tensor;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* ---- opening ---- */

qn_err_t safetensors_open_one(int directory_fd, const char *name, const char *path, safetensors_t **ret_checkpoint)
{
    safetensors_t *checkpoint = safetensors_new(1);
    if (!checkpoint) return qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", path);
    qn_err_t err = safetensors_add_file(checkpoint, directory_fd, name, path);
    if (!err) err = safetensors_build_index(checkpoint);
    if (err)
        safetensors_close(&checkpoint);
    else
        *ret_checkpoint = checkpoint;
    return err;
}

qn_err_t safetensors_open(const char *path, safetensors_t **ret_checkpoint)
{
    struct stat info;
    if (strlen(path) >= QN_PATH_MAX) return qn_fail(QN_ERR_LIMIT, "%.64s...: path too long", path);
    if (stat(path, &info) < 0)
        return qn_fail(errno == ENOENT ? QN_ERR_NOT_FOUND : QN_ERR_IO, "%s: %s", path, strerror(errno));
    return S_ISDIR(info.st_mode) ? safetensors_open_directory(path, ret_checkpoint)
                                 : safetensors_open_one(AT_FDCWD, path, path, ret_checkpoint);
}

qn_err_t safetensors_open_bytes(const void *bytes, size_t length, const char *label, safetensors_t **ret_checkpoint)
{
    safetensors_t *checkpoint = safetensors_new(1);
    if (!checkpoint) return qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", label);
    checkpoint->files[0] = (checkpoint_file_t){
        .path = qn_arena_strndup(&checkpoint->arena, label, strlen(label)),
        .fd = -1,
        .bytes = bytes,
        .length = length,
    };
    checkpoint->file_count = 1;
    qn_err_t err = parse_file(checkpoint, 0);
    if (!err) err = safetensors_build_index(checkpoint);
    if (err)
        safetensors_close(&checkpoint);
    else
        *ret_checkpoint = checkpoint;
    return err;
}

/* ---- reading ---- */

size_t safetensors_count(const safetensors_t *checkpoint) { return checkpoint->count; }

const safetensors_tensor_t *safetensors_at(const safetensors_t *checkpoint, size_t index)
{
    QN_ASSERT(index < checkpoint->count);
    return &checkpoint->tensors[index];
}

const qn_model_warnings_t *safetensors_warnings(const safetensors_t *checkpoint) { return &checkpoint->warnings; }

size_t safetensors_absent(const safetensors_t *checkpoint, char *text, size_t capacity)
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < checkpoint->absent_count; i++) {
        const char *name = i < ABSENT_NAMED ? checkpoint->absent[i] : "...";
        if (i <= ABSENT_NAMED && used < capacity)
            used += (size_t)snprintf(text + used, capacity - used, "%s%s", i ? ", " : "", name);
    }
    return checkpoint->absent_count;
}

size_t safetensors_file_count(const safetensors_t *checkpoint) { return checkpoint->file_count; }

static const checkpoint_file_t *file_at(const safetensors_t *checkpoint, unsigned file_index)
{
    QN_ASSERT(file_index < checkpoint->file_count);
    return &checkpoint->files[file_index];
}

const char *safetensors_file_path(const safetensors_t *checkpoint, unsigned file_index)
{
    return file_at(checkpoint, file_index)->path;
}

uint64_t safetensors_file_bytes(const safetensors_t *checkpoint, unsigned file_index)
{
    return file_at(checkpoint, file_index)->length;
}

int safetensors_file_fd(const safetensors_t *checkpoint, unsigned file_index)
{
    return file_at(checkpoint, file_index)->fd;
}

const char *safetensors_dtype_name(safetensors_dtype_t dtype) { return dtypes[dtype].name; }

size_t safetensors_dtype_bytes(safetensors_dtype_t dtype) { return dtypes[dtype].bytes; }

uint64_t safetensors_elements(const safetensors_tensor_t *tensor)
{
    uint64_t elements = 1;
    for (unsigned i = 0; i < tensor->rank; i++)
        elements *= tensor->shape[i];
    return elements;
}

static float widen_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float safetensors_widen_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return widen_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent) return widen_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = (float)fraction * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

qn_err_t safetensors_read_f32(const safetensors_tensor_t *tensor, uint64_t first, uint64_t count, float *ret_values)
{
    uint64_t elements = safetensors_elements(tensor);
    QN_ASSERT(first <= elements && count <= elements - first);
    const uint8_t *source = tensor->data + first * dtypes[tensor->dtype].bytes;
    uint16_t narrow;
    switch (tensor->dtype) {
    case SAFETENSORS_F32: memcpy(ret_values, source, count * sizeof *ret_values); return QN_OK;
    case SAFETENSORS_BF16:
    case SAFETENSORS_F16:
        for (uint64_t i = 0; i < count; i++) {
            memcpy(&narrow, source + 2 * i, sizeof narrow);
            ret_values[i] =
                tensor->dtype == SAFETENSORS_F16 ? safetensors_widen_f16(narrow) : widen_bits((uint32_t)narrow << 16);
        }
        return QN_OK;
    case SAFETENSORS_F64:
        for (uint64_t i = 0; i < count; i++) {
            double wide;
            memcpy(&wide, source + sizeof wide * i, sizeof wide);
            ret_values[i] = (float)wide;
        }
        return QN_OK;
    default:
        return qn_fail(QN_ERR_UNSUPPORTED, "tensor '%s': reading %s as f32 is not supported", tensor->name,
                       dtypes[tensor->dtype].name);
    }
}
