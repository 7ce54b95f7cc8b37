/* What this machine can do at most, measured: the denominators of every percentage that a benchmark prints.
 *
 * Reading is of a buffer far larger than the last-level cache, each thread a part of its own, the best of several ways
 * to read. Arithmetic is of registers alone: chains of independent instructions, enough to fill the pipes. */
#ifndef QN_KERNELS_BENCH_MACHINE_SPEED_H
#define QN_KERNELS_BENCH_MACHINE_SPEED_H

#include <jansson.h>
#include <stdint.h>

#include "common/err.h"
#include "kernels/kernels.h"

#define MACHINE_THREADS_MAX 256

typedef struct {
    unsigned threads; /* of the figures that are not of one */
    uint64_t buffer_bytes, cache_bytes;
    double read_one, read_all; /* bytes/s from memory */
    /* Operations/s of all threads; a multiplication and an addition are two. 0: there is no such instruction. */
    double f32, bf16, int8;
    double f32_one; /* of one thread */
} machine_speed_t;

/* Takes about two seconds. `threads` 0: one per core this process may use; at most MACHINE_THREADS_MAX are used.
 * `buffer_bytes` 0: eight times the last-level cache, 256 MiB at the least. Failure: QN_ERR_NO_MEMORY, QN_ERR_IO
 * (threads refused). */
qn_err_t machine_speed_measure(unsigned threads, uint64_t buffer_bytes, machine_speed_t *ret_speed);
/* Of the last-level cache; 0: not known. */
uint64_t machine_cache_bytes(void);
/* What is known of a GPU of this name: what a plain read and large bf16 products of a vendor's library reached on one;
 * zeros for others. */
void machine_speed_of_gpu(const char *name, machine_speed_t *ret_speed);
/* Raises every figure of `speed` to that of `other` where that is more: a limit is not lowered by what else ran. */
void machine_speed_raise(machine_speed_t *speed, const machine_speed_t *other);

/* What a product is limited by: the peak of the instructions that a kernel of this name uses on weights in `scalar`. */
typedef enum { MACHINE_PEAK_F32, MACHINE_PEAK_BF16, MACHINE_PEAK_INT8 } machine_peak_t;
machine_peak_t machine_peak_of(const char *kernel_name, qn_scalar_t scalar);
/* Operations/s, and "f32", "bf16" or "int8". */
double machine_peak_speed(const machine_speed_t *speed, machine_peak_t peak);
const char *machine_peak_name(machine_peak_t peak);

/* "machine: 22.1 GB/s, f32 298 GFLOP/s, int8 dot 1190 GOP/s, 2 threads" on standard output; what there is no
 * instruction for is left out. */
void machine_speed_print(const machine_speed_t *speed);
/* {"threads": .., "read": .., "read_one": .., "f32": .., "bf16": .., "int8": ..}. Returns owned. */
json_t *machine_speed_json(const machine_speed_t *speed);

#endif
