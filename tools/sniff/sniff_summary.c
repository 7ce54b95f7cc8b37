/* What is this?      The summaries of the messages, one function per type, in a table.
 * State owned:       none.
 * Must never:        show bytes of a wire to a terminal unescaped.
 * Read next:         schemas/ for what the fields mean. */
#include "tools/sniff/sniff_summary.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void sniff_line_add(sniff_line_t *line, const char *format, ...)
{
    size_t room = sizeof line->text - line->bytes;
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(line->text + line->bytes, room, format, arguments);
    va_end(arguments);
    if (written >= 0 && (size_t)written < room) {
        line->bytes += (size_t)written;
        return;
    }
    line->bytes = sizeof line->text - 1;
    memcpy(line->text + line->bytes - 3, "...", 3);
}

void sniff_line_add_text(sniff_line_t *line, qn_text_t text, size_t bytes_max)
{
    sniff_line_add(line, "\"");
    size_t shown = text.bytes < bytes_max ? text.bytes : bytes_max;
    /* Do not cut inside a character. */
    while (shown && shown < text.bytes && ((unsigned char)text.data[shown] & 0xc0) == 0x80)
        shown--;
    for (size_t i = 0; i < shown; i++) {
        unsigned char c = (unsigned char)text.data[i];
        if (c == '\n')
            sniff_line_add(line, "\\n");
        else if (c < 0x20 || c == 0x7f)
            sniff_line_add(line, "\\x%02x", c);
        else
            sniff_line_add(line, c == '"' || c == '\\' ? "\\%c" : "%c", c);
    }
    sniff_line_add(line, shown < text.bytes ? "\"... (%u bytes)" : "\"", text.bytes);
}

/* "1 token", "3 tokens". */
static void add_count(sniff_line_t *line, uint64_t count, const char *noun)
{
    sniff_line_add(line, "%" PRIu64 " %s%s", count, noun, count == 1 ? "" : "s");
}

static const char *enum_name(const qn_wire_enum_t *table, unsigned value)
{
    return value < table->count ? table->names[value] : "?";
}

#define TEXT_SHOWN 60

/* ---- links ---- */

static void sum_hello(sniff_line_t *line, const void *content)
{
    const qn_hello_t *it = content;
    sniff_line_add(line, "%sprotocol %u, pid %u, window %u, state %s, build ", it->reply ? "reply, " : "", it->protocol,
                   it->pid, it->window, enum_name(&qn_state_enum, it->state));
    sniff_line_add_text(line, it->build, QN_NAME_MAX);
}

static void sum_bye(sniff_line_t *line, const void *content)
{
    const qn_bye_t *it = content;
    sniff_line_add(line, it->unknown_peer ? "unknown peer: " : "leaves: ");
    sniff_line_add_text(line, it->reason, QN_REASON_MAX);
}

static void sum_heartbeat(sniff_line_t *line, const void *content)
{
    const qn_heartbeat_t *it = content;
    sniff_line_add(line, "%s, up %" PRIu64 ".%" PRIu64 " s, credit to #%" PRIu64, enum_name(&qn_state_enum, it->state),
                   it->uptime_ms / 1000, it->uptime_ms % 1000 / 100, it->limit);
    if (it->text.bytes) {
        sniff_line_add(line, ", ");
        sniff_line_add_text(line, it->text, TEXT_SHOWN);
    }
}

static void sum_credit(sniff_line_t *line, const void *content)
{
    const qn_credit_t *it = content;
    sniff_line_add(line, "up to #%" PRIu64, it->limit);
}

static void sum_refusal(sniff_line_t *line, const void *content)
{
    const qn_refusal_t *it = content;
    sniff_line_add(line, "%u ", it->status);
    if (it->param.bytes) sniff_line_add(line, "%.*s: ", (int)it->param.bytes, it->param.data);
    sniff_line_add_text(line, it->text, QN_ERR_TEXT_MAX);
}

/* ---- requests ---- */

static void add_sampling(sniff_line_t *line, const qn_sampling_t *sampling)
{
    sniff_line_add(line, ", max %u tokens", sampling->max_tokens);
    if (!(sampling->temperature > 0)) {
        sniff_line_add(line, ", greedy");
        return;
    }
    sniff_line_add(line, ", temperature %g", sampling->temperature);
    if (sampling->top_p < 1) sniff_line_add(line, ", top-p %g", sampling->top_p);
    if (sampling->top_k) sniff_line_add(line, ", top-k %u", sampling->top_k);
    sniff_line_add(line, ", seed %" PRIu64, sampling->seed);
}

