/* What is this?      Research mode's metadata.
 * State owned:       none.
 * Must never:        be called in production mode.
 * Read next:         schemas/common.fbs, Timeline. */
#include "services/frontend/research.h"

#include <stdio.h>

#include "services/frontend/reply/reply_parts.h"

/* The hop that ends at each stage. */
static const struct {
    const char *from, *to;
} hops[STAGE_COUNT] = {
    [STAGE_ENCODE_BEGIN] = {"frontend", "tokenizer"}, [STAGE_SUBMITTED] = {"tokenizer", "tokenizer"},
    [STAGE_QUEUED] = {"tokenizer", "scheduler"},      [STAGE_PLANNED] = {"scheduler", "scheduler"},
    [STAGE_EXECUTED] = {"scheduler", "compute"},      [STAGE_COMPUTED] = {"compute", "compute"},
    [STAGE_RESULTED] = {"compute", "scheduler"},      [STAGE_DETOKENIZED] = {"scheduler", "tokenizer"},
};

static void put_hop(json_writer_t *writer, const char *from, const char *to, uint64_t begin_ns, uint64_t end_ns)
{
    json_put_open(writer, '{');
    json_put_member_string(writer, "from", from);
    json_put_member_string(writer, "to", to);
    json_put_key(writer, "us");
    json_put_number(writer, ((double)end_ns - (double)begin_ns) / 1e3);
    json_put_close(writer, '}');
}

static void put_hops(json_writer_t *writer, const exchange_t *exchange)
{
    const uint64_t *stages = exchange->choices[0].stages;
    uint64_t last_ns = stages[STAGE_RECEIVED];
    for (int i = STAGE_ENCODE_BEGIN; i < STAGE_COUNT && last_ns; i++) {
        if (stages[i] == 0) continue;
        put_hop(writer, hops[i].from, hops[i].to, last_ns, stages[i]);
        last_ns = stages[i];
    }
    if (stages[STAGE_DETOKENIZED] && exchange->first_token_ns)
        put_hop(writer, "tokenizer", "frontend", last_ns, exchange->first_token_ns);
}

static void put_reason(json_writer_t *writer, const research_t *research)
{
    const exchange_t *exchange = research->exchange;
    json_put_key(writer, "reason");
    if (research->reason || !exchange || exchange->choice_count == 0 || !exchange->choices[0].ended) {
        json_put_string(writer, research->reason);
        return;
    }
    char text[QN_REASON_MAX];
    const choice_t *first = &exchange->choices[0];
    snprintf(text, sizeof text, "sequence 1 of %u: %s after %u tokens; %u of %u prompt tokens were cached",
             exchange->choice_count, reply_finish(first), reply_generated_tokens(first), first->end.cached_tokens,
             first->end.prompt_tokens);
    json_put_string(writer, text);
}

void research_write(const research_t *research, json_writer_t *writer)
{
    json_put_open(writer, '{');
    json_put_member_string(writer, "service", "frontend");
    json_put_member_string(writer, "method", research->method);
    json_put_key(writer, "execution_time_us");
    json_put_number(writer, (double)(research->now_ns - research->received_ns) / 1e3);
    json_put_key(writer, "hops");
    json_put_open(writer, '[');
    if (research->exchange && research->exchange->choice_count) put_hops(writer, research->exchange);
    json_put_close(writer, ']');
    json_put_member_unsigned(writer, "epoch", research->epoch);
    put_reason(writer, research);
    json_put_close(writer, '}');
}
