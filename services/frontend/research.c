/* What is this?      Research mode's metadata.
 * State owned:       none.
 * Must never:        be called in production mode.
 * Read next:         schemas/common.fbs, Timeline. */
#include "services/frontend/research.h"

#include <stdio.h>

#include "common/build.h"
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
    json_put_key(writer, "algorithm_reasoning");
    json_put_open(writer, '[');
    if (research->reason || !exchange || exchange->choice_count == 0 || !exchange->choices[0].ended) {
        if (research->reason) json_put_string(writer, research->reason);
        json_put_close(writer, ']');
        return;
    }
    char text[QN_REASON_MAX];
    const choice_t *first = &exchange->choices[0];
    snprintf(text, sizeof text, "sequence 1 of %u: %s after %u tokens; %u of %u prompt tokens were cached",
             exchange->choice_count, reply_finish(first), reply_generated_tokens(first), first->end.cached_tokens,
             first->end.prompt_tokens);
    json_put_string(writer, text);
    json_put_close(writer, ']');
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
    json_put_member_string(writer, "build", qn_build_id());
    put_reason(writer, research);
    json_put_close(writer, '}');
}

static double us_between(uint64_t begin_ns, uint64_t end_ns) { return ((double)end_ns - (double)begin_ns) / 1e3; }

void research_write_call(const research_call_t *call, json_writer_t *writer)
{
    uint64_t end_ns = call->local ? call->now_ns : call->replied_ns;
    json_put_open(writer, '{');
    json_put_member_string(writer, "service", call->service);
    json_put_member_string(writer, "method", call->method);
    json_put_key(writer, "execution_time_us");
    json_put_number(writer, us_between(call->began_ns, end_ns));
    json_put_key(writer, "hops");
    json_put_open(writer, '[');
    if (!call->local) {
        put_hop(writer, "frontend", call->service, call->sent_ns, call->began_ns);
        put_hop(writer, call->service, call->service, call->began_ns, end_ns);
        put_hop(writer, call->service, "frontend", end_ns, call->now_ns);
    }
    json_put_close(writer, ']');
    json_put_member_unsigned(writer, "epoch", call->epoch);
    json_put_member_string(writer, "build", call->build);
    json_put_key(writer, "algorithm_reasoning");
    json_put_open(writer, '[');
    for (uint32_t i = 0; call->reasoning && i < call->reasoning_count; i++)
        json_put_text(writer, call->reasoning[i].data, call->reasoning[i].bytes);
    json_put_close(writer, ']');
    json_put_close(writer, '}');
}
