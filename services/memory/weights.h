/* The weights: which tensors go where in the weights region, and bringing them there.
 *
 * A plan is made from the headers of a checkpoint (or, for load_format dummy, from the configuration alone) in
 * milliseconds; filling copies the bytes with a few threads. Tensors keep name, dtype and shape of the checkpoint, but
 * F16 becomes F32, and begin at multiples of QN_REGION_ALIGN, in the order of the files. Every tensor the model needs (model_tensors.h)
 * must be there with its shape; others are brought along when their dtype has a name in the schema, and left out
 * otherwise.
 *
 * Fingerprint: XXH64 over names, dtypes, shapes and places of all tensors, size and modification time of every file,
 * and 256 bytes from the middle of every tensor. It changes with every edit, replacement or renewed download of a
 * file, is computed without reading the weights, and so tells whether a region kept by the service manager still is
 * the model on disk. It is not a checksum of the content. */
#ifndef QN_MEMORY_WEIGHTS_H
#define QN_MEMORY_WEIGHTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/model_config.h"
#include "common/region.h"

#define WEIGHTS_THREADS_MAX 16

typedef struct {
    const char *name;              /* view of the plan */
    qn_dtype_t dtype;
    uint32_t rank;
    uint64_t shape[8];
    uint64_t offset, bytes;        /* in the region */
} weights_tensor_t;

typedef struct weights weights_t;

/* Shared with the thread that fills; zero it first. */
typedef struct {
    _Atomic uint64_t done_bytes;
    atomic_bool cancel;            /* set: weights_fill ends soon with QN_ERR_CANCELLED */
} weights_progress_t;

/* Plans the checkpoint in `directory`. QN_ERR_NOT_FOUND, QN_ERR_INVALID, QN_ERR_UNSUPPORTED; the text names file and
 * tensor. Blocks for the headers and one small read per tensor. Returns owned. */
qn_err_t weights_plan(const char *directory, const qn_model_config_t *config, weights_t **ret_weights);
/* Plans bf16 weights that depend on nothing but `config` and `seed`: norms are 1, the others uniform with mean 0 and a
 * standard deviation of 0.02. Returns owned. */
qn_err_t weights_plan_dummy(const qn_model_config_t *config, uint64_t seed, weights_t **ret_weights);
void weights_destroy(weights_t **weights);

/* Copies (or invents) all tensors into `region`, whose size is weights_bytes, with `threads` threads (1 ..
 * WEIGHTS_THREADS_MAX). Blocks for as long as that takes. Bytes are the same for any number of threads. */
qn_err_t weights_fill(const weights_t *weights, const qn_mapping_t *region, unsigned threads,
                      weights_progress_t *progress);
/* Closes the checkpoint's files: after this only the table is left. */
void weights_close_files(weights_t *weights);

size_t weights_count(const weights_t *weights);
const weights_tensor_t *weights_at(const weights_t *weights, size_t index);
/* Size of the region. */
uint64_t weights_bytes(const weights_t *weights);
uint64_t weights_fingerprint(const weights_t *weights);
/* Tensors of the checkpoint that were left out because the schema has no name for their dtype. */
size_t weights_left_out(const weights_t *weights);

#endif
