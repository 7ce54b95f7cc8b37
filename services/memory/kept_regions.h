/* Regions that outlive this process in the service manager's descriptor store (systemd's, or that of `quintet up`): a
 * restarted memory takes them back instead of loading again. Only regions whose bytes a descriptor keeps alive: memfd
 * and cuda_vmm; without a service manager nothing is kept and nothing comes back. A region is stored under the name
 * "region.<name>", that of a device under "region.<name>@<bytes>", for its descriptor does not tell its size. Any
 * thread. */
#ifndef QN_MEMORY_KEPT_REGIONS_H
#define QN_MEMORY_KEPT_REGIONS_H

#include <stddef.h>

#include "common/region/region.h"

#define KEPT_WORKSPACE "workspace" /* name of the region of kind tap */

/* Maps what the service manager handed over and returns how many there are, at most `capacity`. Regions that cannot be
 * used (of another share or device than these, damaged, of another build) are logged, closed and removed from the
 * store. The mappings are owned by the caller, who must not call this twice in a process's life: the descriptors are
 * used up. */
size_t kept_regions_take(qn_share_t share, int32_t device, const char *fd_socket, qn_mapping_t **ret_regions,
                         size_t capacity);
/* Hands the region's descriptor to the service manager, in place of an older one of its name and, on a device, size.
 * Never blocks longer than a datagram. */
void kept_regions_put(const qn_mapping_t *region);
/* The service manager forgets the region. For a device it is waited until it has: the memory is free then, once nobody
 * else maps it. At most 20 ms, for the loop that calls this; a manager that takes longer frees it later. */
void kept_regions_drop(const qn_mapping_t *region);

#endif
