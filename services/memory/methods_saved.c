/* What is this?      memory.save and memory.restore: prefixes to files and back, on the errands' thread.
 * State owned:       saves and restores that run; each holds its blocks until it is done.
 * Must never:        write a block while a step that was planned for its last holder may still run (Settle).
 * Read next:         saved_prefix.h, errands.h, block_pool.h (rule 14), schemas/settle.fbs. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/name_hash.h"
#include "common/watch/log.h"
#include "services/memory/methods.h"
#include "services/memory/saved_prefix.h"

typedef struct {
    errand_t errand;
    memory_service_t *service;
    qn_call_t call;
    saved_ground_t ground;
    char directory[QN_PATH_MAX], name[SAVED_NAME_MAX + 1];
    bool replace, dry;
    uint64_t salt, identity, most_bytes;
    uint64_t fill; /* holds the blocks; 0: none */
    uint32_t *ids, *blocks;
    uint32_t tokens;
    uint64_t bytes, directory_bytes; /* found out by the errand */
} save_t;

/* ---- what both need ---- */

static void find_directory(const memory_service_t *service, char *ret_path, size_t size)
{
    if (service->config->memory.cache_dir[0])
        snprintf(ret_path, size, "%s", service->config->memory.cache_dir);
    else
        snprintf(ret_path, size, "%s/saved", qn_daemon_run_dir(service->daemon));
}

static saved_ground_t find_ground(const memory_service_t *service)
{
    const qn_model_config_t *config = &service->model.directory->config;
    saved_ground_t ground = {.fingerprint = weights_fingerprint(service->model.weights),
                             .layers = config->layers,
                             .kv_heads = config->kv_heads,
                             .head_dim = config->head_dim,
                             .block_tokens = block_pool_block_tokens(service->model.pool),
                             .scalar_bytes = service->model.kv_dtype == QN_DTYPE_BF16 ? 2 : 4,
                             .block_count = service->model.kv.block_count,
                             .region = region_table_find_name(service->regions, "kv")};
    snprintf(ground.model, sizeof ground.model, "%.127s", service->model.directory->id);
    return ground;
}

static bool gave_up(const void *errand) { return errands_cancelled(errand); }

static bool name_given(qn_text_t name) { return name.bytes > 0; }

static qn_call_outcome_t refuse_name(const qn_call_t *call)
{
    return qn_call_fail(call, 400, "name", "name: 1 to %d letters, digits, '.', '_' and '-', the first no '.'",
                        SAVED_NAME_MAX);
}

static qn_call_outcome_t refuse_busy(const qn_call_t *call)
{
    return qn_call_fail(call, 429, NULL, "so many prefixes are being saved or restored already; try again");
}

/* What became of an errand, as a status. */
static void answer_failure(const qn_call_t *call, const qn_failure_t *failure)
{
    uint16_t status;
    switch (failure->code) {
    case QN_ERR_NOT_FOUND: status = 404; break;
    case QN_ERR_EXISTS: status = 409; break;
    case QN_ERR_UNSUPPORTED: status = 409; break;
    case QN_ERR_INVALID: status = 422; break;
    case QN_ERR_LIMIT:
    case QN_ERR_NO_MEMORY: status = 507; break;
    case QN_ERR_CANCELLED: status = 503; break;
    default: status = 500; break;
    }
    qn_call_fail(call, status, "name", "%s", failure->text);
}

/* ---- save ---- */

static qn_err_t run_save(errand_t *errand)
{
    save_t *save = (save_t *)errand;
    int directory;
    qn_err_t err = saved_directory_open(save->directory, &directory);
    if (err) return err;
    saved_directory_list(directory, &save->ground, NULL, &save->directory_bytes);
    save->bytes = save->tokens ? saved_bytes(&save->ground, save->tokens) : 0;
    if (!save->dry && save->directory_bytes + save->bytes > save->most_bytes)
        err = qn_fail(QN_ERR_LIMIT,
                      "%" PRIu64 " bytes are more than memory.cache_dir_bytes (%" PRIu64 ") leaves beside the %" PRIu64
                      " in %s: delete files there, or raise it",
                      save->bytes, save->most_bytes, save->directory_bytes, save->directory);
    if (!err && !save->dry)
        err = saved_write(directory, save->name, save->replace, &save->ground, save->salt, save->identity,
                          memory_now_ms() / 1000, save->ids, save->tokens, save->blocks, gave_up, errand);
    if (!err && !save->dry) saved_directory_list(directory, &save->ground, NULL, &save->directory_bytes);
    close(directory);
    return err;
}

