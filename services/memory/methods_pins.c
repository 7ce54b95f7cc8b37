/* What is this?      Memory's methods about pins and clones, and the question to the scheduler that a clone takes.
 * State owned:       clones that wait for the scheduler's answer, in the service.
 * Must never:        keep rows that the scheduler has not said are written.
 * Read next:         block_pool.h (rules 11 to 13), pin_book.h, schemas/commit_query.fbs. */
#include <string.h>
#include <time.h>

#include "common/name_hash.h"
#include "services/memory/methods.h"

#define FIRST_IDS 16u

uint64_t memory_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void memory_open_pins(memory_service_t *service)
{
    const loader_result_t *model = &service->model;
    const qn_mapping_t *kv = region_table_find_name(service->regions, "kv");
    pin_ground_t ground = {.fingerprint = weights_fingerprint(model->weights),
                           .kv_id = qn_region_id(kv),
                           .kv_epoch = qn_region_epoch(kv),
                           .block_tokens = block_pool_block_tokens(model->pool),
                           .scalar_bytes = model->kv_dtype == QN_DTYPE_BF16 ? 2 : 4};
    pin_book_open(service->pins, model->pool, &ground, model->kv_kept, memory_now_ms());
}

static uint64_t expiry(uint32_t ttl_s) { return ttl_s ? memory_now_ms() + (uint64_t)ttl_s * 1000 : PIN_NEVER; }

static float expires_in(const pin_record_t *record)
{
    uint64_t now_ms = memory_now_ms();
    if (record->expires_ms == PIN_NEVER) return -1;
    return record->expires_ms > now_ms ? (float)(record->expires_ms - now_ms) / 1000 : 0;
}

/* A name that strings of C can hold. */
static bool owner_ok(qn_text_t owner) { return owner.bytes == 0 || memchr(owner.data, '\0', owner.bytes) == NULL; }

static const char *owner_of(qn_text_t owner) { return owner.bytes ? owner.data : ""; }

static qn_call_outcome_t refuse_owner(const qn_call_t *call)
{
    return qn_call_fail(call, 400, "owner", "owner: a name has no NUL in it");
}

/* Why the pool did not pin. */
static qn_call_outcome_t refuse_pin(const qn_call_t *call, block_pool_pin_outcome_t outcome, uint64_t request)
{
    switch (outcome) {
    case BLOCK_POOL_PINS_FULL:
        return qn_call_fail(call, 409, NULL, "%d prefixes are pinned, and no more may be; unpin one",
                            BLOCK_POOL_PINS_MAX);
    case BLOCK_POOL_PINS_TOO_MUCH:
        return qn_call_fail(
            call, 409, "ids",
            "ids: the pins would hold more blocks than memory.pin_percent allows, or leave too few for a "
            "request of the greatest length; unpin something, raise memory.pin_percent or "
            "memory.kv_bytes");
    case BLOCK_POOL_NOT_OPEN:
        return qn_call_fail(
            call, 404, "request",
            "request: %llu holds no blocks now, or what it holds has left the prefix cache (a flush, or "
            "memory.prefix_cache false)",
            (unsigned long long)request);
    case BLOCK_POOL_PINNED:
    case BLOCK_POOL_NOT_CACHED: break;
    }
    return QN_CALL_DONE;
}

/* ---- pin, unpin, list ---- */

static qn_call_outcome_t show_pins(const memory_service_t *service, qn_memory_pin_reply_t *reply)
{
    reply->pins = pin_book_count(service->pins);
    block_pool_pins(service->model.pool, &reply->held_blocks);
    reply->pinned_blocks = reply->pinned_tokens / block_pool_block_tokens(service->model.pool);
    return QN_CALL_DONE;
}

