/* The table of the fastest kernels: a JSON file that people may read, compare and copy from machine to machine.
 *
 *   {"format": 1,
 *    "machines": {
 *      "<machine, threads and model in words>": {
 *        "chosen": {"matmul": "avx512", ...},            one implementation per operation: what the registry takes
 *        "measured": [{"operation", "shape", "us": {"avx2": 12.5, "avx512": 9.1}}, ...],
 *        "at": "2026-11-30T21:00:00Z", "build": "..."}}}
 *
 * An entry is used where its key is, word for word, what compute says of itself: other machines and models do not touch it. */
#ifndef QN_COMPUTE_KERNELS_TUNE_TABLE_H
#define QN_COMPUTE_KERNELS_TUNE_TABLE_H

#include <jansson.h>

#include "kernels/kernels.h"
#include "services/compute/kernels/live_kernels.h"

#define TUNE_KEY_MAX 512

/* Words for this machine and model. `device`: of the backend's describe ("2 threads", "NVIDIA H200"). */
void tune_table_key(const char *backend, const char *device, uint32_t isa, const qn_kernel_case_t *shape,
                    const char *weights, bool deterministic, char ret_key[TUNE_KEY_MAX]);
/* "op=name,op=name" of the entry; "" when there is none, or no file. QN_ERR_INVALID: the file is not as above. */
qn_err_t tune_table_read(const char *path, const char *key, char ret_tuned[LIVE_CHOICE_MAX]);
/* Adds `chosen` (operation -> name) and `measured` (both borrowed) to the entry; operations that are not named stay as they are.
 * Atomic. QN_ERR_IO; QN_ERR_INVALID: the file is there and not as above. */
qn_err_t tune_table_write(const char *path, const char *key, const json_t *chosen, const json_t *measured);

#endif
