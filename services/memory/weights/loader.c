/* What is this?      The thread that loads the model.
 * State owned:       the thread, its progress, and the result until it is taken.
 * Must never:        touch the daemon or the region table's list: those belong to the loop's thread.
 * Read next:         weights.h, kv_size.h. */
#include "services/memory/weights/loader.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/watch/log.h"
#include "services/memory/kept_regions.h"

struct loader {
    const qn_config_values_t *config;
    const region_table_t *table;
    qn_policy_seat_t *eviction;
    qn_mapping_t *kept_weights, *kept_kv;
    pthread_t thread;
    bool joined;
    int event_fd;
    weights_progress_t progress;
    _Atomic uint64_t total_bytes;
    loader_result_t result; /* written by the thread before it signals */
    qn_failure_t failure;   /* of the thread */
};

void loader_result_fini(loader_result_t *result)
{
    block_pool_destroy(&result->pool);
    qn_region_close(&result->kv_region);
    qn_region_close(&result->weights_region);
    weights_destroy(&result->weights);
    model_directory_free(&result->directory);
}

/* ---- the steps, in order ---- */

static qn_share_t share_of(const loader_t *loader, int32_t *ret_device)
{
    return region_table_backing(loader->table, ret_device);
}

static qn_err_t load_plan(loader_t *loader)
{
    loader_result_t *result = &loader->result;
    weights_format_t format;
    qn_err_t err = weights_format_choose(loader->config, &format);
    if (!err) err = model_directory_read(loader->config, &result->directory);
    if (err) return err;
    const qn_model_config_t *model = &result->directory->config;
    if (strcmp(loader->config->model.load_format, "dummy") == 0)
        return weights_plan_dummy(model, loader->config->model.seed, &format, &result->weights);
    err = weights_plan(result->directory->path, model, &format, &result->weights);
    if (err) return err;
    result->directory->config = *weights_config(result->weights);
    qn_model_warnings_append(&result->directory->warnings, weights_warnings(result->weights));
    return QN_OK;
}

/* What is odd about the model, once for each load. */
static void log_warnings(const qn_model_warnings_t *warnings)
{
    for (uint32_t i = 0; i < warnings->count; i++)
        qn_log_warning("model: %s", warnings->texts[i]);
    if (warnings->dropped) qn_log_warning("model: %" PRIu32 " more of this kind", warnings->dropped);
}

/* A kept region that is not used again: nobody shall hold its bytes. Accepts a NULL region. */
static void drop_kept(qn_mapping_t **kept)
{
    if (*kept) kept_regions_drop(*kept);
    qn_region_close(kept);
}

static bool is_kept(qn_mapping_t **kept, qn_region_kind_t kind, uint64_t bytes, uint64_t fingerprint)
{
    if (!*kept) return false;
    if (qn_region_kind(*kept) == kind && qn_region_bytes(*kept) == bytes && qn_region_fingerprint(*kept) == fingerprint)
        return true;
    qn_log_notice("the region '%s' kept by the service manager is of another model or size: it is made anew",
                  qn_region_name(*kept));
    drop_kept(kept);
    return false;
}

/* All cores convert and copy into host memory; so many fill pinned buffers as fast as a GPU's bus empties them. */
#define DEVICE_THREADS 8

static unsigned load_threads(qn_share_t share)
{
    long most = share == QN_SHARE_MEMFD ? WEIGHTS_THREADS_MAX : DEVICE_THREADS, cores = sysconf(_SC_NPROCESSORS_ONLN);
    return (unsigned)(cores < 1 ? 1 : cores > most ? most : cores);
}

/* What compute will take of a device beside weights and KV. */
static uint64_t compute_bytes(const loader_t *loader)
{
    int32_t device;
    if (share_of(loader, &device) == QN_SHARE_MEMFD) return 0;
    return kv_size_compute_bytes(&loader->result.directory->config, loader->config->scheduler.max_step_tokens,
                                 loader->config->scheduler.max_sequences);
}

static qn_err_t check_room(const loader_t *loader, uint64_t bytes)
{
    int32_t device;
    uint64_t free_bytes, compute = compute_bytes(loader);
    const char *id = loader->result.directory->id;
    qn_err_t err = qn_region_free_bytes(share_of(loader, &device), device, &free_bytes);
    if (err || bytes + compute <= free_bytes) return err;
    if (!compute)
        return qn_fail(QN_ERR_NO_MEMORY, "%s needs %" PRIu64 " bytes for its weights, %" PRIu64 " are free", id, bytes,
                       free_bytes);
    return qn_fail(QN_ERR_NO_MEMORY,
                   "%s needs %" PRIu64 " bytes for its weights and about %" PRIu64 " to compute, %" PRIu64
                   " are free on device %" PRId32 ": end what else uses it (nvidia-smi), choose a smaller model "
                   "or another compute.device, or lower scheduler.max_step_tokens",
                   id, bytes, compute, free_bytes, device);
}