qn_call_outcome_t memory_method_pin(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    memory_service_t *service = state;
    const qn_memory_pin_t *asked = message;
    qn_memory_pin_reply_t *reply = ret_reply;
    uint32_t pool_pin;
    if (!service->loaded) return memory_still_loading(call);
    if (!owner_ok(asked->owner)) return refuse_owner(call);
    block_pool_pin_outcome_t outcome = block_pool_pin(service->model.pool, qn_name_hash(asked->cache_salt), asked->ids,
                                                      asked->ids_count, &pool_pin, &reply->pinned_tokens);
    if (refuse_pin(call, outcome, 0) == QN_CALL_FAILED) return QN_CALL_FAILED;
    if (outcome == BLOCK_POOL_PINNED) {
        const pin_record_t *record = pin_book_add(service->pins, service->model.pool, pool_pin, false,
                                                  owner_of(asked->owner), expiry(asked->ttl_s));
        if (!record) return refuse_pin(call, BLOCK_POOL_PINS_FULL, 0);
        reply->pin = record->number;
        reply->expires_in_s = expires_in(record);
    }
    return show_pins(service, reply);
}

static uint32_t unpin(memory_service_t *service, const qn_memory_unpin_t *asked)
{
    block_pool_t *pool = service->model.pool;
    if (asked->all) return pin_book_remove_all(service->pins, pool);
    if (asked->owner.bytes) return pin_book_remove_owner(service->pins, pool, asked->owner.data);
    if (asked->pin) return pin_book_remove(service->pins, pool, asked->pin);
    const pin_record_t *record =
        pin_book_of_pool(service->pins,
                         block_pool_pin_of(pool, qn_name_hash(asked->cache_salt), asked->ids, asked->ids_count));
    return record ? pin_book_remove(service->pins, pool, record->number) : 0;
}

qn_call_outcome_t memory_method_unpin(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    memory_service_t *service = state;
    const qn_memory_unpin_t *asked = message;
    if (!service->loaded) return memory_still_loading(call);
    if ((asked->pin != 0) + (asked->ids_count != 0) + (asked->owner.bytes != 0) + asked->all != 1)
        return qn_call_fail(call, 400, "pin", "pin: give one of pin, ids, owner and all");
    if (!owner_ok(asked->owner)) return refuse_owner(call);
    const char *param = asked->pin ? "pin" : asked->ids_count ? "ids" : "owner";
    if (unpin(service, asked) == 0 && !asked->all)
        return qn_call_fail(call, 404, param, "%s: no such prefix is pinned", param);
    return show_pins(service, ret_reply);
}

static qn_pin_row_t show_pin(const memory_service_t *service, qn_arena_t *arena, const pin_record_t *record)
{
    qn_pin_row_t row = {.pin = record->number,
                        .owner = qn_text(qn_arena_strndup(arena, record->owner, PIN_OWNER_MAX)),
                        .salt = memory_show_hash(arena, record->salt),
                        .tokens = record->tokens,
                        .resident = record->pool_pin != 0,
                        .clone = record->rows,
                        .expires_in_s = expires_in(record),
                        .first_ids = record->ids,
                        .first_ids_count = record->tokens < FIRST_IDS ? record->tokens : FIRST_IDS};
    if (record->pool_pin) block_pool_pin_blocks(service->model.pool, record->pool_pin, &row.blocks);
    return row;
}

qn_call_outcome_t memory_method_pins(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const memory_service_t *service = state;
    const qn_memory_pins_t *asked = message;
    qn_memory_pins_reply_t *reply = ret_reply;
    if (!service->loaded) return memory_still_loading(call);
    qn_pin_row_t *rows = qn_arena_zalloc(call->arena, BLOCK_POOL_PINS_MAX, sizeof *rows);
    for (uint32_t i = 0; i < pin_book_count(service->pins); i++) {
        const pin_record_t *record = pin_book_at(service->pins, i);
        if (asked->owner.bytes && strcmp(asked->owner.data, record->owner) != 0) continue;
        rows[reply->pins_count++] = show_pin(service, call->arena, record);
    }
    reply->pins = rows;
    block_pool_pins(service->model.pool, &reply->held_blocks);
    reply->most_blocks = block_pool_pin_blocks_max(service->model.pool);
    return QN_CALL_DONE;
}

/* ---- clones ---- */

static void show_clone(const memory_service_t *service, const pin_record_t *record, qn_memory_clone_reply_t *reply)
{
    uint32_t block_tokens = block_pool_block_tokens(service->model.pool);
    reply->pin = record->number;
    reply->tokens = record->tokens;
    reply->shared_blocks = record->tokens / block_tokens;
    reply->copied_rows = record->tokens % block_tokens;
    reply->expires_in_s = expires_in(record);
    reply->ids = record->ids;
    reply->ids_count = record->tokens;
}

