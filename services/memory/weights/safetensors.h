/* Reads safetensors checkpoints: one file, or a Hugging Face directory. In a directory the weights are model.safetensors;
 * else the files that model.safetensors.index.json names; else the one numbered set (model-00001-of-00003.safetensors),
 * or all other .safetensors files but adapters. Files are mapped read-only; nothing is copied or converted.
 *
 * Of an index only the names of its files count, as in transformers: each file says itself what it holds, and of equal
 * names the one in the last file by name is taken. A file that the index names and that is not there is an error only
 * to whoever needs a tensor of it (safetensors_absent). What does not agree is in safetensors_warnings.
 *
 * Format: u64 little-endian header length N; N bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end)},
 * "__metadata__": {...}}; then the data, offsets counted from its start. https://huggingface.co/docs/safetensors
 *
 * A file is accepted only when, as in the reference implementation, every byte of data belongs to exactly one tensor:
 * no overlap, no gap, nothing beyond the end; shape × element size equals the span; names are unique. Everything else
 * is QN_ERR_INVALID with a text that names the file and the tensor. A dtype that is not known is not an error by itself. Blocks for reading the headers only. */
#ifndef QN_MEMORY_WEIGHTS_SAFETENSORS_H
#define QN_MEMORY_WEIGHTS_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/model/model_warnings.h"

#define SAFETENSORS_RANK_MAX 8                   /* as Tensor.shape in common.fbs */
#define SAFETENSORS_NAME_MAX 256                 /* bytes, as Tensor.name in common.fbs */
#define SAFETENSORS_HEADER_BYTES_MAX (16u << 20) /* QN_TENSORS_MAX tensors of 256 bytes; the JSON tree takes 20x */
#define SAFETENSORS_FILES_MAX 512                /* each holds a descriptor; the largest models have about 200 */

typedef enum {
    SAFETENSORS_BOOL,
    SAFETENSORS_U8,
    SAFETENSORS_I8,
    SAFETENSORS_F8_E4M3,
    SAFETENSORS_F8_E5M2,
    SAFETENSORS_F8_E8M0,
    SAFETENSORS_I16,
    SAFETENSORS_U16,
    SAFETENSORS_F16,
    SAFETENSORS_BF16,
    SAFETENSORS_I32,
    SAFETENSORS_U32,
    SAFETENSORS_F32,
    SAFETENSORS_I64,
    SAFETENSORS_U64,
    SAFETENSORS_F64,
    SAFETENSORS_OTHER, /* a dtype that is not known here: its size is what the offsets say */
    SAFETENSORS_DTYPE_COUNT
} safetensors_dtype_t;

typedef struct {
    const char *name; /* view, ≤ SAFETENSORS_NAME_MAX bytes, no NUL inside */
    safetensors_dtype_t dtype;
    unsigned rank;                        /* 0: a scalar */
    uint64_t shape[SAFETENSORS_RANK_MAX]; /* row-major, outermost first; may hold 0 */
    uint64_t bytes;
    uint64_t file_offset; /* of the first byte, from the start of the file (for pread) */
    unsigned file_index;
    bool replaced;       /* a later file holds a tensor of this name, which is the one that counts */
    const uint8_t *data; /* view of the mapping; any alignment (see safetensors_read_f32) */
} safetensors_tensor_t;

typedef struct safetensors safetensors_t;

/* Opens a file, or a directory (model.safetensors wins over an index, as in transformers). QN_ERR_NOT_FOUND: no such
 * file, or a directory without any. Returns owned. */
qn_err_t safetensors_open(const char *path, safetensors_t **ret_checkpoint);
/* The same for one file already in memory: borrows `bytes` until close. `label` names it in errors. */
qn_err_t safetensors_open_bytes(const void *bytes, size_t length, const char *label, safetensors_t **ret_checkpoint);
void safetensors_close(safetensors_t **checkpoint);

/* Tensors in the order of their bytes: by file, then by offset. */
size_t safetensors_count(const safetensors_t *checkpoint);
const safetensors_tensor_t *safetensors_at(const safetensors_t *checkpoint, size_t index);
/* NULL: no tensor of this name. */
const safetensors_tensor_t *safetensors_find(const safetensors_t *checkpoint, const char *name);

/* What does not agree in the files of a directory and was decided; borrowed from the checkpoint. */
const qn_model_warnings_t *safetensors_warnings(const safetensors_t *checkpoint);
/* Files that belong to the checkpoint and are not there: "a, b, ..." in `text`; returns how many. */
size_t safetensors_absent(const safetensors_t *checkpoint, char *text, size_t capacity);

size_t safetensors_file_count(const safetensors_t *checkpoint);
/* Path and size of a file, and its descriptor (-1 from safetensors_open_bytes); borrowed from the checkpoint. */
const char *safetensors_file_path(const safetensors_t *checkpoint, unsigned file_index);
uint64_t safetensors_file_bytes(const safetensors_t *checkpoint, unsigned file_index);
int safetensors_file_fd(const safetensors_t *checkpoint, unsigned file_index);

/* "BF16" and the bytes of one element. */
const char *safetensors_dtype_name(safetensors_dtype_t dtype);
size_t safetensors_dtype_bytes(safetensors_dtype_t dtype);
/* Product of the shape (1 for a scalar); it was checked against `bytes` when the file was opened. */
uint64_t safetensors_elements(const safetensors_tensor_t *tensor);
/* IEEE binary16 -> binary32, exact; subnormals, infinities and NaN payloads included. */
float safetensors_widen_f16(uint16_t half);
/* Copies elements [first, first + count) as f32: exact, but F64 is rounded. QN_ERR_UNSUPPORTED unless F64, F32, BF16 or
 * F16. */
qn_err_t safetensors_read_f32(const safetensors_tensor_t *tensor, uint64_t first, uint64_t count, float *ret_values);

#endif
