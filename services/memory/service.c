/* What is this?      The memory daemon: descriptor, start, tick, peers.
 * State owned:       every region (weights, KV, what compute reserved), the block pool, the fd socket.
 * Must never:        run model math; block the loop while weights load.
 * Read next:         handlers.c, loader.h, block_pool.h, README.md */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/daemon/crash.h"
#include "common/limits.h"
#include "common/paths.h"
#include "common/watch/log.h"
#include "services/memory/handlers.h"
#include "services/memory/kept_regions.h"
#include "services/memory/methods.h"

#define PINS_LOOK_MS 60000ull          /* at least so often while one has a time */
#define PROGRESS_NS 250000000ull       /* between two states "loading 3.1 of 14.0 GiB" */
#define PROGRESS_LINE_NS 2000000000ull /* between two log lines of it, on a terminal */

enum {
    MEMORY_STAT_FREE,
    MEMORY_STAT_HELD,
    MEMORY_STAT_CACHED,
    MEMORY_STAT_SEQUENCES,
    MEMORY_STAT_LOOKUPS,
    MEMORY_STAT_LOOKUP_TOKENS,
    MEMORY_STAT_HIT_TOKENS,
    MEMORY_STAT_EVICTIONS,
    MEMORY_STAT_GRANTS,
    MEMORY_STAT_SHORT,
    MEMORY_STAT_FLUSHES,
    MEMORY_STAT_WEIGHTS,
    MEMORY_STAT_KV,
    MEMORY_STAT_ACTIVATIONS,
    MEMORY_STAT_STEP_IO,
    MEMORY_STAT_STATE,
    MEMORY_STAT_TAP,
    MEMORY_STAT_LOAD,
    MEMORY_STAT_FDS,
    MEMORY_STAT_EVICTION, /* QN_POLICY_STAT_ROWS */
    MEMORY_STAT_COUNT = MEMORY_STAT_EVICTION + QN_POLICY_STAT_ROWS,
};

static const qn_stat_spec_t memory_stats[MEMORY_STAT_COUNT] = {
    [MEMORY_STAT_FREE] = {"memory_free_blocks", QN_STAT_GAUGE, "blocks", "KV blocks whose content means nothing"},
    [MEMORY_STAT_HELD] = {"memory_held_blocks", QN_STAT_GAUGE, "blocks", "KV blocks referenced by a sequence"},
    [MEMORY_STAT_CACHED] = {"memory_cached_blocks", QN_STAT_GAUGE, "blocks",
                            "Unreferenced KV blocks kept for their prefix"},
    [MEMORY_STAT_SEQUENCES] = {"memory_sequences", QN_STAT_GAUGE, "sequences", "Sequences with a lease"},
    [MEMORY_STAT_LOOKUPS] = {"memory_prefix_lookups", QN_STAT_COUNTER, "lookups",
                             "Leases that looked for a resident prefix"},
    [MEMORY_STAT_LOOKUP_TOKENS] = {"memory_prefix_lookup_tokens", QN_STAT_COUNTER, "tokens",
                                   "Tokens of prompts looked up"},
    [MEMORY_STAT_HIT_TOKENS] = {"memory_prefix_hit_tokens", QN_STAT_COUNTER, "tokens",
                                "Tokens of those found resident"},
    [MEMORY_STAT_EVICTIONS] = {"memory_evictions", QN_STAT_COUNTER, "blocks",
                               "Cached KV blocks given to another sequence"},
    [MEMORY_STAT_GRANTS] = {"memory_grants", QN_STAT_COUNTER, "leases", "Leases granted"},
    [MEMORY_STAT_SHORT] = {"memory_grants_short", QN_STAT_COUNTER, "leases", "Leases refused for want of blocks"},
    [MEMORY_STAT_FLUSHES] = {"memory_flushes", QN_STAT_COUNTER, "flushes", "Flushes of the prefix cache"},
    [MEMORY_STAT_WEIGHTS] = {"memory_weights_bytes", QN_STAT_GAUGE, "bytes", "Size of the weights region"},
    [MEMORY_STAT_KV] = {"memory_kv_bytes", QN_STAT_GAUGE, "bytes", "Size of the KV region"},
    [MEMORY_STAT_ACTIVATIONS] = {"memory_activations_bytes", QN_STAT_GAUGE, "bytes", "Size of the activation regions"},
    [MEMORY_STAT_STEP_IO] = {"memory_step_io_bytes", QN_STAT_GAUGE, "bytes", "Size of the step input/output regions"},
    [MEMORY_STAT_STATE] = {"memory_state_bytes", QN_STAT_GAUGE, "bytes", "Size of the sequence state regions"},
    [MEMORY_STAT_TAP] = {"memory_tap_bytes", QN_STAT_GAUGE, "bytes", "Size of the tap regions"},
    [MEMORY_STAT_LOAD] = {"memory_load_seconds", QN_STAT_GAUGE, "milliseconds", "Time to load the model"},
    [MEMORY_STAT_FDS] = {"memory_descriptors_handed_out", QN_STAT_COUNTER, "descriptors",
                         "Requests answered at the fd socket"},
    [MEMORY_STAT_EVICTION] = QN_POLICY_STATS("eviction"),
};

