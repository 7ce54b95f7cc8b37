/* The numbers of a checkpoint: F16, BF16, F32 and F64. */
#ifndef QN_MEMORY_WEIGHTS_WEIGHTS_NUMBER_H
#define QN_MEMORY_WEIGHTS_WEIGHTS_NUMBER_H

#include <stdint.h>

#include "services/memory/weights/safetensors.h"

/* The bits of the smallest f64 that is rounded to an infinite f32: half a step above the largest f32. */
#define WEIGHTS_F64_BEYOND_F32 0x47effffff0000000

/* `count` elements of `raw` (any alignment) as f32: exact, but F64 is rounded to nearest. */
void weights_number_widen(safetensors_dtype_t dtype, const uint8_t *raw, uint64_t count, float *ret_values);
/* The first of `count` elements that is NaN or infinite, or an F64 that would be infinite as f32; `count` when none
 * is. One pass without branches over what should be in the cache. */
uint64_t weights_number_not_finite(safetensors_dtype_t dtype, const uint8_t *raw, uint64_t count);

#endif
