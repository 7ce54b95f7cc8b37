/* Where the bytes of the weights go. A host region is written in place. A device region is written by way of pinned
 * buffers: while some are copied to the device, others are filled from files. For weights_fill.c only.
 *
 *     take a piece -> fill it -> send it      by any number of threads, in any order; a thread holds one piece at most
 *     finish                                  all pieces are in the region */
#ifndef QN_MEMORY_WEIGHTS_WEIGHTS_TARGET_H
#define QN_MEMORY_WEIGHTS_WEIGHTS_TARGET_H

#include <stdint.h>

#include "common/err.h"
#include "common/region/region.h"

typedef struct weights_target weights_target_t;

typedef struct {
    /* For `threads` threads and pieces of at most `piece_bytes`. On failure nothing is left behind. */
    qn_err_t (*open)(weights_target_t *target, unsigned threads, uint64_t piece_bytes);
    /* Host memory for what belongs at `offset`: the caller's until sent or dropped. May block until there is some. */
    qn_err_t (*take)(weights_target_t *target, uint64_t offset, uint8_t **ret_piece);
    /* The piece's first `bytes` go to `offset`; it is the target's again, also on failure. */
    qn_err_t (*send)(weights_target_t *target, uint64_t offset, uint8_t *piece, uint64_t bytes);
    void (*drop)(weights_target_t *target, uint8_t *piece);
    /* Makes `count` bf16 elements of dummy weights where they belong: random ones of this stream (weights_internal.h),
     * or one value over and over. `offset` is a multiple of 8. Does not wait. Both NULL: pieces are sent. */
    qn_err_t (*fill_dummy)(weights_target_t *target, uint64_t offset, uint64_t count, uint64_t stream);
    qn_err_t (*repeat)(weights_target_t *target, uint64_t offset, uint64_t count, uint16_t value);
    qn_err_t (*finish)(weights_target_t *target);
    /* What was sent and is not finished may or may not arrive. */
    void (*close)(weights_target_t *target);
} weights_target_kind_t;

struct weights_target {
    const weights_target_kind_t *kind;
    uint8_t *base; /* of the region */
    int32_t device;
    void *loader; /* device: the pinned buffers */
};

extern const weights_target_kind_t weights_target_host;
#ifdef QN_CUDA
extern const weights_target_kind_t weights_target_device;
#endif

#endif