static void free_save(save_t *save)
{
    if (save->fill) block_pool_fill_drop(save->service->model.pool, save->fill);
    free(save->ids);
    free(save->blocks);
    free(save);
}

static void done_save(errand_t *errand)
{
    save_t *save = (save_t *)errand;
    if (errand->failure.code)
        answer_failure(&save->call, &errand->failure);
    else {
        qn_memory_save_reply_t reply = {.name = qn_text(save->name),
                                        .tokens = save->tokens,
                                        .blocks = save->tokens / save->ground.block_tokens,
                                        .bytes = save->bytes,
                                        .directory_bytes = save->directory_bytes,
                                        .dry_run = save->dry};
        qn_call_finish(&save->call, &reply);
    }
    free_save(save);
}

/* Holds the blocks and copies what the errand needs. */
static bool prepare_save(save_t *save, const qn_memory_save_t *asked)
{
    block_pool_grant_t grant;
    block_pool_t *pool = save->service->model.pool;
    save->identity = block_pool_identity(pool, save->salt);
    save->tokens = block_pool_resident(pool, save->salt, asked->ids, asked->ids_count);
    if (save->tokens == 0) return true;
    if (!block_pool_fill_open(pool, save->salt, save->identity, asked->ids, save->tokens, &save->fill, &grant))
        return false;
    QN_ASSERT(grant.cached_tokens == save->tokens);
    save->ids = malloc((size_t)save->tokens * sizeof *save->ids);
    save->blocks = malloc((size_t)grant.block_count * sizeof *save->blocks);
    if (!save->ids || !save->blocks) return false;
    memcpy(save->ids, asked->ids, (size_t)save->tokens * sizeof *save->ids);
    memcpy(save->blocks, grant.blocks, (size_t)grant.block_count * sizeof *save->blocks);
    return true;
}

qn_call_outcome_t memory_method_save(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    memory_service_t *service = state;
    const qn_memory_save_t *asked = message;
    if (!service->loaded) return memory_still_loading(call);
    if (!saved_name_ok(asked->name.data, asked->name.bytes)) return refuse_name(call);
    save_t *save = calloc(1, sizeof *save);
    if (!save) return qn_call_fail(call, 507, NULL, "memory has no memory for it");
    *save = (save_t){.errand = {.run = run_save, .done = done_save},
                     .service = service,
                     .call = *call,
                     .ground = find_ground(service),
                     .replace = asked->replace,
                     .dry = asked->dry_run,
                     .salt = qn_name_hash(asked->cache_salt),
                     .most_bytes = service->config->memory.cache_dir_bytes};
    find_directory(service, save->directory, sizeof save->directory);
    memcpy(save->name, asked->name.data, asked->name.bytes);
    bool good = prepare_save(save, asked), cached = save->tokens > 0 || save->dry;
    if (good && cached && errands_add(service->errands, &save->errand)) return QN_CALL_LATER;
    free_save(save);
    if (good && !cached)
        return qn_call_fail(call, 404, "ids", "ids: no full block of it is cached: run a request with it first");
    return refuse_busy(call);
}

/* ---- restore ---- */

typedef enum { RESTORE_OPENS, RESTORE_SETTLES, RESTORE_READS } restore_phase_t;

struct memory_restore {
    errand_t errand;
    memory_service_t *service;
    qn_call_t call;
    saved_ground_t ground;
    restore_phase_t phase;
    char directory[QN_PATH_MAX], name[SAVED_NAME_MAX + 1];
    uint64_t settle; /* the Settle it waits for */
    saved_reader_t reader;
    uint64_t fill; /* 0: none */
    uint32_t *blocks;
    uint32_t block_count, first; /* of them, the first that is not there */
};