static qn_err_t load_weights(loader_t *loader)
{
    loader_result_t *result = &loader->result;
    uint64_t bytes = weights_bytes(result->weights), fingerprint = weights_fingerprint(result->weights);
    int32_t device;
    qn_share_t share = share_of(loader, &device);
    if (is_kept(&loader->kept_weights, QN_REGION_KIND_WEIGHTS, bytes, fingerprint)) {
        result->weights_region = loader->kept_weights;
        loader->kept_weights = NULL;
        result->weights_kept = true;
        return QN_OK;
    }
    /* A device has no room for a KV cache that took all there was, and other weights than those before. */
    if (share != QN_SHARE_MEMFD) drop_kept(&loader->kept_kv);
    qn_err_t err = check_room(loader, bytes);
    if (!err)
        err = region_table_make(loader->table, LOADER_WEIGHTS_ID, QN_REGION_KIND_WEIGHTS, "weights", bytes,
                                &result->weights_region);
    if (err) return err;
    atomic_store(&loader->total_bytes, bytes);
    err = weights_fill(result->weights, result->weights_region, load_threads(share), &loader->progress);
    return err ? err : qn_region_seal(result->weights_region, fingerprint);
}

static qn_err_t size_kv(loader_t *loader)
{
    loader_result_t *result = &loader->result;
    const qn_config_values_t *config = loader->config;
    int32_t device;
    qn_share_t share = share_of(loader, &device);
    kv_size_request_t request = {
        .block_tokens = (uint32_t)config->memory.block_tokens,
        .max_model_len = result->directory->max_model_len,
        .max_model_len_asked = result->directory->max_model_len_asked,
        .max_sequences = (uint32_t)config->scheduler.max_sequences,
        .asked_bytes = config->memory.kv_bytes,
        .device = share != QN_SHARE_MEMFD,
        .reserve_bytes = compute_bytes(loader),
    };
    result->kv_dtype = qn_config_kv_is_bf16(config) ? QN_DTYPE_BF16 : QN_DTYPE_F32;
    qn_err_t err = qn_model_kv_block_bytes(&result->directory->config, request.block_tokens,
                                           result->kv_dtype == QN_DTYPE_BF16 ? 2 : 4, &result->block_bytes);
    request.block_bytes = result->block_bytes;
    if (!err) err = qn_region_largest_bytes(share, device, &request.largest_bytes);
    if (!err) err = qn_region_free_bytes(share, device, &request.free_bytes);
    /* What a kept region holds is as good as free: it is used again or given back. */
    if (!err && loader->kept_kv) request.free_bytes += qn_region_bytes(loader->kept_kv);
    if (!err) err = kv_size_decide(&request, &result->kv);
    if (!err && result->kv.max_model_len < result->directory->max_model_len)
        qn_log_notice("the KV cache holds %" PRIu32 " tokens: max_model_len is %" PRIu32 " instead of %" PRIu32
                      "; raise memory.kv_bytes for more",
                      result->kv.block_count * request.block_tokens, result->kv.max_model_len,
                      result->directory->max_model_len);
    return err;
}

/* A kept KV region is used at its own size when the size is automatic: what is free differs a little at every start. */
static void fit_kept_kv(loader_t *loader)
{
    loader_result_t *result = &loader->result;
    if (!loader->kept_kv || loader->config->memory.kv_bytes) return;
    uint64_t bytes = qn_region_bytes(loader->kept_kv), blocks = bytes / result->block_bytes;
    uint64_t tokens = blocks * loader->config->memory.block_tokens;
    if (bytes % result->block_bytes || blocks == 0 || blocks > KV_SIZE_BLOCKS_MAX) return;
    if (tokens < result->kv.max_model_len || blocks < result->kv.block_count / 4 * 3) return;
    result->kv.block_count = (uint32_t)blocks;
    result->kv.bytes = bytes;
}

static qn_err_t make_kv(loader_t *loader)
{
    loader_result_t *result = &loader->result;
    fit_kept_kv(loader);
    if (is_kept(&loader->kept_kv, QN_REGION_KIND_KV, result->kv.bytes, 0)) {
        result->kv_region = loader->kept_kv;
        loader->kept_kv = NULL;
        result->kv_kept = true;
        return QN_OK;
    }
    qn_err_t err =
        region_table_make(loader->table, LOADER_KV_ID, QN_REGION_KIND_KV, "kv", result->kv.bytes, &result->kv_region);
    /* Otherwise it grows as it is used: most of it never is. */
    if (!err && strcmp(loader->config->memory.huge_pages, "all") == 0)
        qn_region_make_huge(result->kv_region, 0, result->kv.bytes);
    return err;
}

/* Dynamic rope scales by the length of the whole sequence: beyond the original length the KV of a prefix is that of its
 * own sequence only. */
