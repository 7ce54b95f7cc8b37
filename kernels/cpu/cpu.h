/* What the CPU implementations share: splitting work over the stream's threads, and reading weights of either type.
 * For files in kernels/cpu/ only. */
#ifndef QN_KERNELS_CPU_CPU_H
#define QN_KERNELS_CPU_CPU_H

#include <string.h>

#include "common/assert.h"
#include "kernels/kernels.h"

/* Works on items [begin, end) as thread `thread` of the stream. */
typedef void (*qn_cpu_body_t)(const void *arguments, size_t begin, size_t end, unsigned thread);

/* Splits [0, items) into equal contiguous ranges, one per thread, and returns when all are done. Fewer threads are
 * used when a range would be below `grain` items, which is what repays waking a thread. */
void qn_cpu_split(qn_stream_t *stream, size_t items, size_t grain, qn_cpu_body_t body, const void *arguments);

/* Memory of the stream for a kernel's own intermediates, 64-byte aligned and valid until the kernel's launch returns:
 * one piece per thread, as `thread` of a body, and one that all threads share. */
#define QN_WORKSPACE_BYTES ((size_t)1 << 20)
#define QN_SHARED_BYTES ((size_t)4 << 20)
void *qn_cpu_workspace(qn_stream_t *stream, unsigned thread);
void *qn_cpu_shared(qn_stream_t *stream);

static inline float qn_bf16_to_f32(uint16_t value)
{
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

/* Round to nearest, ties to even, as torch does; NaN stays NaN. */
static inline uint16_t qn_f32_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/* Element `index` of an array of `scalar`. */
static inline float qn_load(const void *data, qn_scalar_t scalar, size_t index)
{
    if (scalar == QN_SCALAR_F32) return ((const float *)data)[index];
    return qn_bf16_to_f32(((const uint16_t *)data)[index]);
}

/* Items of `cost` scalar operations each that make up about 10 µs of one core. */
static inline size_t qn_grain(size_t cost) { return 20000 / (cost ? cost : 1) + 1; }

/* The launch functions: qn_cpu_<function> of each row, named after operation and instruction set. */
#define QN_CPU_KERNEL(operation, name, isa, rank, accepts, function) \
    void qn_cpu_##function(qn_stream_t *stream, const void *arguments);
#include "kernels/cpu/kernels.def"

#endif
