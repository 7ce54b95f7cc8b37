/* Regions that outlive this process in the service manager's descriptor store (systemd's, or that of `quintet up`): a
 * restarted memory takes them back instead of loading again. Only memfd regions; without a service manager nothing is
 * kept and nothing comes back. Never blocks longer than a datagram. */
#ifndef QN_MEMORY_KEPT_REGIONS_H
#define QN_MEMORY_KEPT_REGIONS_H

#include <stddef.h>

#include "common/region.h"

/* Maps what the service manager handed over as "region.<name>" (at most `capacity`; regions that cannot be used are
 * closed and removed from the store) and returns how many there are. The mappings are owned by the caller, who must
 * not call this twice in a process's life: the descriptors are used up. */
size_t kept_regions_take(const char *fd_socket, qn_mapping_t **ret_regions, size_t capacity);
/* Hands the region's descriptor to the service manager, in place of an older one of its name. */
void kept_regions_put(const qn_mapping_t *region);
/* The service manager forgets the region of this name. */
void kept_regions_drop(const char *name);

#endif
