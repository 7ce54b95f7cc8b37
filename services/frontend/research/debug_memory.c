/* What is this?      GET /debug/memory_usage: what memory owns, and what each process holds, in MB of 10^6 bytes.
 * State owned:       the form's.
 * Must never:        guess: what is on another host, or not ours to look at, is null.
 * Read next:         schemas/memory/memory_usage_reply.fbs, process_memory.h. */
#include <string.h>

#include "services/frontend/research/forms.h"
#include "services/frontend/research/process_memory.h"

/* Regions on a device are in no process's maps: memory owns them, and compute maps them all while it runs on this life of
 * memory. */
typedef struct {
    qn_memory_usage_reply_t usage;
    qn_memory_fragmentation_reply_t fragmentation;
} memory_form_t;

static void put_mb(json_writer_t *writer, const char *key, uint64_t bytes)
{
    json_put_key(writer, key);
    json_put_number(writer, (double)bytes / 1e6);
}

static void put_pool(json_writer_t *writer, const memory_form_t *state)
{
    const qn_memory_usage_reply_t *usage = &state->usage;
    const qn_memory_fragmentation_reply_t *fragmentation = &state->fragmentation;
    put_mb(writer, "model_weights_mb", usage->weights_bytes);
    put_mb(writer, "kv_cache_mb", usage->kv_bytes);
    put_mb(writer, "kv_used_mb", usage->used_blocks * usage->block_bytes);
    put_mb(writer, "kv_cached_mb", usage->cached_blocks * usage->block_bytes);
    put_mb(writer, "activation_mb", usage->activations_bytes);
    put_mb(writer, "step_io_mb", usage->step_io_bytes);
    put_mb(writer, "state_mb", usage->state_bytes);
    put_mb(writer, "tap_mb", usage->tap_bytes);
    put_mb(writer, "total_mb", usage->total_bytes);
    put_mb(writer, "peak_memory_mb", usage->peak_bytes);
    json_put_key(writer, "fragmentation");
    json_put_number(writer, (double)fragmentation->internal);
    json_put_key(writer, "free_fragmentation");
    json_put_number(writer, (double)fragmentation->external);
    json_put_member_signed(writer, "device", usage->device);
}

static void put_region(json_writer_t *writer, const char *name, size_t bytes_of_name, uint64_t bytes)
{
    json_put_open(writer, '{');
    json_put_key(writer, "name");
    json_put_text(writer, name, bytes_of_name);
    put_mb(writer, "mb", bytes);
    json_put_close(writer, '}');
}

/* Returns the sum. */
static uint64_t put_regions(const form_t *form, json_writer_t *writer, qn_service_t service,
                            const qn_peer_status_t *status, const process_memory_t *memory,
                            const qn_memory_regions_reply_t *regions)
{
    uint64_t bytes = 0;
    qn_peer_status_t owner;
    qn_daemon_peer_status(form->frontend->daemon, QN_SERVICE_MEMORY, &owner);
    bool maps_device = service == QN_SERVICE_MEMORY ||
                       (service == QN_SERVICE_COMPUTE && status->memory_epoch == owner.peer.epoch && owner.peer.epoch);
    for (size_t i = 0; memory && i < memory->region_count; i++) {
        put_region(writer, memory->regions[i].name, strlen(memory->regions[i].name), memory->regions[i].bytes);
        bytes += memory->regions[i].bytes;
    }
    for (uint32_t i = 0; maps_device && i < regions->regions_count; i++) {
        const qn_shown_region_t *region = &regions->regions[i];
        if (region->share == QN_SHARE_MEMFD) continue;
        put_region(writer, region->name.data, region->name.bytes, region->bytes);
        bytes += region->bytes;
    }
    return bytes;
}

static void put_pages(json_writer_t *writer, const process_memory_t *memory)
{
    static const char *const keys[] = {"rss_mb", "peak_rss_mb", "private_mb", "file_mb", "shared_mb"};
    const uint64_t bytes[] = {memory->rss_bytes, memory->peak_rss_bytes, memory->private_bytes, memory->file_bytes,
                              memory->shared_bytes};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        put_mb(writer, keys[i], bytes[i]);
}

static void put_service(const form_t *form, json_writer_t *writer, qn_service_t service,
                        const qn_memory_regions_reply_t *regions)
{
    qn_peer_status_t status;
    process_memory_t memory;
    if (service == QN_SERVICE_FRONTEND)
        qn_daemon_self_status(form->frontend->daemon, &status);
    else
        qn_daemon_peer_status(form->frontend->daemon, service, &status);
    bool here = status.pid && strcmp(status.transport, "tcp") != 0 && process_memory_read(status.pid, &memory);
    json_put_key(writer, qn_service_enum.names[service]);
    json_put_open(writer, '{');
    json_put_key(writer, "pid");
    status.pid ? json_put_unsigned(writer, status.pid) : json_put_null(writer);
    if (here)
        put_pages(writer, &memory);
    else
        json_put_member_null(writer, "rss_mb");
    json_put_key(writer, "regions");
    json_put_open(writer, '[');
    uint64_t mapped = put_regions(form, writer, service, &status, here ? &memory : NULL, regions);
    json_put_close(writer, ']');
    put_mb(writer, "regions_mb", mapped);
    json_put_close(writer, '}');
}

static void took_regions(form_t *form, call_t *call, const void *reply)
{
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    json_put_open(&writer, '{');
    put_pool(&writer, form->state);
    json_put_key(&writer, "by_service");
    json_put_open(&writer, '{');
    for (int service = QN_SERVICE_FRONTEND; service <= QN_SERVICE_COMPUTE; service++)
        put_service(form, &writer, (qn_service_t)service, reply);
    json_put_close(&writer, '}');
    json_put_close(&writer, '}');
    form_answer(form, call, reply, &data);
}

static void took_fragmentation(form_t *form, call_t *call, const void *reply)
{
    (void)call;
    ((memory_form_t *)form->state)->fragmentation = *(const qn_memory_fragmentation_reply_t *)reply;
    form_call(form, QN_METHOD_MEMORY_REGIONS, &(qn_memory_regions_t){0}, took_regions);
}

static void took_usage(form_t *form, call_t *call, const void *reply)
{
    (void)call;
    ((memory_form_t *)form->state)->usage = *(const qn_memory_usage_reply_t *)reply;
    form_call(form, QN_METHOD_MEMORY_FRAGMENTATION, &(qn_memory_fragmentation_t){0}, took_fragmentation);
}

const char form_debug_memory_reply[] = "{\"type\":\"object\"}";

void form_debug_memory(form_t *form)
{
    form->state = qn_arena_zalloc(&form->arena, 1, sizeof(memory_form_t));
    if (!form_read(form, NULL, 0, NULL, NULL)) return;
    form_call(form, QN_METHOD_MEMORY_USAGE, &(qn_memory_usage_t){0}, took_usage);
}
