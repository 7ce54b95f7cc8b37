/* What is this?      Decoding of mirrored messages, and which requests they are about.
 * State owned:       the caller's table of slots.
 * Must never:        trust a frame: all of it was on a wire.
 * Read next:         capture_field.h, sniff_summary.c. */
#include "common/capture/capture_message.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/capture/capture_field.h"

/* A sender's clock is the tap's clock, so a larger difference means a broken frame. */
#define BELIEVABLE_NS 60000000000ull

static bool is_believable(uint64_t sent_ns, uint64_t now_ns)
{
    return sent_ns && (sent_ns < now_ns ? now_ns - sent_ns : sent_ns - now_ns) < BELIEVABLE_NS;
}

qn_capture_message_t *qn_capture_message_new(const qn_tap_header_t *header, const void *frame, size_t bytes,
                                             uint64_t missed)
{
    size_t total = (sizeof(qn_capture_message_t) + bytes + 63) & ~(size_t)63;
    qn_capture_message_t *message = aligned_alloc(64, total);
    if (!message) return NULL;
    memset(message, 0, sizeof *message);
    message->header = *header;
    message->missed = missed;
    message->bytes = bytes;
    if (bytes) memcpy(message->frame, frame, bytes);
    const qn_tap_span_t *span = qn_capture_message_span(message);
    if (header->direction == QN_TAP_SPAN) {
        message->time_ns = span && is_believable(span->begin_ns, header->now_ns) ? span->begin_ns : header->now_ns;
        return message;
    }
    message->type = qn_message_type_of(frame, bytes);
    message->head = qn_wire_head(frame, bytes);
    bool sent = header->direction == QN_TAP_SENT && is_believable(message->head.sent_ns, header->now_ns);
    message->time_ns = sent ? message->head.sent_ns : header->now_ns;
    return message;
}

const qn_tap_span_t *qn_capture_message_span(const qn_capture_message_t *message)
{
    bool whole = message->header.direction == QN_TAP_SPAN && message->bytes == sizeof(qn_tap_span_t);
    const qn_tap_span_t *span = whole ? (const qn_tap_span_t *)message->frame : NULL;
    return span && span->begin_ns <= span->end_ns ? span : NULL;
}

/* ---- requests ---- */

typedef struct {
    uint64_t *ids; /* in the arena; room for QN_CAPTURE_REQUESTS_MAX */
    size_t count;
    const qn_capture_slots_t *slots;
} gathering_t;

static void gather(gathering_t *gathering, uint64_t id)
{
    if (id && gathering->count < QN_CAPTURE_REQUESTS_MAX) gathering->ids[gathering->count++] = id;
}

static bool gather_id(const void *context, const qn_capture_value_t *value)
{
    gather((gathering_t *)(uintptr_t)context, (uint64_t)value->number);
    return false;
}

static bool gather_slot(const void *context, const qn_capture_value_t *value)
{
    gathering_t *gathering = (gathering_t *)(uintptr_t)context;
    if (value->number < QN_SLOTS_MAX) gather(gathering, gathering->slots->request[(size_t)value->number]);
    return false;
}

static void gather_path(gathering_t *gathering, const qn_capture_message_t *message, const char *path,
                        bool (*take)(const void *context, const qn_capture_value_t *value))
{
    qn_capture_field_t field;
    if (!qn_capture_field_find(qn_wire_type(message->type), path, strlen(path), &field)) return;
    /* Request ids have 64 bits, slots 32: CacheStats.sequences is a count. */
    if (take == gather_slot || qn_capture_field_leaf(&field)->kind == QN_WIRE_U64)
        qn_capture_field_any(&field, message->content, take, gathering);
}

static void learn_slots(qn_capture_slots_t *slots, const qn_capture_message_t *message)
{
    if (message->head.src == QN_SERVICE_SCHEDULER && message->head.epoch != slots->scheduler_epoch)
        *slots = (qn_capture_slots_t){.scheduler_epoch = message->head.epoch};
    if (message->type == QN_MESSAGE_STEP_PLAN) {
        const qn_step_plan_t *plan = message->content;
        for (uint32_t i = 0; i < plan->sets_count; i++)
            if (plan->sets[i].slot < QN_SLOTS_MAX) slots->request[plan->sets[i].slot] = plan->sets[i].request;
    } else if (message->type == QN_MESSAGE_STEP_RESULT) {
        const qn_step_result_t *result = message->content;
        for (uint32_t i = 0; i < result->tokens_count; i++)
            if (result->tokens[i].slot < QN_SLOTS_MAX)
                slots->request[result->tokens[i].slot] = result->tokens[i].request;
    }
}

static int compare_ids(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

/* Everywhere a message can name a request: a sequence is a request, too. */
static void gather_all(gathering_t *gathering, const qn_capture_message_t *message, qn_capture_slots_t *slots)
{
    static const char *const id_paths[] = {"head.request",   "sets.request", "tokens.request",    "prompt.request",
                                           "deltas.request", "ends.request", "timelines.request", "timeline.request",
                                           "items.sequence", "sequences"};
    for (size_t i = 0; i < sizeof id_paths / sizeof *id_paths; i++)
        gather_path(gathering, message, id_paths[i], gather_id);
    /* Retired slots hold who had them before this plan, the others who has them after its sets. */
    if (message->type == QN_MESSAGE_STEP_PLAN) gather_path(gathering, message, "retire", gather_slot);
    learn_slots(slots, message);
    if (message->type == QN_MESSAGE_STEP_PLAN) {
        gather_path(gathering, message, "runs.slot", gather_slot);
        gather_path(gathering, message, "blocks.slot", gather_slot);
    }
}

void qn_capture_message_decode(qn_capture_message_t *message, qn_capture_slots_t *slots, qn_arena_t *arena)
{
    const qn_wire_type_t *type = qn_wire_type(message->type);
    message->content = NULL;
    message->requests = NULL;
    message->request_count = 0;
    if (!type) {
        snprintf(message->error, sizeof message->error, "no message: it has no known file identifier");
        return;
    }
    void *content = qn_arena_alloc(arena, qn_message_struct_bytes(message->type), 16);
    if (qn_wire_decode(type, message->frame, message->bytes, arena, content)) {
        snprintf(message->error, sizeof message->error, "%s", qn_err_text());
        return;
    }
    message->content = content;
    gathering_t gathering = {.ids = qn_arena_alloc(arena, QN_CAPTURE_REQUESTS_MAX * sizeof(uint64_t), 8),
                             .slots = slots};
    gather_all(&gathering, message, slots);
    qsort(gathering.ids, gathering.count, sizeof *gathering.ids, compare_ids);
    size_t kept = 0;
    for (size_t i = 0; i < gathering.count; i++)
        if (!kept || gathering.ids[kept - 1] != gathering.ids[i]) gathering.ids[kept++] = gathering.ids[i];
    message->requests = gathering.ids;
    message->request_count = kept;
}

bool qn_capture_message_has_request(const qn_capture_message_t *message, uint64_t request)
{
    if (!message->content) return message->head.request == request;
    return message->request_count &&
           bsearch(&request, message->requests, message->request_count, sizeof request, compare_ids);
}

const char *qn_capture_service_name(qn_service_t service)
{
    return service < qn_service_enum.count ? qn_service_enum.names[service] : "none";
}
