/* What is this?      The workspace's messages: leases asked for, given back and listed.
 * State owned:       none; memory_service_t's workspace.
 * Must never:        decide where a lease lies (workspace.c).
 * Read next:         workspace.h, schemas/workspace_lease.fbs. */
#include <inttypes.h>
#include <string.h>

#include "common/clock.h"
#include "common/watch/log.h"
#include "services/memory/handlers.h"
#include "services/memory/kept_regions.h"

static workspace_owner_t owner_of(qn_peer_t peer)
{
    return (workspace_owner_t){.epoch = peer.epoch, .service = (uint8_t)peer.service, .instance = peer.instance};
}

static uint32_t left_ms(uint64_t deadline_ns, uint64_t now_ns)
{
    return deadline_ns > now_ns ? (uint32_t)((deadline_ns - now_ns) / 1000000) : 0;
}

static const qn_mapping_t *region_of(const memory_service_t *service)
{
    return region_table_find_name(service->regions, KEPT_WORKSPACE);
}

qn_err_t memory_open_workspace(memory_service_t *service)
{
    uint64_t bytes = service->config->memory.workspace_bytes;
    const qn_mapping_t *region;
    qn_mapping_t *old = NULL;
    bool fresh;
    if (bytes == 0) return QN_OK;
    if (bytes < WORKSPACE_BYTES_MIN)
        return qn_fail(QN_ERR_CONFIG, "memory.workspace_bytes is %" PRIu64 ": 0 (no workspace) or at least %u", bytes,
                       WORKSPACE_BYTES_MIN);
    qn_err_t err = region_table_reserve(service->regions, QN_REGION_KIND_TAP, KEPT_WORKSPACE, strlen(KEPT_WORKSPACE),
                                        bytes, &region, &fresh, &old);
    if (err) return err;
    if (old) kept_regions_drop(old);
    qn_region_close(&old);
    if (fresh) kept_regions_put(region);
    return workspace_create(qn_region_pointer(region), qn_region_bytes(region), &service->workspace);
}

static bool require_workspace(memory_service_t *service, qn_peer_t from, uint64_t request)
{
    if (service->workspace) return true;
    qn_daemon_refuse(service->daemon, from, request, 501, NULL,
                     "there is no workspace for tensors: memory.workspace_bytes is 0");
    return false;
}

static void refuse_lease(memory_service_t *service, qn_peer_t from, uint64_t request, workspace_outcome_t outcome,
                         uint64_t bytes)
{
    char text[QN_REASON_MAX];
    uint64_t capacity = workspace_capacity(service->workspace);
    if (outcome == WORKSPACE_UNKNOWN) {
        qn_daemon_refuse(service->daemon, from, request, 404, "lease", "no such lease of yours: it has ended");
        return;
    }
    bool never = outcome == WORKSPACE_TOO_BIG;
    snprintf(text, sizeof text, "%" PRIu64 " bytes of a workspace of %" PRIu64 ": %s", bytes, capacity,
             never ? "1 to all of them can be leased; raise memory.workspace_bytes"
                   : "others hold them; ask again, or raise memory.workspace_bytes");
    qn_daemon_refuse(service->daemon, from, request, never ? 400 : 507, "bytes", text);
}

void memory_handle_workspace_lease(void *state, qn_peer_t from, const void *message)
{
    memory_service_t *service = state;
    const qn_workspace_lease_t *ask = message;
    uint64_t deadline_ns = qn_clock_now_ns() + (uint64_t)ask->lifetime_ms * 1000000;
    workspace_lease_t lease;
    if (!require_workspace(service, from, ask->head.request)) return;
    workspace_outcome_t outcome =
        ask->lease ? workspace_renew(service->workspace, owner_of(from), ask->lease, deadline_ns, &lease)
                   : workspace_lease(service->workspace, owner_of(from), ask->bytes, deadline_ns, &lease);
    if (outcome != WORKSPACE_OK) {
        refuse_lease(service, from, ask->head.request, outcome, ask->bytes);
        return;
    }
    qn_region_t region;
    qn_region_describe(region_of(service), &region);
    qn_workspace_range_t reply = {.head.request = ask->head.request,
                                  .lease = lease.id,
                                  .region = &region,
                                  .offset = lease.offset,
                                  .bytes = lease.bytes,
                                  .lifetime_ms = ask->lifetime_ms};
    memory_send_or_log(service, from, QN_MESSAGE_WORKSPACE_RANGE, &reply);
}

void memory_handle_workspace_release(void *state, qn_peer_t from, const void *message)
{
    memory_service_t *service = state;
    const qn_workspace_release_t *ask = message;
    qn_workspace_holding_t holdings[WORKSPACE_LEASES_MAX];
    qn_workspace_usage_t reply = {.head.request = ask->head.request, .leases = holdings};
    uint64_t now_ns = qn_clock_now_ns();
    if (service->workspace) {
        if (ask->lease) workspace_release(service->workspace, owner_of(from), ask->lease);
        workspace_expire(service->workspace, now_ns);
        const workspace_lease_t *leases = workspace_leases(service->workspace, &reply.leases_count);
        reply.bytes = workspace_capacity(service->workspace);
        for (uint32_t i = 0; i < reply.leases_count; i++) {
            reply.leased_bytes += leases[i].bytes;
            holdings[i] = (qn_workspace_holding_t){.lease = leases[i].id,
                                                   .offset = leases[i].offset,
                                                   .bytes = leases[i].bytes,
                                                   .lifetime_ms = left_ms(leases[i].deadline_ns, now_ns),
                                                   .epoch = leases[i].owner.epoch,
                                                   .owner = (qn_service_t)leases[i].owner.service};
        }
    }
    memory_send_or_log(service, from, QN_MESSAGE_WORKSPACE_USAGE, &reply);
}

void memory_forget_holder(memory_service_t *service, qn_peer_t peer)
{
    uint32_t ended = service->workspace ? workspace_release_owner(service->workspace, owner_of(peer)) : 0;
    if (ended)
        qn_log_notice("a peer (epoch %" PRIu32 ") is gone: %" PRIu32 " ranges of the workspace are free", peer.epoch,
                      ended);
}