/* ---- start and end ---- */

static int find_fd(void *state, uint64_t id, uint32_t epoch)
{
    const memory_service_t *service = state;
    const qn_mapping_t *region = region_table_find(service->regions, id, epoch);
    return region ? qn_region_fd(region) : -1;
}

static void service_fini(void **state)
{
    memory_service_t *service = *state;
    if (!service) return;
    if (service->fd_server) qn_daemon_unwatch(service->daemon, qn_fd_server_fd(service->fd_server));
    qn_fd_server_destroy(&service->fd_server);
    if (service->loader) qn_daemon_unwatch(service->daemon, loader_fd(service->loader));
    loader_destroy(&service->loader);
    if (service->errands) qn_daemon_unwatch(service->daemon, errands_fd(service->errands));
    errands_destroy(&service->errands); /* they use pool and regions */
    memory_restores_fini(service);
    pin_book_destroy(&service->pins);
    loader_result_fini(&service->model);
    workspace_destroy(&service->workspace);
    qn_policy_seat_close(&service->eviction);
    qn_kept_memory_close(&service->policies);
    region_table_destroy(&service->regions);
    free(service->tensors);
    free(service->grant_items);
    free(service->grant_copies);
    free(service->grant_blocks);
    free(service);
    *state = NULL;
}

/* memory.share, where "auto" is what compute.backend takes. */
static qn_err_t choose_share(const qn_config_values_t *config, qn_share_t *ret_share, int32_t *ret_device)
{
    static const char *const names[] = {
        [QN_SHARE_MEMFD] = "memfd", [QN_SHARE_CUDA_IPC] = "cuda_ipc", [QN_SHARE_CUDA_VMM] = "cuda_vmm"};
    bool cuda = strcmp(config->compute.backend, "cuda") == 0;
    const char *wanted = config->memory.share;
    if (strcmp(wanted, "auto") == 0) wanted = cuda ? "cuda_ipc" : "memfd";
    size_t share = 0;
    while (share < sizeof names / sizeof *names && strcmp(names[share], wanted) != 0)
        share++;
    if (share == sizeof names / sizeof *names) return qn_fail(QN_ERR_CONFIG, "memory.share: there is no '%s'", wanted);
    if ((share != QN_SHARE_MEMFD) != cuda)
        return qn_fail(QN_ERR_CONFIG, "memory.share is %s but compute.backend is %s: leave memory.share at auto",
                       wanted, config->compute.backend);
    *ret_share = (qn_share_t)share;
    *ret_device = cuda ? (int32_t)config->compute.device : -1;
    return QN_OK;
}

/* What the service manager kept: weights and KV are for the loader to judge, the others go back into the table. */
static qn_err_t take_kept(memory_service_t *service, const char *fd_socket, qn_mapping_t **ret_weights,
                          qn_mapping_t **ret_kv)
{
    qn_mapping_t *kept[REGION_TABLE_MAX];
    int32_t device;
    qn_share_t share = region_table_backing(service->regions, &device);
    size_t count = kept_regions_take(share, device, fd_socket, kept, REGION_TABLE_MAX);
    qn_err_t err = QN_OK;
    for (size_t i = 0; i < count; i++) {
        const char *name = qn_region_name(kept[i]);
        if (strcmp(name, "weights") == 0 && !*ret_weights)
            *ret_weights = kept[i];
        else if (strcmp(name, "kv") == 0 && !*ret_kv)
            *ret_kv = kept[i];
        else if (!err && !region_table_find_name(service->regions, name))
            err = region_table_add(service->regions, &kept[i]);
        if (kept[i] != *ret_weights && kept[i] != *ret_kv) qn_region_close(&kept[i]);
    }
    return err;
}

