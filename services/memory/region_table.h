/* The regions memory owns, by name and by (id, epoch). A restarted compute asks for the same names and gets the same
 * bytes. Bounded; used by the loop's thread only. Knows regions, no sockets and no messages. */
#ifndef QN_MEMORY_REGION_TABLE_H
#define QN_MEMORY_REGION_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/region/region.h"

#define REGION_TABLE_MAX 64 /* weights, KV, and what compute reserves: a handful; taps later */

typedef struct region_table region_table_t;

/* `fd_socket` is written into every description (copied). `huge_pages`: as in qn_region_spec_t, for all regions. */
qn_err_t region_table_create(qn_share_t share, int32_t device, uint32_t epoch, const char *fd_socket, bool huge_pages,
                             region_table_t **ret_table);
/* Closes all regions. */
void region_table_destroy(region_table_t **table);

/* Makes a region of this table's share, device and epoch, not yet in the table; any thread. `name` becomes its name,
 * `id` must be unique in the epoch: REGION_TABLE_MAX and up are the table's own. Returns owned. */
qn_err_t region_table_make(const region_table_t *table, uint64_t id, qn_region_kind_t kind, const char *name,
                           uint64_t bytes, qn_mapping_t **ret_region);
/* Takes a region into the table under its name, which must be new. QN_ERR_LIMIT: the table is full. */
qn_err_t region_table_add(region_table_t *table, qn_mapping_t **region);

/* The region `name` of at least `bytes` bytes: the one that is there when it is large enough and of the same kind, else
 * a new one in its place. *ret_fresh: it was made now. The region stays the table's; *ret_old is the one whose place it
 * took, owned, or NULL (who still maps that keeps it mapped). QN_ERR_INVALID: a bad name (1 .. 63 of [A-Za-z0-9._-]),
 * or one of another kind; QN_ERR_LIMIT: more than half of what a host has free, or too many; QN_ERR_NO_MEMORY: more
 * than a device has free. */
qn_err_t region_table_reserve(region_table_t *table, qn_region_kind_t kind, const char *name, size_t name_bytes,
                              uint64_t bytes, const qn_mapping_t **ret_region, bool *ret_fresh, qn_mapping_t **ret_old);

/* The share of this table's regions, and their device. */
qn_share_t region_table_backing(const region_table_t *table, int32_t *ret_device);
/* NULL: none. */
const qn_mapping_t *region_table_find_name(const region_table_t *table, const char *name);
const qn_mapping_t *region_table_find(const region_table_t *table, uint64_t id, uint32_t epoch);
size_t region_table_count(const region_table_t *table);
/* `index` below the count, in the order in which they came. */
const qn_mapping_t *region_table_at(const region_table_t *table, size_t index);
/* Sum over the regions of `kind`. */
uint64_t region_table_bytes(const region_table_t *table, qn_region_kind_t kind);
/* The sum over all regions at its highest so far; one that was replaced counts until its place was taken. */
uint64_t region_table_peak(const region_table_t *table);

#endif