static void sum_encode(sniff_line_t *line, const void *content)
{
    const qn_encode_t *it = content;
    if (it->prompt.data)
        sniff_line_add_text(line, it->prompt, TEXT_SHOWN);
    else
        add_count(line, it->prompt_ids_count, "id");
    add_sampling(line, &it->sampling);
    if (it->stop_count) {
        sniff_line_add(line, ", ");
        add_count(line, it->stop_count, "stop text");
    }
}

static void sum_submit(sniff_line_t *line, const void *content)
{
    const qn_submit_t *it = content;
    add_count(line, it->prompt_ids_count, "prompt token");
    add_sampling(line, &it->sampling);
    if (it->priority) sniff_line_add(line, ", priority %d", it->priority);
}

static void sum_cancel(sniff_line_t *line, const void *content)
{
    const qn_cancel_t *it = content;
    sniff_line_add(line, "%s", enum_name(&qn_cancel_reason_enum, it->reason));
}

static void add_ends(sniff_line_t *line, const qn_sequence_end_t *ends, uint32_t count)
{
    for (uint32_t i = 0; i < count && i < 3; i++)
        sniff_line_add(line, "; end of %" PRIu64 ": %s after %u+%u tokens", ends[i].request,
                       enum_name(&qn_finish_enum, ends[i].finish), ends[i].prompt_tokens, ends[i].generated_tokens);
    if (count > 3) sniff_line_add(line, "; and %u more ends", count - 3);
}

static void sum_token_batch(sniff_line_t *line, const void *content)
{
    const qn_token_batch_t *it = content;
    sniff_line_add(line, "step %" PRIu64 ", ", it->step);
    add_count(line, it->tokens_count, "token");
    for (uint32_t i = 0; i < it->tokens_count && i < 4; i++)
        sniff_line_add(line, "%s%" PRIu64 "[%u]=%u", i ? ", " : ": ", it->tokens[i].request, it->tokens[i].position,
                       it->tokens[i].id);
    if (it->tokens_count > 4) sniff_line_add(line, ", ...");
    add_ends(line, it->ends, it->ends_count);
}

static void sum_text_delta(sniff_line_t *line, const void *content)
{
    const qn_text_delta_t *it = content;
    add_count(line, it->deltas_count, "delta");
    sniff_line_add(line, ", ");
    sniff_line_add_text(line, it->text, TEXT_SHOWN);
    add_ends(line, it->ends, it->ends_count);
}

static void sum_prompt_logprobs(sniff_line_t *line, const void *content)
{
    const qn_prompt_logprobs_t *it = content;
    add_count(line, it->ids_count, "prompt token");
    sniff_line_add(line, " from position %u, %u alternatives each", it->position, it->top_count);
}

static void sum_tokenize(sniff_line_t *line, const void *content)
{
    const qn_tokenize_t *it = content;
    sniff_line_add_text(line, it->text, TEXT_SHOWN);
}

static void sum_tokenized(sniff_line_t *line, const void *content)
{
    const qn_tokenized_t *it = content;
    add_count(line, it->ids_count, "id");
}

static void sum_detokenize(sniff_line_t *line, const void *content)
{
    const qn_detokenize_t *it = content;
    add_count(line, it->ids_count, "id");
    sniff_line_add(line, it->skip_special ? ", special ones skipped" : "");
}

static void sum_detokenized(sniff_line_t *line, const void *content)
{
    const qn_detokenized_t *it = content;
    sniff_line_add_text(line, it->text, TEXT_SHOWN);
}

/* ---- steps ---- */

static void sum_step_plan(sniff_line_t *line, const void *content)
{
    const qn_step_plan_t *it = content;
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < it->runs_count; i++)
        tokens += it->runs[i].token_count;
    sniff_line_add(line, "step %" PRIu64 ", ", it->step);
    add_count(line, it->runs_count, "run");
    sniff_line_add(line, ", ");
    add_count(line, tokens, "token");
    const struct {
        uint32_t count;
        const char *noun;
    } parts[] = {{it->retire_count, "retires"},
                 {it->sets_count, "sets"},
                 {it->blocks_count, "blocks"},
                 {it->copies_count, "copies"}};
    for (size_t i = 0; i < 4; i++)
        if (parts[i].count) sniff_line_add(line, ", %s %u", parts[i].noun, parts[i].count);
    for (uint32_t i = 0; i < it->reasons_count; i++) {
        sniff_line_add(line, i ? "; " : ": ");
        /* The policy's words come without quotes: they are the point of the line. */
        for (uint32_t j = 0; j < it->reasons[i].bytes; j++) {
            unsigned char c = (unsigned char)it->reasons[i].data[j];
            sniff_line_add(line, "%c", c < 0x20 || c == 0x7f ? '?' : c);
        }
    }
}