/* A shared object that ran when the life before this one crashed is not loaded again; what was set live is. */
static qn_err_t open_eviction(memory_service_t *service, const qn_config_values_t *config)
{
    qn_crash_t crash;
    char crashed_as[64];
    qn_err_t err = qn_paths_policies(config, service->policy_dirs, sizeof service->policy_dirs);
    if (!err) err = qn_kept_memory_open("policies", sizeof(memory_policies_t), &service->policies);
    if (err) return err;
    memory_policies_t *kept = service->policies.base;
    bool crashed = qn_crash_read(qn_daemon_run_dir(service->daemon), "memory", kept->epoch, &crash);
    if (qn_policy_page_judge(&kept->page, crashed && kept->epoch)) {
        qn_crash_describe(&crash, crashed_as, sizeof crashed_as);
        qn_log_warning("memory before this one crashed (%s) with an eviction policy that was loaded", crashed_as);
    }
    kept->epoch = qn_daemon_epoch(service->daemon);
    qn_policy_catalogue_t catalogue = eviction_catalogue(service->policy_dirs);
    return qn_policy_seat_open(&catalogue, config->memory.eviction, &kept->page, &service->eviction);
}

static qn_err_t open_service(memory_service_t *service, const qn_config_values_t *config)
{
    char fd_socket[QN_PATH_MAX + 16], pins[QN_PATH_MAX + 16];
    qn_mapping_t *kept_weights = NULL, *kept_kv = NULL;
    qn_share_t share = QN_SHARE_MEMFD;
    int32_t device = -1;
    snprintf(fd_socket, sizeof fd_socket, "%s/memory.fds", qn_daemon_run_dir(service->daemon));
    service->grant_items = calloc(QN_GRANT_ITEMS_MAX, sizeof *service->grant_items);
    service->grant_copies = calloc(QN_GRANT_COPIES_MAX, sizeof *service->grant_copies);
    service->grant_blocks = calloc(QN_GRANT_BLOCKS_MAX, sizeof *service->grant_blocks);
    if (!service->grant_items || !service->grant_blocks || !service->grant_copies)
        return qn_fail(QN_ERR_NO_MEMORY, "no memory for grants");
    qn_err_t err = choose_share(config, &share, &device);
    /* A GPU that cannot be used is said now, not when the model has been looked at. */
    if (!err) err = qn_region_probe(share, device);
    if (!err)
        err = region_table_create(share, device, qn_daemon_epoch(service->daemon), fd_socket,
                                  strcmp(config->memory.huge_pages, "off") != 0, &service->regions);
    if (!err) err = qn_fd_server_create(fd_socket, find_fd, service, &service->fd_server);
    if (!err) err = qn_daemon_watch(service->daemon, qn_fd_server_fd(service->fd_server));
    snprintf(pins, sizeof pins, "%s/memory.pins", qn_daemon_run_dir(service->daemon));
    if (!err) err = pin_book_create(pins, &service->pins);
    if (!err) err = errands_create(&service->errands);
    if (!err) err = qn_daemon_watch(service->daemon, errands_fd(service->errands));
    if (!err) err = take_kept(service, fd_socket, &kept_weights, &kept_kv);
    if (!err) err = memory_open_workspace(service);
    if (!err) err = open_eviction(service, config);
    if (!err)
        err = loader_start(config, service->regions, service->eviction, &kept_weights, &kept_kv, &service->loader);
    qn_region_close(&kept_weights);
    qn_region_close(&kept_kv);
    return err ? err : qn_daemon_watch(service->daemon, loader_fd(service->loader));
}

static qn_err_t service_init(qn_daemon_t *daemon, const qn_config_values_t *config, void **ret_state)
{
    memory_service_t *service = calloc(1, sizeof *service);
    if (!service) return qn_fail(QN_ERR_NO_MEMORY, "no memory for memory");
    service->daemon = daemon;
    service->config = config;
    qn_err_t err = open_service(service, config);
    if (err) {
        service_fini((void **)&service);
        return err;
    }
    qn_daemon_set_state(daemon, QN_STATE_STARTING, "opening the model");
    *ret_state = service;
    return QN_OK;
}

