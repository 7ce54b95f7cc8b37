/* A probe: what a request wants done beside the network. Rules on what its queries attend to (masks), and points at which
 * its rows are read, replaced or added to (taps). It travels like sampling parameters: Encode, Submit, the ledger, StepPlan,
 * compute's slot. Its parts are the wire's own structs, so that every service checks and keeps the same thing.
 *
 * A probe that changes what is written to the KV cache (masks, taps that write) has an identity that must be part of its
 * blocks': qn_probe_salt. Plain functions, any thread. */
#ifndef QN_COMMON_PROBE_PROBE_H
#define QN_COMMON_PROBE_PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "qn_messages.h"

/* Views. */
typedef struct {
    const qn_mask_rule_t *masks;
    const qn_tap_point_t *taps;
    const float *values;
    uint32_t mask_count, tap_count, value_count;
    uint64_t workspace, workspace_until_ns; /* region that taps read into, 0: none; CLOCK_MONOTONIC */
    uint32_t workspace_epoch;
} qn_probe_t;

/* What a probe must suit. */
typedef struct {
    uint32_t layers, heads, kv_heads, head_dim, hidden, vocab;
} qn_probe_model_t;

static inline bool qn_probe_is_empty(const qn_probe_t *probe) { return !probe->mask_count && !probe->tap_count; }
/* Whether any tap reads: then all of a prompt must run, and none of it may come from the prefix cache. */
bool qn_probe_reads(const qn_probe_t *probe);
/* `salt` joined with the identity of a probe that changes KV; `salt` itself for one that does not. */
uint64_t qn_probe_salt(const qn_probe_t *probe, uint64_t salt);
/* Sequences whose probes have the same number, not 0, may be computed together: equal masks, no taps. */
uint64_t qn_probe_group(const qn_probe_t *probe);
/* Numbers in a row at `site`. */
uint32_t qn_probe_width(const qn_probe_model_t *model, qn_tap_site_t site);
bool qn_probe_site_is_of_layer(qn_tap_site_t site);
/* QN_ERR_INVALID: it does not suit the model, or itself; *ret_param (a literal) is the field of Submit at fault. */
qn_err_t qn_probe_check(const qn_probe_t *probe, const qn_probe_model_t *model, const char **ret_param);

/* One piece of memory that holds all of it; for the ledger. Not for another machine or build. */
size_t qn_probe_packed_bytes(const qn_probe_t *probe);
void qn_probe_pack(const qn_probe_t *probe, void *to);
/* Views of `from`, 8-byte aligned. false: these are not the bytes of a probe. */
bool qn_probe_unpack(const void *from, size_t bytes, qn_probe_t *ret_probe);
/* Returns owned, free(): a packed copy, whose views go to *ret_probe. NULL: no memory. */
void *qn_probe_copy(const qn_probe_t *probe, qn_probe_t *ret_probe);

#endif
