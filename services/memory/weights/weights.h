/* The weights: which tensors go where in the weights region, in which format, and bringing them there.
 *
 * A plan is made from the headers of a checkpoint (or, for load_format dummy, from the configuration alone) in
 * milliseconds; filling reads, converts and packs the bytes with a few threads. The region holds the tensors of
 * model_tensors.h in that order, each at a multiple of QN_REGION_ALIGN, in the format of weights_format.h: matrices of
 * products packed or quantised, the others as the checkpoint has them (F16 and F64 become F32). A source may hold
 * several tensors, or be transposed (GPT-2); its name may lack the "model." or "transformer." in front, as in
 * checkpoints of a model without its head. Every tensor must be there with its shape, all its numbers finite, and the
 * layers must be as many as the configuration says. Whatever else the checkpoint holds is left out, and said in
 * weights_warnings.
 *
 * Fingerprint: XXH64 over names, formats, shapes and places of all tensors, size and modification time of every file,
 * and 256 bytes from the middle of every tensor's source. It changes with every edit, replacement or renewed download
 * of a file and with every other format, is computed without reading the weights, and so tells whether a region kept by
 * the service manager still is the model on disk. It is not a checksum of the content. */
#ifndef QN_MEMORY_WEIGHTS_WEIGHTS_H
#define QN_MEMORY_WEIGHTS_WEIGHTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/model/model_config.h"
#include "common/region/region.h"
#include "services/memory/weights/weights_format.h"

#define WEIGHTS_THREADS_MAX 16

typedef struct {
    const char *name; /* view of the plan */
    qn_scalar_t scalar;
    qn_layout_t layout;
    uint32_t group;         /* int4, else 0 */
    uint32_t rank;          /* 1 or 2 */
    uint64_t shape[2];      /* [outputs, inputs], or [outputs] */
    uint64_t offset, bytes; /* in the region */
} weights_tensor_t;

typedef struct weights weights_t;

/* Shared with the thread that fills; zero it first. */
typedef struct {
    _Atomic uint64_t done_bytes; /* of the region */
    atomic_bool cancel;          /* set: weights_fill ends soon with QN_ERR_CANCELLED */
} weights_progress_t;

/* Plans the checkpoint in `directory` (a file will do). QN_ERR_NOT_FOUND, QN_ERR_INVALID, QN_ERR_UNSUPPORTED; the text names file and
 * tensor. Blocks for the headers and one small read per tensor. Returns owned. */
qn_err_t weights_plan(const char *directory, const qn_model_config_t *config, const weights_format_t *format,
                      weights_t **ret_weights);
/* Plans weights that depend on nothing but `config` and `seed`, made in bf16 and then brought into the format: norms
 * are such that they scale by 1, the others uniform with mean 0 and a standard deviation of 0.02. Returns owned. */
qn_err_t weights_plan_dummy(const qn_model_config_t *config, uint64_t seed, const weights_format_t *format,
                            weights_t **ret_weights);
void weights_destroy(weights_t **weights);

/* Brings all tensors into `region`, whose size is weights_bytes and whose bytes are zero, with `threads` threads (1 ..
 * WEIGHTS_THREADS_MAX). Blocks for as long as that takes. Bytes are the same for any number of threads.
 * QN_ERR_INVALID: a number that is not finite, or too great to be quantised; QN_ERR_IO: a file failed; QN_ERR_NO_MEMORY. */
qn_err_t weights_fill(const weights_t *weights, const qn_mapping_t *region, unsigned threads,
                      weights_progress_t *progress);
/* Closes the checkpoint's files: after this only the table is left. */
void weights_close_files(weights_t *weights);

size_t weights_count(const weights_t *weights);
const weights_tensor_t *weights_at(const weights_t *weights, size_t index);
/* Size of the region. */
uint64_t weights_bytes(const weights_t *weights);
uint64_t weights_fingerprint(const weights_t *weights);
/* The model as the checkpoint holds it: `config`, but with a head of its own where the checkpoint has one. Its tensors
 * are those of the plan. */
const qn_model_config_t *weights_config(const weights_t *weights);
const qn_model_warnings_t *weights_warnings(const weights_t *weights);
/* Tensors of the checkpoint that the model does not need. */
size_t weights_left_out(const weights_t *weights);

#endif