/* ---- loading ---- */

static void format_size(char *ret_text, size_t size, uint64_t bytes)
{
    bool large = bytes >= (uint64_t)1 << 30;
    snprintf(ret_text, size, "%.1f %s", (double)bytes / (large ? 1 << 30 : 1 << 20), large ? "GiB" : "MiB");
}

static void show_progress(memory_service_t *service, uint64_t now_ns)
{
    uint64_t done, total;
    char done_text[32], total_text[32], text[QN_REASON_MAX];
    loader_progress(service->loader, &done, &total);
    if (total == 0) return;
    format_size(done_text, sizeof done_text, done);
    format_size(total_text, sizeof total_text, total);
    snprintf(text, sizeof text, "loading %s of %s", done_text, total_text);
    qn_daemon_set_state(service->daemon, QN_STATE_STARTING, text);
    if (!isatty(STDERR_FILENO) || now_ns - service->progress_shown_ns < PROGRESS_LINE_NS) return;
    if (service->progress_shown_ns) qn_log_info("%s", text); /* not for what loads in a moment */
    service->progress_shown_ns = now_ns;
}

/* The loaded regions become the table's, and the service manager's to keep. */
static qn_err_t own_region(memory_service_t *service, qn_mapping_t **region, bool kept)
{
    if (!kept) kept_regions_put(*region);
    return region_table_add(service->regions, region);
}

/* "494.0 MiB of int8 on huge pages": size, format where the checkpoint's was changed, and pages as far as they are
 * known (those of a kept region are mapped when they are used). */
static void format_weights(const memory_service_t *service, char *ret_text, size_t size)
{
    const qn_mapping_t *region = region_table_find_name(service->regions, "weights");
    const char *quantize = service->config->model.quantize;
    char bytes_text[32], huge_text[32] = "";
    uint64_t bytes = qn_region_bytes(region), huge = qn_region_huge_bytes(region);
    format_size(bytes_text, sizeof bytes_text, bytes);
    if (huge > 0 && huge < bytes - bytes / 8) format_size(huge_text, sizeof huge_text, huge);
    snprintf(ret_text, size, "%s%s%s%s%s%s", bytes_text, strcmp(quantize, "none") ? " of " : "",
             strcmp(quantize, "none") ? quantize : "", huge_text[0] ? ", " : "", huge_text,
             huge ? " on huge pages" : "");
}

static void log_model(memory_service_t *service)
{
    const loader_result_t *model = &service->model;
    char weights_text[96], kv_text[32], text[QN_REASON_MAX];
    format_weights(service, weights_text, sizeof weights_text);
    format_size(kv_text, sizeof kv_text, model->kv.bytes);
    qn_log_info("%s (%s): %zu tensors, %s %s in %.2f s; KV cache %s%s: %" PRIu32 " blocks of %" PRIu64 " tokens",
                model->directory->id, model->directory->config.architecture_name, weights_count(model->weights),
                weights_text, model->weights_kept ? "kept" : "loaded", (double)model->load_ns / 1e9, kv_text,
                model->kv_kept ? " (kept)" : "", model->kv.block_count, service->config->memory.block_tokens);
    if (weights_left_out(model->weights))
        qn_log_info("%zu tensors of the checkpoint were left out: the model does not need them",
                    weights_left_out(model->weights));
    snprintf(text, sizeof text, "%.80s: weights %.46s, %" PRIu32 " KV blocks", model->directory->id, weights_text,
             model->kv.block_count);
    qn_daemon_set_state(service->daemon, QN_STATE_READY, text);
}

static void finish_loading(memory_service_t *service, uint64_t now_ns)
{
    qn_err_t err;
    if (!loader_take(service->loader, &err, &service->model)) {
        show_progress(service, now_ns);
        return;
    }
    qn_daemon_unwatch(service->daemon, loader_fd(service->loader));
    /* qn_err_text survives loader_destroy: nothing in it fails. */
    loader_destroy(&service->loader);
    if (!err) err = own_region(service, &service->model.weights_region, service->model.weights_kept);
    if (!err) err = own_region(service, &service->model.kv_region, service->model.kv_kept);
    if (!err) memory_open_pins(service);
    if (!err) err = memory_publish_model(service);
    if (!err)
        log_model(service);
    else
        qn_daemon_fail(service->daemon, err);
}