/* The request's sequence is cloned, as far as memory knows it. */
static void clone_sequence(memory_service_t *service, const memory_clone_t *clone)
{
    uint32_t pool_pin, tokens;
    qn_memory_clone_reply_t reply = {.expires_in_s = -1};
    block_pool_pin_outcome_t outcome =
        block_pool_clone_sequence(service->model.pool, clone->sequence, &pool_pin, &tokens);
    if (refuse_pin(&clone->call, outcome, clone->sequence) == QN_CALL_FAILED) return;
    const pin_record_t *record =
        outcome == BLOCK_POOL_PINNED
            ? pin_book_add(service->pins, service->model.pool, pool_pin, true, clone->owner, clone->expires_ms)
            : NULL;
    if (outcome == BLOCK_POOL_PINNED && !record) {
        refuse_pin(&clone->call, BLOCK_POOL_PINS_FULL, 0);
        return;
    }
    if (record) show_clone(service, record, &reply);
    qn_call_finish(&clone->call, &reply);
}

void memory_clone_committed(memory_service_t *service, uint64_t query)
{
    for (unsigned i = 0; i < MEMORY_CLONES_MAX; i++) {
        memory_clone_t clone = service->clones[i];
        if (clone.query != query) continue;
        service->clones[i].query = 0;
        clone_sequence(service, &clone);
    }
}

void memory_clones_fail(memory_service_t *service)
{
    for (unsigned i = 0; i < MEMORY_CLONES_MAX; i++) {
        if (service->clones[i].query == 0) continue;
        service->clones[i].query = 0;
        qn_call_fail(&service->clones[i].call, 503, NULL, "the scheduler went away; try again");
    }
}

/* Asks the scheduler how far the request is: memory hears of full blocks only. */
static qn_call_outcome_t clone_later(memory_service_t *service, const qn_call_t *call, const qn_memory_clone_t *asked)
{
    memory_clone_t *place = NULL;
    for (unsigned i = 0; i < MEMORY_CLONES_MAX; i++)
        if (service->clones[i].query == 0) place = &service->clones[i];
    if (!place) return qn_call_fail(call, 429, NULL, "%d clones are being made; try again", MEMORY_CLONES_MAX);
    qn_commit_query_t query = {.head.request = ++service->queries, .sequence = asked->request};
    if (service->scheduler.epoch == 0 ||
        qn_daemon_send(service->daemon, service->scheduler, QN_MESSAGE_COMMIT_QUERY, &query) != QN_SEND_OK)
        return qn_call_fail(call, 503, NULL, "there is no scheduler to ask how far the request is; try again");
    *place = (memory_clone_t){.call = *call,
                              .query = query.head.request,
                              .sequence = asked->request,
                              .expires_ms = expiry(asked->ttl_s)};
    strncpy(place->owner, owner_of(asked->owner), PIN_OWNER_MAX);
    return QN_CALL_LATER;
}

qn_call_outcome_t memory_method_clone(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    memory_service_t *service = state;
    const qn_memory_clone_t *asked = message;
    qn_memory_clone_reply_t *reply = ret_reply;
    uint32_t pool_pin, tokens;
    if (!service->loaded) return memory_still_loading(call);
    if ((asked->request != 0) + (asked->ids_count != 0) != 1)
        return qn_call_fail(call, 400, "request", "request: give one of request and ids");
    if (!owner_ok(asked->owner)) return refuse_owner(call);
    if (asked->request) return clone_later(service, call, asked);
    block_pool_pin_outcome_t outcome = block_pool_clone(service->model.pool, qn_name_hash(asked->cache_salt),
                                                        asked->ids, asked->ids_count, &pool_pin, &tokens);
    if (refuse_pin(call, outcome, 0) == QN_CALL_FAILED) return QN_CALL_FAILED;
    reply->expires_in_s = -1;
    if (outcome == BLOCK_POOL_NOT_CACHED) return QN_CALL_DONE;
    const pin_record_t *record =
        pin_book_add(service->pins, service->model.pool, pool_pin, true, owner_of(asked->owner), expiry(asked->ttl_s));
    if (!record) return refuse_pin(call, BLOCK_POOL_PINS_FULL, 0);
    show_clone(service, record, reply);
    return QN_CALL_DONE;
}