static qn_err_t run_restore(errand_t *errand)
{
    memory_restore_t *self = (memory_restore_t *)errand;
    int directory;
    if (self->phase == RESTORE_READS)
        return saved_read(&self->reader, &self->ground, self->first, self->block_count - self->first,
                          self->blocks + self->first, gave_up, errand);
    qn_err_t err = saved_directory_open(self->directory, &directory);
    if (err) return err;
    err = saved_open(directory, self->name, &self->ground, &self->reader);
    close(directory);
    return err;
}

static void free_restore(memory_restore_t *self)
{
    for (unsigned i = 0; i < BLOCK_POOL_FILLS_MAX; i++)
        if (self->service->restores[i] == self) self->service->restores[i] = NULL;
    if (self->fill) block_pool_fill_drop(self->service->model.pool, self->fill);
    saved_close(&self->reader);
    free(self->blocks);
    free(self);
}

static void fail_restore(memory_restore_t *self, uint16_t status, const char *text)
{
    qn_call_fail(&self->call, status, "name", "'%s': %s", self->name, text);
    free_restore(self);
}

static void finish_restore(memory_restore_t *self)
{
    uint32_t tokens = self->reader.header.tokens, read = self->block_count - self->first;
    block_pool_fill_finish(self->service->model.pool, self->fill, self->reader.ids, tokens);
    self->fill = 0;
    qn_memory_restore_reply_t reply = {.name = qn_text(self->name),
                                       .tokens = tokens,
                                       .blocks = self->block_count,
                                       .read_blocks = read,
                                       .bytes = (uint64_t)read * self->reader.header.block_bytes};
    qn_log_info("prefix '%s' restored: %" PRIu32 " tokens, %" PRIu32 " blocks read", self->name, tokens, read);
    qn_call_finish(&self->call, &reply);
    free_restore(self);
}

static void read_blocks(memory_restore_t *self)
{
    self->phase = RESTORE_READS;
    if (!errands_add(self->service->errands, &self->errand))
        fail_restore(self, 429, "too much is being done; try again");
}

/* The file fits: takes blocks, then waits until nothing planned for their last holders can run. */
static void take_blocks(memory_restore_t *self)
{
    memory_service_t *service = self->service;
    block_pool_grant_t grant;
    if (!block_pool_fill_open(service->model.pool, self->reader.header.salt, self->reader.header.identity,
                              self->reader.ids, self->reader.header.tokens, &self->fill, &grant)) {
        fail_restore(self, 507,
                     "there are not enough free blocks beside running requests, pins, and room for the longest "
                     "request: unpin something, wait, or raise memory.kv_bytes");
        return;
    }
    self->block_count = grant.block_count;
    self->first = grant.cached_tokens / self->ground.block_tokens;
    self->blocks = malloc((size_t)grant.block_count * sizeof *self->blocks);
    if (!self->blocks) {
        fail_restore(self, 507, "memory has no memory for it");
        return;
    }
    memcpy(self->blocks, grant.blocks, (size_t)grant.block_count * sizeof *self->blocks);
    if (self->first == self->block_count) {
        finish_restore(self);
        return;
    }
    self->phase = RESTORE_SETTLES;
    qn_settle_t settle = {.head.request = self->settle = ++service->queries, .gone_scheduler = service->gone_scheduler};
    if (service->compute.epoch == 0)
        read_blocks(self); /* nobody can run anything */
    else if (qn_daemon_send(service->daemon, service->compute, QN_MESSAGE_SETTLE, &settle) == QN_SEND_FULL)
        fail_restore(self, 503, "compute takes no messages; try again");
}

void memory_restores_settled(memory_service_t *service, uint64_t query)
{
    for (unsigned i = 0; i < BLOCK_POOL_FILLS_MAX; i++) {
        memory_restore_t *restore = service->restores[i];
        if (restore && restore->phase == RESTORE_SETTLES && (query == 0 || restore->settle == query))
            read_blocks(restore);
    }
}

void memory_restores_fini(memory_service_t *service)
{
    for (unsigned i = 0; i < BLOCK_POOL_FILLS_MAX; i++)
        if (service->restores[i]) free_restore(service->restores[i]);
}

static void done_restore(errand_t *errand)
{
    memory_restore_t *self = (memory_restore_t *)errand;
    if (errand->failure.code) {
        answer_failure(&self->call, &errand->failure);
        free_restore(self);
    } else if (self->phase == RESTORE_OPENS) {
        take_blocks(self);
    } else {
        finish_restore(self);
    }
}