static void sum_step_result(sniff_line_t *line, const void *content)
{
    const qn_step_result_t *it = content;
    uint64_t took_ns = it->end_ns > it->begin_ns ? it->end_ns - it->begin_ns : 0;
    uint32_t masked = 0, stopped = 0;
    for (uint32_t i = 0; i < it->tokens_count; i++) {
        masked += it->tokens[i].masked;
        stopped += it->tokens[i].stopped;
    }
    sniff_line_add(line, "step %" PRIu64 ", %.3f ms, ", it->step, (double)took_ns / 1e6);
    add_count(line, it->tokens_count, "token");
    if (stopped) sniff_line_add(line, ", %u stopped", stopped);
    if (masked) sniff_line_add(line, ", %u masked", masked);
    if (it->prompt_count) sniff_line_add(line, ", %u prompt log-probabilities", it->prompt_count);
}

/* ---- memory ---- */

static void sum_lease(sniff_line_t *line, const void *content)
{
    const qn_lease_t *it = content;
    sniff_line_add(line, "batch %" PRIu64, it->batch);
    for (uint32_t i = 0; i < it->items_count && i < 4; i++)
        sniff_line_add(line, "%s%s %" PRIu64 " to %u tokens", i ? ", " : ": ", it->items[i].open ? "open" : "extend",
                       it->items[i].sequence, it->items[i].tokens);
    if (it->items_count > 4) sniff_line_add(line, ", and %u more", it->items_count - 4);
}

static void sum_grant(sniff_line_t *line, const void *content)
{
    const qn_grant_t *it = content;
    sniff_line_add(line, "batch %" PRIu64, it->batch);
    for (uint32_t i = 0; i < it->items_count && i < 4; i++) {
        const qn_grant_item_t *item = &it->items[i];
        sniff_line_add(line, "%s%" PRIu64 " ", i ? ", " : ": ", item->sequence);
        if (item->outcome == QN_GRANT_OUTCOME_GRANTED)
            add_count(line, item->block_count, "block");
        else
            sniff_line_add(line, "%s", enum_name(&qn_grant_outcome_enum, item->outcome));
        if (item->cached_tokens) sniff_line_add(line, " (%u tokens cached)", item->cached_tokens);
    }
    if (it->items_count > 4) sniff_line_add(line, ", and %u more", it->items_count - 4);
    sniff_line_add(line, "; %u free, %u cached", it->free_blocks, it->cached_blocks);
}

static void sum_commit(sniff_line_t *line, const void *content)
{
    const qn_commit_t *it = content;
    for (uint32_t i = 0; i < it->items_count && i < 4; i++)
        sniff_line_add(line, "%s%" PRIu64 " tokens %u to %" PRIu64, i ? ", " : "", it->items[i].sequence,
                       it->items[i].position, (uint64_t)it->items[i].position + it->items[i].ids_count);
    if (it->items_count > 4) sniff_line_add(line, ", and %u more", it->items_count - 4);
}

static void sum_release(sniff_line_t *line, const void *content)
{
    const qn_release_t *it = content;
    add_count(line, it->sequences_count, "sequence");
}

static void add_region(sniff_line_t *line, const qn_region_t *region)
{
    if (!region) return;
    sniff_line_add_text(line, region->name, QN_NAME_MAX);
    sniff_line_add(line, " region %" PRIu64 ", %s, %s, %" PRIu64 " bytes", region->id,
                   enum_name(&qn_region_kind_enum, region->kind), enum_name(&qn_share_enum, region->share),
                   region->bytes);
}

static void sum_reserve(sniff_line_t *line, const void *content)
{
    const qn_reserve_t *it = content;
    sniff_line_add_text(line, it->name, QN_NAME_MAX);
    sniff_line_add(line, " %s, %" PRIu64 " bytes", enum_name(&qn_region_kind_enum, it->kind), it->bytes);
}

static void sum_reserved(sniff_line_t *line, const void *content)
{
    add_region(line, ((const qn_reserved_t *)content)->region);
}

static void sum_describe(sniff_line_t *line, const void *content)
{
    const qn_describe_t *it = content;
    sniff_line_add(line, it->want_tensors ? "with tensors" : "");
}

