/* What is done beside the network in one pass: masks for attention, and taps that read, replace or add rows at named sites.
 * All runs of a pass share the masks; a pass with taps has one run. */
#ifndef QN_COMPUTE_FORWARD_FORWARD_PROBE_H
#define QN_COMPUTE_FORWARD_FORWARD_PROBE_H

#include "common/probe/probe.h"
#include "services/compute/backend/backend.h"

typedef struct {
    const qn_probe_t *probe;
    const backend_t *backend;
    /* on the device */
    const qn_mask_t *masks; /* [probe->mask_count] */
    const void *values;     /* [probe->value_count], of the activations' type */
    uint64_t *kv_read;      /* [runs, 2] */
    void *aside;            /* [T, E]: the residual stream, while what is added to it is looked at */
    /* weights of attention in one layer, or NULL */
    float *weights; /* [T, H, weight_columns] */
    uint32_t weight_layer, weight_columns;
    /* of a pass with taps */
    uint32_t position, tokens; /* of its run */
    uint8_t *workspace;        /* where taps read to; NULL: nowhere (any more) */
    uint64_t workspace_bytes;
} forward_probe_t;

typedef struct forward forward_t;

/* The rows of this pass that the tap is about: `count` from row `first` on; false: none. */
bool forward_tap_range(const forward_probe_t *probe, const qn_tap_point_t *tap, uint32_t *ret_first,
                       uint32_t *ret_count);
/* Copies `count` rows, which are the pass's from row `first` on, to where the tap wants them. */
void forward_read_rows(const forward_t *forward, const qn_tap_point_t *tap, const void *rows, size_t row_bytes,
                       uint32_t first, uint32_t count);

#endif
