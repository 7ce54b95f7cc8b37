/* Which tensor of a checkpoint is which tensor of the model, and what a checkpoint says of the model that config.json
 * does not: for weights.c, and for `quintet model`. */
#ifndef QN_MEMORY_WEIGHTS_WEIGHTS_SOURCE_H
#define QN_MEMORY_WEIGHTS_WEIGHTS_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/model/model_tensors.h"
#include "services/memory/weights/safetensors.h"

/* Makes `config` that of this checkpoint, as transformers does. A head that is not the embedding, beside a
 * tie_word_embeddings of true, is used: config->tie_embeddings becomes false (both are read to know; without both
 * nothing is). Adds to `warnings` what is decided. QN_ERR_INVALID: the checkpoint has another number of layers.
 * QN_ERR_NOT_FOUND: so it seems, but files are missing. QN_ERR_IO. */
qn_err_t weights_source_settle(const safetensors_t *checkpoint, qn_model_config_t *config,
                               qn_model_warnings_t *warnings);

/* The source of `wanted`: by its name; by what is left of it in a checkpoint of the model without its head; for a tied
 * embedding also the head, which is the one that some programs keep of the two. NULL: it is not there. */
const safetensors_tensor_t *weights_source_find(const safetensors_t *checkpoint, const qn_model_config_t *config,
                                                const qn_model_tensor_t *wanted);
/* The shape that the source must have; as many numbers as wanted->rank. */
void weights_source_shape(const qn_model_tensor_t *wanted, uint64_t *ret_shape);
/* Whether its numbers can be read. */
bool weights_source_readable(safetensors_dtype_t dtype);

/* Says which tensors nobody needs, but for those that never were weights (masks and angles that older versions of
 * transformers saved) and a head that equals the embedding. `needed`: one flag per tensor of the checkpoint. */
void weights_source_warn_left_out(const safetensors_t *checkpoint, const qn_model_config_t *config, const bool *needed,
                                  qn_model_warnings_t *warnings);

#endif
