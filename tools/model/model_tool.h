/* What `quintet model` does with a model directory: cmd_model.c reads the command line, model_show.c describes,
 * model_check.c examines. Each prints its answer and returns an exit status. */
#ifndef QN_TOOLS_MODEL_MODEL_TOOL_H
#define QN_TOOLS_MODEL_MODEL_TOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/config/config.h"
#include "common/model/model_tensors.h"
#include "services/memory/kv_size.h"
#include "services/memory/weights/model_directory.h"
#include "services/memory/weights/safetensors.h"

/* Shape, tensors and memory plan of model.path. `tensors`: each of them instead of one line per kind. */
int model_tool_show(const qn_config_values_t *values, bool json, bool tensors);
/* Everything that would go wrong when model.path is loaded. `quick`: without reading the weights. */
int model_tool_check(const qn_config_values_t *values, bool json, bool quick);

/* "[4096, 256]"; returns `text`. */
const char *model_tool_shape_text(const uint64_t *shape, unsigned rank, char *text, size_t capacity);
/* "14.0 MiB"; returns `text`. */
const char *model_tool_bytes_text(uint64_t bytes, char *text, size_t capacity);

typedef struct {
    const char *dtype;    /* memory.kv_dtype */
    uint64_t token_bytes; /* of one position, all layers */
    uint64_t free_bytes;  /* of this host or the GPU; 0: a GPU that cannot be asked (qn_err_text says why) */
    kv_size_t size;       /* block_count 0: it does not fit, or free_bytes is 0 */
} model_kv_t;

/* The KV region as memory would make it now, with `weights` bytes taken. On failure (what does not fit: QN_ERR_CONFIG,
 * QN_ERR_LIMIT, QN_ERR_NO_MEMORY) the other fields of *ret_kv are written too. */
qn_err_t model_tool_kv(const qn_config_values_t *values, const model_directory_t *directory, uint64_t weights,
                       model_kv_t *ret_kv);

/* What a walk over the numbers of one tensor found. */
typedef struct {
    uint64_t not_finite; /* NaN or infinite, as f32 */
    uint64_t first;      /* the first of them, counted in elements */
    bool all_zero;
} model_scan_t;

/* Reads all of an F64, F32, BF16 or F16 tensor. QN_ERR_IO: the file became shorter, or a disk failed. */
qn_err_t model_tool_scan(const safetensors_t *checkpoint, const safetensors_tensor_t *tensor, model_scan_t *ret_scan);

#endif
