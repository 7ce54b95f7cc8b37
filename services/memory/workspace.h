/* The workspace: who holds which bytes of the one region that tensors of compute are written into and that hosts map.
 *
 * The list of leases lies in the first WORKSPACE_HEAD_BYTES of the region itself, so that it lives as long as the bytes
 * that it is about: the next life of memory, which gets the region back, goes on with it. Every lease ends: its owner
 * gives it back, is proven dead, or its deadline passes. Deadlines are CLOCK_MONOTONIC, which goes on over restarts.
 * One thread. Knows no clock, no region and no messages. */
#ifndef QN_MEMORY_WORKSPACE_H
#define QN_MEMORY_WORKSPACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define WORKSPACE_LEASES_MAX 256
#define WORKSPACE_HEAD_BYTES 16384u
#define WORKSPACE_ALIGN 64u        /* of offsets and sizes; as QN_REGION_ALIGN */
#define WORKSPACE_BYTES_MIN 65536u /* a region below it would be little more than its head */

typedef struct {
    uint32_t epoch;
    uint8_t service, instance;
    uint16_t unused;
} workspace_owner_t;

typedef struct {
    uint64_t id; /* not 0; never used twice in the life of the region */
    uint64_t offset, bytes;
    uint64_t deadline_ns;
    workspace_owner_t owner;
} workspace_lease_t;

typedef struct workspace workspace_t;

typedef enum {
    WORKSPACE_OK,
    WORKSPACE_FULL,    /* no gap of this size, or WORKSPACE_LEASES_MAX leases */
    WORKSPACE_TOO_BIG, /* more than the workspace has in all, or nothing */
    WORKSPACE_UNKNOWN, /* no such lease of this owner: it has ended */
} workspace_outcome_t;

/* Over `bytes` at `memory` (borrowed, outlives it), at least WORKSPACE_BYTES_MIN. Takes up the list that it finds there,
 * leaving out entries that cannot be; else begins one. Failure: QN_ERR_NO_MEMORY. Returns owned. */
qn_err_t workspace_create(void *memory, uint64_t bytes, workspace_t **ret_workspace);
void workspace_destroy(workspace_t **workspace);
/* The first gap that is large enough; `bytes` are rounded up to WORKSPACE_ALIGN. Their content is what the last holder
 * left. */
workspace_outcome_t workspace_lease(workspace_t *workspace, workspace_owner_t owner, uint64_t bytes,
                                    uint64_t deadline_ns, workspace_lease_t *ret_lease);
workspace_outcome_t workspace_renew(workspace_t *workspace, workspace_owner_t owner, uint64_t id, uint64_t deadline_ns,
                                    workspace_lease_t *ret_lease);
workspace_outcome_t workspace_release(workspace_t *workspace, workspace_owner_t owner, uint64_t id);
/* Ends all leases of an owner; returns how many there were. */
uint32_t workspace_release_owner(workspace_t *workspace, workspace_owner_t owner);
/* Ends what is over at `now_ns`; returns when the next one ends, UINT64_MAX without any. */
uint64_t workspace_expire(workspace_t *workspace, uint64_t now_ns);
/* Returns view of the leases, by offset. */
const workspace_lease_t *workspace_leases(const workspace_t *workspace, uint32_t *ret_count);
/* Bytes that can be leased in all. */
uint64_t workspace_capacity(const workspace_t *workspace);

#endif