static void sum_model_description(sniff_line_t *line, const void *content)
{
    const qn_model_description_t *it = content;
    sniff_line_add_text(line, it->model, TEXT_SHOWN);
    sniff_line_add(line, ", %.*s, vocabulary %u, at most %u tokens, %u blocks of %u, %u tensors",
                   (int)(it->architecture.bytes < 64 ? it->architecture.bytes : 64),
                   it->architecture.data ? it->architecture.data : "", it->vocab_size, it->max_model_len,
                   it->block_count, it->block_tokens, it->tensors_count);
}

static void sum_cache_stats(sniff_line_t *line, const void *content)
{
    const qn_cache_stats_t *it = content;
    sniff_line_add(line, "%u of %u blocks used, %u cached, %u free, hits %" PRIu64 " of %" PRIu64 " tokens",
                   it->used_blocks, it->total_blocks, it->cached_blocks, it->free_blocks, it->hit_tokens,
                   it->lookup_tokens);
}

static void sum_flushed(sniff_line_t *line, const void *content)
{
    add_count(line, ((const qn_flushed_t *)content)->freed_blocks, "block");
}

static void sum_nothing(sniff_line_t *line, const void *content)
{
    (void)line;
    (void)content;
}

static void (*const summaries[QN_MESSAGE_COUNT])(sniff_line_t *line, const void *content) = {
    [QN_MESSAGE_BYE] = sum_bye,
    [QN_MESSAGE_CACHE_QUERY] = sum_nothing,
    [QN_MESSAGE_CACHE_STATS] = sum_cache_stats,
    [QN_MESSAGE_CANCEL] = sum_cancel,
    [QN_MESSAGE_COMMIT] = sum_commit,
    [QN_MESSAGE_CREDIT] = sum_credit,
    [QN_MESSAGE_DESCRIBE] = sum_describe,
    [QN_MESSAGE_DETOKENIZE] = sum_detokenize,
    [QN_MESSAGE_DETOKENIZED] = sum_detokenized,
    [QN_MESSAGE_ENCODE] = sum_encode,
    [QN_MESSAGE_FLUSH_CACHE] = sum_nothing,
    [QN_MESSAGE_FLUSHED] = sum_flushed,
    [QN_MESSAGE_GRANT] = sum_grant,
    [QN_MESSAGE_HEARTBEAT] = sum_heartbeat,
    [QN_MESSAGE_HELLO] = sum_hello,
    [QN_MESSAGE_LEASE] = sum_lease,
    [QN_MESSAGE_MODEL_DESCRIPTION] = sum_model_description,
    [QN_MESSAGE_PROMPT_LOGPROBS] = sum_prompt_logprobs,
    [QN_MESSAGE_REFUSAL] = sum_refusal,
    [QN_MESSAGE_RELEASE] = sum_release,
    [QN_MESSAGE_RESERVE] = sum_reserve,
    [QN_MESSAGE_RESERVED] = sum_reserved,
    [QN_MESSAGE_STEP_PLAN] = sum_step_plan,
    [QN_MESSAGE_STEP_RESULT] = sum_step_result,
    [QN_MESSAGE_SUBMIT] = sum_submit,
    [QN_MESSAGE_TEXT_DELTA] = sum_text_delta,
    [QN_MESSAGE_TOKEN_BATCH] = sum_token_batch,
    [QN_MESSAGE_TOKENIZE] = sum_tokenize,
    [QN_MESSAGE_TOKENIZED] = sum_tokenized,
};

/* For types that have no row yet: how many of what is in it. */
static void sum_generic(sniff_line_t *line, const qn_capture_message_t *message)
{
    const qn_wire_type_t *type = qn_wire_type(message->type);
    for (unsigned i = 1; i < type->field_count; i++) {
        const qn_wire_field_t *field = &type->fields[i];
        uint64_t number = 0;
        const uint8_t *base = message->content;
        if (field->vector)
            memcpy(&number, base + field->count_offset, sizeof(uint32_t));
        else if (field->kind <= QN_WIRE_U64)
            memcpy(&number, base + field->offset, field->bytes);
        else
            continue;
        sniff_line_add(line, "%s%s%s %" PRIu64, line->bytes ? " " : "", field->name, field->vector ? ".length" : "",
                       number);
    }
}

void sniff_summary_add(sniff_line_t *line, const qn_capture_message_t *message)
{
    if (summaries[message->type])
        summaries[message->type](line, message->content);
    else
        sum_generic(line, message);
}