/* ---- tick ---- */

static void set_stat(memory_service_t *service, unsigned row, uint64_t value)
{
    qn_stats_set(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, row, value);
}

static void publish_stats(memory_service_t *service)
{
    block_pool_stats_t pool;
    for (int kind = QN_REGION_KIND_WEIGHTS; kind <= QN_REGION_KIND_TAP; kind++)
        set_stat(service, (unsigned)(MEMORY_STAT_WEIGHTS + kind),
                 region_table_bytes(service->regions, (qn_region_kind_t)kind));
    qn_policy_stats_publish(service->eviction, qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE,
                            MEMORY_STAT_EVICTION, &service->named);
    if (!service->loaded) return;
    block_pool_stats(service->model.pool, &pool);
    set_stat(service, MEMORY_STAT_FREE, pool.free_blocks);
    set_stat(service, MEMORY_STAT_HELD, pool.held_blocks);
    set_stat(service, MEMORY_STAT_CACHED, pool.cached_blocks);
    set_stat(service, MEMORY_STAT_SEQUENCES, pool.sequences);
    set_stat(service, MEMORY_STAT_LOOKUPS, pool.lookups);
    set_stat(service, MEMORY_STAT_LOOKUP_TOKENS, pool.lookup_tokens);
    set_stat(service, MEMORY_STAT_HIT_TOKENS, pool.hit_tokens);
    set_stat(service, MEMORY_STAT_EVICTIONS, pool.evictions);
    set_stat(service, MEMORY_STAT_GRANTS, pool.grants);
    set_stat(service, MEMORY_STAT_SHORT, pool.grants_short);
    set_stat(service, MEMORY_STAT_FLUSHES, pool.flushes);
    set_stat(service, MEMORY_STAT_LOAD, service->model.load_ns / 1000000);
}

/* Returns when the next pin expires, as the loop counts time; a clock that is set moves it. */
static uint64_t tick_pins(memory_service_t *service, uint64_t now_ns)
{
    uint64_t now_ms = memory_now_ms();
    uint64_t next_ms = pin_book_tick(service->pins, service->model.pool, now_ms);
    if (next_ms == PIN_NEVER) return UINT64_MAX;
    uint64_t wait_ms = next_ms > now_ms ? next_ms - now_ms : 0;
    return now_ns + (wait_ms < PINS_LOOK_MS ? wait_ms + 1 : PINS_LOOK_MS) * 1000000;
}

static uint64_t service_tick(void *state, uint64_t now_ns)
{
    memory_service_t *service = state;
    unsigned answered = qn_fd_server_serve(service->fd_server);
    if (answered) qn_stats_add(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, MEMORY_STAT_FDS, answered);
    if (service->loader) finish_loading(service, now_ns);
    errands_finish(service->errands);
    uint64_t wake_ns = service->loaded ? tick_pins(service, now_ns) : UINT64_MAX;
    uint64_t ends_ns = service->workspace ? workspace_expire(service->workspace, now_ns) : UINT64_MAX;
    if (ends_ns < wake_ns) wake_ns = ends_ns;
    publish_stats(service);
    return service->loader && wake_ns > now_ns + PROGRESS_NS ? now_ns + PROGRESS_NS : wake_ns;
}

static void service_peer(void *state, qn_peer_t peer, qn_peer_event_t event)
{
    if (event == QN_PEER_GONE) memory_forget_peer(state, peer);
    if (event == QN_PEER_UP) memory_meet_peer(state, peer);
}

static void service_check(const void *state)
{
    const memory_service_t *service = state;
    const char *broken = service->loaded ? block_pool_check(service->model.pool) : NULL;
    if (broken) qn_log_error("block pool: %s", broken);
    QN_ASSERT(broken == NULL);
}

const qn_daemon_descriptor_t qn_memory_daemon = {
    .service = QN_SERVICE_MEMORY,
    .name = "memory",
    .dials = (const qn_service_t[]){QN_SERVICE_NONE},
    .handlers = memory_handlers,
    .methods = memory_methods,
    .stats = memory_stats,
    .stat_count = MEMORY_STAT_COUNT,
    .init = service_init,
    .peer = service_peer,
    .tick = service_tick,
    .check = service_check,
    .fini = service_fini,
};