/* ---- what is there ---- */

typedef struct {
    errand_t errand;
    qn_call_t call;
    saved_ground_t ground;
    char directory[QN_PATH_MAX], name[SAVED_NAME_MAX + 1];
    saved_file_t files[SAVED_FILES_MAX];
    qn_saved_file_t rows[SAVED_FILES_MAX];
    uint32_t count;
} listing_t;

static qn_err_t run_listing(errand_t *errand)
{
    listing_t *listing = (listing_t *)errand;
    uint64_t bytes;
    int directory;
    qn_err_t err = saved_directory_open(listing->directory, &directory);
    if (err) return err;
    listing->count = saved_directory_list(directory, &listing->ground, listing->files, &bytes);
    close(directory);
    return QN_OK;
}

static void done_listing(errand_t *errand)
{
    listing_t *listing = (listing_t *)errand;
    qn_memory_restore_reply_t reply = {.name = qn_text(listing->name), .files = listing->rows};
    for (uint32_t i = 0; i < listing->count; i++) {
        const saved_file_t *file = &listing->files[i];
        if (listing->name[0] && strcmp(file->name, listing->name) != 0) continue;
        listing->rows[reply.files_count++] =
            (qn_saved_file_t){.name = qn_text(file->name),
                              .bytes = file->bytes,
                              .tokens = file->header.tokens,
                              .fits = file->unfit[0] == '\0',
                              .unfit = qn_text(file->unfit[0] ? file->unfit : NULL),
                              .model = qn_text(file->readable ? file->header.model : NULL),
                              .saved_unix_s = file->header.saved_unix_s};
    }
    if (errand->failure.code)
        answer_failure(&listing->call, &errand->failure);
    else if (listing->name[0] && reply.files_count == 0)
        qn_call_fail(&listing->call, 404, "name", "no prefix is saved as '%s'", listing->name);
    else
        qn_call_finish(&listing->call, &reply);
    free(listing);
}

static qn_call_outcome_t list_files(memory_service_t *service, const qn_call_t *call, qn_text_t name)
{
    listing_t *listing = calloc(1, sizeof *listing);
    if (!listing) return qn_call_fail(call, 507, NULL, "memory has no memory for it");
    listing->errand = (errand_t){.run = run_listing, .done = done_listing};
    listing->call = *call;
    listing->ground = find_ground(service);
    find_directory(service, listing->directory, sizeof listing->directory);
    if (name_given(name)) memcpy(listing->name, name.data, name.bytes);
    if (errands_add(service->errands, &listing->errand)) return QN_CALL_LATER;
    free(listing);
    return refuse_busy(call);
}

qn_call_outcome_t memory_method_restore(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    memory_service_t *service = state;
    const qn_memory_restore_t *asked = message;
    memory_restore_t **place = NULL;
    if (!service->loaded) return memory_still_loading(call);
    if (name_given(asked->name) ? !saved_name_ok(asked->name.data, asked->name.bytes) : !asked->dry_run)
        return refuse_name(call);
    if (asked->dry_run) return list_files(service, call, asked->name);
    if (!block_pool_shares(service->model.pool))
        return qn_call_fail(
            call, 409, NULL,
            "prefixes are not shared here (memory.prefix_cache, or dynamic rope: see the log): nothing would "
            "find what is restored");
    for (unsigned i = 0; i < BLOCK_POOL_FILLS_MAX; i++)
        if (!service->restores[i]) place = &service->restores[i];
    memory_restore_t *self = place ? calloc(1, sizeof *self) : NULL;
    if (!self) return refuse_busy(call);
    self->errand = (errand_t){.run = run_restore, .done = done_restore};
    self->service = service;
    self->call = *call;
    self->ground = find_ground(service);
    self->reader.fd = -1;
    find_directory(service, self->directory, sizeof self->directory);
    memcpy(self->name, asked->name.data, asked->name.bytes);
    *place = self;
    if (errands_add(service->errands, &self->errand)) return QN_CALL_LATER;
    free_restore(self);
    return refuse_busy(call);
}