static bool may_share_prefixes(const loader_t *loader)
{
    const qn_rope_config_t *rope = &loader->result.directory->config.rope;
    if (!loader->config->memory.prefix_cache) return false;
    if (rope->type != QN_ROPE_DYNAMIC || loader->result.kv.max_model_len <= rope->original_max_positions) return true;
    qn_log_notice("prefixes are not shared: dynamic rope scales by each sequence's length, and max_model_len %" PRIu32
                  " exceeds the model's original %" PRIu32 "; lower model.max_model_len to it to share them",
                  loader->result.kv.max_model_len, rope->original_max_positions);
    return false;
}

static qn_err_t make_pool(loader_t *loader)
{
    const qn_config_values_t *config = loader->config;
    uint64_t sequences = config->scheduler.queue_limit;
    if (sequences < config->scheduler.max_sequences) sequences = config->scheduler.max_sequences;
    block_pool_options_t options = {
        .block_count = loader->result.kv.block_count,
        .block_tokens = (uint32_t)config->memory.block_tokens,
        .sequences_max = (uint32_t)sequences,
        .tokens_max = loader->result.kv.max_model_len,
        .prefix_cache = may_share_prefixes(loader),
        .pin_blocks_max = (uint32_t)((loader->result.kv.block_count * config->memory.pin_percent + 99) / 100),
        .eviction = loader->eviction,
    };
    return block_pool_create(&options, &loader->result.pool);
}

static qn_err_t load_all(loader_t *loader)
{
    uint64_t begin_ns = qn_clock_now_ns();
    qn_err_t err = load_plan(loader);
    if (!err) log_warnings(&loader->result.directory->warnings);
    if (!err) err = load_weights(loader);
    if (!err) weights_close_files(loader->result.weights);
    if (!err) err = size_kv(loader);
    if (!err) err = make_kv(loader);
    if (!err) err = make_pool(loader);
    loader->result.load_ns = qn_clock_now_ns() - begin_ns;
    return err;
}

/* ---- the thread ---- */

static void *loader_main(void *loader_pointer)
{
    loader_t *loader = loader_pointer;
    uint64_t one = 1;
    qn_log_set_name("memory");
    qn_failure_keep(&loader->failure, load_all(loader));
    QN_ASSERT(write(loader->event_fd, &one, sizeof one) == (ssize_t)sizeof one);
    return NULL;
}

qn_err_t loader_start(const qn_config_values_t *config, const region_table_t *table, qn_policy_seat_t *eviction,
                      qn_mapping_t **kept_weights, qn_mapping_t **kept_kv, loader_t **ret_loader)
{
    loader_t *loader = calloc(1, sizeof *loader);
    if (!loader) return qn_fail(QN_ERR_NO_MEMORY, "loader: no memory");
    loader->config = config;
    loader->table = table;
    loader->eviction = eviction;
    loader->kept_weights = *kept_weights;
    loader->kept_kv = *kept_kv;
    *kept_weights = *kept_kv = NULL;
    loader->joined = true;
    loader->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loader->event_fd < 0) {
        qn_err_t err = qn_fail(QN_ERR_IO, "loader: eventfd: %s", strerror(errno));
        loader_destroy(&loader);
        return err;
    }
    int status = pthread_create(&loader->thread, NULL, loader_main, loader);
    if (status) {
        loader_destroy(&loader);
        return qn_fail(QN_ERR_IO, "loader: no thread: %s", strerror(status));
    }
    loader->joined = false;
    *ret_loader = loader;
    return QN_OK;
}

int loader_fd(const loader_t *loader) { return loader->event_fd; }

void loader_progress(const loader_t *loader, uint64_t *ret_done_bytes, uint64_t *ret_total_bytes)
{
    *ret_done_bytes = atomic_load(&loader->progress.done_bytes);
    *ret_total_bytes = atomic_load(&loader->total_bytes);
}

static void join_thread(loader_t *loader)
{
    if (loader->joined) return;
    pthread_join(loader->thread, NULL);
    loader->joined = true;
}

bool loader_take(loader_t *loader, qn_err_t *ret_err, loader_result_t *ret_result)
{
    uint64_t count;
    if (read(loader->event_fd, &count, sizeof count) != (ssize_t)sizeof count) return false;
    join_thread(loader);
    *ret_err = loader->failure.code;
    if (loader->failure.code) {
        qn_failure_raise(&loader->failure);
        return true;
    }
    *ret_result = loader->result;
    loader->result = (loader_result_t){0};
    return true;
}

void loader_destroy(loader_t **loader_pointer)
{
    loader_t *loader = *loader_pointer;
    if (!loader) return;
    atomic_store(&loader->progress.cancel, true);
    join_thread(loader);
    loader_result_fini(&loader->result);
    qn_region_close(&loader->kept_weights);
    qn_region_close(&loader->kept_kv);
    if (loader->event_fd >= 0) close(loader->event_fd);
    free(loader);
    *loader_pointer = NULL;
}
