/* What the two GPU programs share: device memory by bump pointer, values with planted outliers, conversion between the
 * reference's float32 and the device's types. */
#ifndef QN_TESTS_GPU_GPU_TEST_H
#define QN_TESTS_GPU_GPU_TEST_H

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cuda/cuda.h"

static inline void must(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    exit(70);
}

static inline void must_ok(qn_err_t err)
{
    if (!err) return;
    fprintf(stderr, "%s (%s)\n", qn_err_text(), qn_err_origin());
    exit(70);
}

/* ---- device memory: taken from one allocation, given back all at once ---- */

typedef struct {
    char *base;
    size_t bytes, used;
} arena_t;

static inline void arena_make(arena_t *arena, size_t bytes)
{
    *arena = (arena_t){.bytes = bytes};
    must(cudaMalloc((void **)&arena->base, bytes), "device memory");
}

static inline void *arena_take(arena_t *arena, size_t bytes)
{
    char *at = arena->base + arena->used;
    arena->used += (bytes + 255) / 256 * 256;
    if (arena->used <= arena->bytes) return at;
    fprintf(stderr, "the test needs more than %zu bytes of device memory\n", arena->bytes);
    exit(70);
}

static inline void *push(arena_t *arena, const void *from, size_t bytes)
{
    void *to = arena_take(arena, bytes);
    /* Copies of pageable memory and fills may still run when the call returns, and streams of kernels do not wait for
     * them. */
    must(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "copy to the device");
    must(cudaDeviceSynchronize(), "copy to the device");
    return to;
}

static inline void pull(void *to, const void *from, size_t bytes)
{
    must(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copy from the device");
}

/* ---- host memory of one check ---- */

#define HELD_MAX 256
typedef struct {
    void *memory[HELD_MAX];
    unsigned count;
} held_t;

static inline void *hold(held_t *held, size_t bytes)
{
    void *memory = calloc(1, bytes ? bytes : 1);
    if (!memory || held->count == HELD_MAX) exit(70);
    held->memory[held->count++] = memory;
    return memory;
}

static inline void held_free(held_t *held)
{
    while (held->count)
        free(held->memory[--held->count]);
}

/* ---- values ---- */

typedef struct {
    uint64_t state;
} random_t;

static inline uint32_t random_word(random_t *random)
{
    random->state = random->state * 6364136223846793005u + 1442695040888963407u;
    uint32_t word = (uint32_t)(random->state >> 33);
    word ^= word >> 15;
    return word * 2246822519u ^ word >> 13;
}

static inline uint32_t random_below(random_t *random, uint32_t bound)
{
    return (uint32_t)((uint64_t)random_word(random) * bound >> 32);
}

static inline float random_uniform(random_t *random) { return (float)(random_word(random) >> 8) * 0x1p-24f; }

/* About normal, with mean 0 and the deviation given. */
static inline float random_normal(random_t *random, float deviation)
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += random_uniform(random);
    return (sum - 2) * 1.7320508f * deviation;
}

static inline float as_scalar(float value, qn_scalar_t scalar)
{
    return scalar == QN_SCALAR_F32 ? value : qn_bf16_to_f32(qn_f32_to_bf16(value));
}

/* Normal values that `scalar` can hold; one in `outliers` (0: none) is a hundred times as large. */
static inline void fill(random_t *random, float *values, size_t count, float deviation, uint32_t outliers,
                        qn_scalar_t scalar)
{
    for (size_t i = 0; i < count; i++) {
        float factor = outliers && random_below(random, outliers) == 0 ? 100 : 1;
        values[i] = as_scalar(random_normal(random, deviation) * factor, scalar);
    }
}

/* `values` in the scalar's own type; held. */
static inline void *encode(held_t *held, const float *values, size_t count, qn_scalar_t scalar)
{
    void *bytes = hold(held, count * qn_scalar_bytes(scalar));
    if (scalar == QN_SCALAR_F32)
        memcpy(bytes, values, count * sizeof *values);
    else
        for (size_t i = 0; i < count; i++)
            ((uint16_t *)bytes)[i] = qn_f32_to_bf16(values[i]);
    return bytes;
}

static inline void decode(const void *bytes, size_t count, qn_scalar_t scalar, float *ret_values)
{
    for (size_t i = 0; i < count; i++)
        ret_values[i] = qn_load(bytes, scalar, i);
}

#endif
