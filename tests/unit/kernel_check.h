/* What the kernel tests share: seeded values, choosing an implementation by name, comparing with the reference. */
#ifndef QN_TESTS_UNIT_KERNEL_CHECK_H
#define QN_TESTS_UNIT_KERNEL_CHECK_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/cpu.h"

#define CHECK_HELPER static __attribute__((unused))

/* xorshift64*: the same values everywhere. */
CHECK_HELPER uint64_t check_next(uint64_t *seed)
{
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return *seed * 2685821657736338717ull;
}

CHECK_HELPER float check_uniform(uint64_t *seed) { return (float)(check_next(seed) >> 40) * 0x1p-23f - 1; }

/* Values in [-1, 1]; with `outliers`, one in a hundred is a thousand times larger, as in activations of real models. */
CHECK_HELPER float *check_values(size_t count, uint64_t seed, bool outliers)
{
    float *values = malloc((count + 1) * sizeof *values);
    uint64_t state = seed * 2654435761u + 1;
    for (size_t i = 0; i < count; i++) {
        values[i] = check_uniform(&state);
        if (outliers && check_next(&state) % 100 == 0) values[i] *= 1000;
    }
    return values;
}

/* The values as weights of `scalar`; for bf16 the values themselves are rounded too. Owned. */
CHECK_HELPER qn_weight_t check_weight(float *values, size_t count, qn_scalar_t scalar)
{
    void *data = malloc((count + 1) * qn_scalar_bytes(scalar));
    for (size_t i = 0; i < count; i++) {
        if (scalar == QN_SCALAR_F32) {
            ((float *)data)[i] = values[i];
        } else {
            ((uint16_t *)data)[i] = qn_f32_to_bf16(values[i]);
            values[i] = qn_bf16_to_f32(((uint16_t *)data)[i]);
        }
    }
    return (qn_weight_t){.data = data, .scalar = scalar};
}

/* The row of the registry; NULL when this machine cannot run it. */
CHECK_HELPER const qn_kernel_t *check_kernel(qn_op_t op, const char *name)
{
    size_t count;
    const qn_kernel_t *rows = qn_kernels(&count);
    for (size_t i = 0; i < count; i++)
        if (rows[i].op == op && strcmp(rows[i].name, name) == 0)
            return rows[i].isa & ~qn_kernels_isa() ? NULL : &rows[i];
    fail_msg("no implementation %s", name);
    return NULL;
}

CHECK_HELPER qn_stream_t *check_stream(uint32_t threads)
{
    qn_stream_t *stream;
    assert_int_equal(qn_stream_create(&(qn_stream_options_t){.threads = threads}, &stream), QN_OK);
    return stream;
}

static const char *const CHECK_FAST[] = {"avx2", "avx512"};
#define CHECK_FAST_COUNT 2

#endif
