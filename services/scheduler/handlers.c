/* What is this?      The translation between messages and the scheduler's nouns; the only files that know both are this
 *                    one (in) and outgoing.c (out).
 * State owned:       none; the service's.
 * Must never:        decide: events are recorded, service_tick decides.
 * Read next:         scheduler.h, outgoing.c, schemas/submit.fbs, schemas/step_result.fbs. */
#include "services/scheduler/handlers.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/failpoint.h"
#include "common/name_hash.h"
#include "common/watch/log.h"

static void count(scheduler_service_t *service, unsigned row, uint64_t amount)
{
    qn_stats_add(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, row, amount);
}

static void observe(scheduler_service_t *service, unsigned row, uint64_t ns)
{
    qn_stats_observe_ns(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, row, ns);
}

/* ---- requests ---- */

static request_sampling_t read_sampling(const qn_sampling_t *sampling)
{
    return (request_sampling_t){
        .seed = sampling->seed,
        .temperature = sampling->temperature,
        .top_p = sampling->top_p,
        .min_p = sampling->min_p,
        .repetition_penalty = sampling->repetition_penalty,
        .presence_penalty = sampling->presence_penalty,
        .frequency_penalty = sampling->frequency_penalty,
        .top_k = sampling->top_k,
        .max_tokens = sampling->max_tokens,
        .min_tokens = sampling->min_tokens,
        .ignore_eos = sampling->ignore_eos,
        .logprobs = sampling->logprobs,
        .prompt_logprobs = sampling->prompt_logprobs,
        .top_logprobs = sampling->top_logprobs,
    };
}

static request_timeline_t read_timeline(const qn_timeline_t *timeline)
{
    return (request_timeline_t){
        .received_ns = timeline->received_ns,
        .encode_begin_ns = timeline->encode_begin_ns,
        .submitted_ns = timeline->submitted_ns,
    };
}

/* Relative to when the frontend received it; with another host's clock in received_ns, to now. */
static uint64_t deadline_of(const qn_submit_t *submit, uint64_t now_ns)
{
    uint64_t since_ns = submit->timeline.received_ns;
    if (submit->deadline_ms == 0) return 0;
    if (since_ns == 0 || since_ns > now_ns) since_ns = now_ns;
    return since_ns + submit->deadline_ms * 1000000ull;
}

static request_client_t read_client(qn_peer_t peer)
{
    return (request_client_t){.epoch = peer.epoch, .service = peer.service, .instance = peer.instance};
}

static const request_bias_t *read_bias(scheduler_service_t *service, const qn_logit_bias_t *bias, uint32_t bias_count)
{
    request_bias_t *copy = qn_arena_zalloc(&service->arena, bias_count, sizeof *copy);
    for (uint32_t i = 0; i < bias_count; i++)
        copy[i] = (request_bias_t){.id = bias[i].id, .bias = bias[i].bias};
    return copy;
}

static qn_probe_t read_probe(const qn_submit_t *submit)
{
    return (qn_probe_t){.masks = submit->masks,
                        .mask_count = submit->masks_count,
                        .taps = submit->taps,
                        .tap_count = submit->taps_count,
                        .values = submit->tap_values,
                        .value_count = submit->tap_values_count,
                        .workspace = submit->workspace,
                        .workspace_epoch = submit->workspace_epoch,
                        .workspace_until_ns = submit->workspace_until_ns};
}

static void refuse(scheduler_service_t *service, qn_peer_t to, uint64_t request, const admission_refusal_t *refusal)
{
    qn_refusal_t message = {
        .head.request = request,
        .status = refusal->status,
        .retry_after_ms = refusal->retry_after_ms,
        .refused_type = qn_text("QSUB"), /* also when it is refused later than it came */
        .param = qn_text(refusal->param),
        .text = qn_text(refusal->text),
    };
    count(service, SCHEDULER_STAT_REFUSED, 1);
    if (qn_daemon_send_refusal(service->daemon, to, &message) == QN_SEND_FULL)
        qn_log_warning("request %" PRIu64 " was refused and its tokenizer takes nothing: %s", request, refusal->text);
}

/* Made a scheduler crash twice before it was in the ledger, or was ended and has left it. */
static bool is_quarantined(const scheduler_service_t *service, uint64_t request)
{
    return scheduler_is_quarantined(service->scheduler, request) &&
           ledger_find(scheduler_ledger(service->scheduler), request) == NULL;
}

static void refuse_quarantined(scheduler_service_t *service, qn_peer_t to, uint64_t request)
{
    admission_refusal_t refusal;
    admission_refuse(&refusal, 500, 0, NULL, SCHEDULER_QUARANTINED_TEXT);
    refuse(service, to, request, &refusal);
}

/* Bad words, each with a marked end and no longer than a slot looks back; the tokenizer makes no others. */
static bool are_sequences(const uint32_t *ids, uint32_t count)
{
    uint32_t tokens = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (++tokens > QN_BAD_SEQUENCE_TOKENS_MAX) return false;
        if (ids[i] & QN_SEQUENCE_END) tokens = 0;
    }
    return tokens == 0;
}

static void take_submit(scheduler_service_t *service, qn_peer_t from, const qn_submit_t *submit)
{
    admission_refusal_t refusal;
    if (submit->prompt_ids_count == 0 || submit->head.request == 0) {
        admission_refuse(&refusal, 400, 0, "prompt", "the prompt has no tokens, or the request no id");
        refuse(service, from, submit->head.request, &refusal);
        return;
    }
    if (submit->stop_ids_count > QN_STOP_IDS_MAX || submit->bias_count > QN_LOGIT_BIAS_MAX) {
        bool stop = submit->stop_ids_count > QN_STOP_IDS_MAX;
        admission_refuse(&refusal, 400, 0, stop ? "stop_token_ids" : "logit_bias", "%u entries; %d are possible",
                         stop ? submit->stop_ids_count : submit->bias_count,
                         stop ? QN_STOP_IDS_MAX : QN_LOGIT_BIAS_MAX);
        refuse(service, from, submit->head.request, &refusal);
        return;
    }
    if (!are_sequences(submit->bad_ids, submit->bad_ids_count)) {
        admission_refuse(&refusal, 400, 0, "bad_words", "a word has more than %d tokens", QN_BAD_SEQUENCE_TOKENS_MAX);
        refuse(service, from, submit->head.request, &refusal);
        return;
    }
    if (submit->adapter.bytes > 0) {
        admission_refuse(&refusal, 400, 0, "adapter",
                         "there is no adapter \"%.128s\": this engine loads none yet; leave the field out",
                         submit->adapter.data);
        refuse(service, from, submit->head.request, &refusal);
        return;
    }
    bool quarantined = is_quarantined(service, submit->head.request);
    if (quarantined && !scheduler_record_once(service->scheduler, submit->head.request)) {
        refuse_quarantined(service, from, submit->head.request);
        return;
    }
    if (!quarantined && QN_FAILPOINT_IDS(QN_FAILPOINT_SCHEDULER_SUBMIT, submit->prompt_ids, submit->prompt_ids_count))
        qn_daemon_fail(service->daemon, qn_fail(QN_ERR_INVALID, "a failpoint failed a Submit"));
    qn_arena_reset(&service->arena);
    ledger_submission_t submission = {
        .id = submit->head.request,
        .client = read_client(from),
        .priority = submit->priority,
        .user = qn_name_hash(submit->user),
        .user_name = submit->user.data,
        .deadline_ns = deadline_of(submit, qn_clock_now_ns()),
        .model = qn_name_hash(submit->model),
        .sampling = read_sampling(&submit->sampling),
        .timeline = read_timeline(&submit->timeline),
        .prompt_ids = submit->prompt_ids,
        .prompt_tokens = submit->prompt_ids_count,
        .stop_ids = submit->stop_ids,
        .stop_count = submit->stop_ids_count,
        .bias = read_bias(service, submit->bias, submit->bias_count),
        .bias_count = submit->bias_count,
        .allow_only = submit->allow_only,
        .logprob_ids = submit->logprob_ids,
        .logprob_id_count = submit->logprob_ids_count,
        .bad_ids = submit->bad_ids,
        .bad_id_count = submit->bad_ids_count,
        .probe = read_probe(submit),
    };
    if (!submit->own_masks && submission.probe.mask_count == 0) {
        submission.probe.masks = service->mask.rules;
        submission.probe.mask_count = service->mask.count;
    }
    /* Values that no tap takes are dropped: the ledger keeps what counts. */
    if (!submission.probe.tap_count) submission.probe.value_count = 0;
    submission.salt = qn_probe_salt(&submission.probe, qn_name_hash(submit->cache_salt));
    if (quarantined) {
        refuse_quarantined(service, from, submission.id);
        scheduler_keep_submission(service, &submission);
        return;
    }
    switch (scheduler_submit(service->scheduler, &submission, qn_clock_now_ns(), &refusal)) {
    case SCHEDULER_ACCEPTED:
        count(service, SCHEDULER_STAT_SUBMITTED, 1);
        count(service, SCHEDULER_STAT_PROMPT_TOKENS, submission.prompt_tokens);
        break;
    case SCHEDULER_RESUMED: break;
    case SCHEDULER_REFUSED: refuse(service, from, submission.id, &refusal); break;
    }
}

static void handle_submit(void *state, qn_peer_t from, const void *message)
{
    scheduler_service_t *service = state;
    const qn_submit_t *submit = message;
    scheduler_take_in_hand(service->scheduler, submit->head.request);
    take_submit(service, from, submit);
    scheduler_take_in_hand(service->scheduler, 0);
}

static void handle_cancel(void *state, qn_peer_t from, const void *message)
{
    scheduler_service_t *service = state;
    const qn_cancel_t *cancel = message;
    (void)from;
    scheduler_take_in_hand(service->scheduler, cancel->head.request);
    scheduler_cancel(service->scheduler, cancel->head.request,
                     cancel->reason == QN_CANCEL_REASON_STOP_STRING ? REQUEST_STOP : REQUEST_CANCELLED);
    scheduler_take_in_hand(service->scheduler, 0);
}

static void handle_replay_complete(void *state, qn_peer_t from, const void *message)
{
    scheduler_service_t *service = state;
    (void)message;
    if (from.service == QN_SERVICE_TOKENIZER) scheduler_client_replayed(service->scheduler, read_client(from));
}

/* ---- memory ---- */

/* A peer's bytes are wrong: counted and said; the caller begins a new session. */
static void fault(scheduler_service_t *service, const char *peer)
{
    count(service, SCHEDULER_STAT_PEER_FAULTS, 1);
    qn_log_error("%s is not to be believed: %s", peer, qn_err_text());
}

static void handle_model(void *state, qn_peer_t from, const void *message)
{
    scheduler_service_t *service = state;
    const qn_model_description_t *description = message;
    if (!qn_peer_equal(from, service->memory)) return;
    scheduler_model_t model = {
        .vocab_size = description->vocab_size,
        .max_model_len = description->max_model_len,
        .block_tokens = description->block_tokens,
        .block_count = description->block_count,
        .probes = {.layers = description->layers,
                   .heads = description->heads,
                   .kv_heads = description->kv_heads,
                   .head_dim = description->head_dim,
                   .hidden = description->hidden,
                   .vocab = description->vocab_size},
    };
    snprintf(model.name, sizeof model.name, "%s", description->model.data != NULL ? description->model.data : "");
    service->probes = model.probes;
    for (; model.eos_count < description->eos_ids_count && model.eos_count < PLANNER_EOS_MAX; model.eos_count++)
        model.eos_ids[model.eos_count] = description->eos_ids[model.eos_count];
    uint64_t pool_tokens = (uint64_t)model.block_count * model.block_tokens;
    if (pool_tokens < model.max_model_len)
        qn_log_warning("the KV cache holds %" PRIu64 " tokens, less than the model's %" PRIu32
                       ": longer requests are clipped or refused; raise memory.kv_bytes",
                       pool_tokens, model.max_model_len);
    qn_err_t err = scheduler_memory_up(service->scheduler, &model);
    if (err == QN_ERR_PEER)
        fault(service, "memory"); /* no request runs until it describes another model */
    else if (err < 0)
        qn_daemon_fail(service->daemon, err);
}

/* Blocks outside the message are none: the grant will not fit its lease. */
static void read_grant(const qn_grant_t *grant, uint32_t at, batch_grant_t *ret_grant)
{
    const qn_grant_item_t *item = &grant->items[at];
    bool inside =
        item->block_offset <= grant->blocks_count && item->block_count <= grant->blocks_count - item->block_offset;
    *ret_grant = (batch_grant_t){
        .lease_batch = grant->batch,
        .sequence = item->sequence,
        .first_block = item->first_block,
        .block_count = item->block_count,
        .cached_tokens = item->cached_tokens,
        .blocks = item->block_count > 0 && inside ? grant->blocks + item->block_offset : NULL,
        .outcome = (batch_grant_outcome_t)item->outcome,
    };
    for (uint32_t i = 0; i < grant->copies_count && item->cached_tokens > 0; i++)
        if (grant->copies[i].sequence == item->sequence) {
            ret_grant->copies = true;
            ret_grant->copy_from = grant->copies[i].from;
        }
}

static void handle_grant(void *state, qn_peer_t from, const void *message)
{
    scheduler_service_t *service = state;
    const qn_grant_t *grant = message;
    if (!qn_peer_equal(from, service->memory)) return;
    qn_arena_reset(&service->arena);
    batch_grant_t *grants = qn_arena_zalloc(&service->arena, grant->items_count, sizeof *grants);
    for (uint32_t i = 0; i < grant->items_count; i++)
        read_grant(grant, i, &grants[i]);
    if (scheduler_grant(service->scheduler, grants, grant->items_count, grant->free_blocks + grant->cached_blocks) > 0)
        fault(service, "memory");
}

static void handle_commit_query(void *state, qn_peer_t from, const void *message)
{
    scheduler_service_t *service = state;
    const qn_commit_query_t *query = message;
    if (!qn_peer_equal(from, service->memory)) return;
    qn_arena_reset(&service->arena);
    qn_err_t err = scheduler_send_written(service, from, query->head.request, query->sequence);
    if (err < 0) qn_daemon_fail(service->daemon, err);
}

static void handle_prefix_hits(void *state, qn_peer_t from, const void *message)
{
    scheduler_service_t *service = state;
    const qn_prefix_hits_t *answer = message;
    plan_prefix_hit_t hits[QN_PREFIX_HITS_ITEMS_MAX];
    if (!qn_peer_equal(from, service->memory)) return;
    for (uint32_t i = 0; i < answer->items_count; i++)
        hits[i] = (plan_prefix_hit_t){.sequence = answer->items[i].sequence, .tokens = answer->items[i].tokens};
    scheduler_prefix_hits(service->scheduler, answer->batch, hits, answer->items_count);
}

/* ---- compute ---- */

static const batch_token_t *read_tokens(scheduler_service_t *service, const qn_step_result_t *result)
{
    batch_token_t *tokens = qn_arena_zalloc(&service->arena, result->tokens_count, sizeof *tokens);
    for (uint32_t i = 0; i < result->tokens_count; i++) {
        const qn_step_token_t *token = &result->tokens[i];
        tokens[i] = (batch_token_t){.request = token->request,
                                    .slot = token->slot,
                                    .position = token->position,
                                    .id = token->id,
                                    .logprob = token->logprob,
                                    .top_count = token->top_count,
                                    .stopped = token->stopped,
                                    .masked = token->masked};
    }
    return tokens;
}

static const batch_prompt_token_t *read_prompt(scheduler_service_t *service, const qn_step_result_t *result)
{
    batch_prompt_token_t *prompt = qn_arena_zalloc(&service->arena, result->prompt_count, sizeof *prompt);
    for (uint32_t i = 0; i < result->prompt_count; i++) {
        const qn_prompt_token_t *token = &result->prompt[i];
        prompt[i] = (batch_prompt_token_t){.request = token->request,
                                           .position = token->position,
                                           .id = token->id,
                                           .logprob = token->logprob,
                                           .top_count = token->top_count};
    }
    return prompt;
}

static const request_alternative_t *read_top(scheduler_service_t *service, const qn_step_result_t *result)
{
    request_alternative_t *top = qn_arena_zalloc(&service->arena, result->top_count, sizeof *top);
    for (uint32_t i = 0; i < result->top_count; i++)
        top[i] = (request_alternative_t){.id = result->top[i].id, .logprob = result->top[i].logprob};
    return top;
}

/* A thousand steps count, older ones less and less. */
static void learn_step(step_model_t *steps, double tokens, double ns)
{
    if (steps->count >= 1000) {
        steps->count /= 2;
        steps->tokens /= 2;
        steps->ns /= 2;
        steps->tokens_tokens /= 2;
        steps->tokens_ns /= 2;
    }
    steps->count++;
    steps->tokens += tokens;
    steps->ns += ns;
    steps->tokens_tokens += tokens * tokens;
    steps->tokens_ns += tokens * ns;
}

/* Least squares; steps of one size, or a line that falls, give a mean time and no slope. */
void scheduler_step_model(const scheduler_service_t *service, double *ret_step_us, double *ret_token_us)
{
    const step_model_t *steps = &service->steps;
    *ret_step_us = 1000;
    *ret_token_us = 100;
    if (steps->count == 0) return;
    double spread = steps->count * steps->tokens_tokens - steps->tokens * steps->tokens;
    double slope = spread > 0 ? (steps->count * steps->tokens_ns - steps->tokens * steps->ns) / spread : 0;
    double base = (steps->ns - slope * steps->tokens) / steps->count;
    if (slope < 0 || base < 0) { /* all of it by the token, or all of it by the step */
        slope = slope < 0 ? 0 : steps->ns / steps->tokens;
        base = slope > 0 ? 0 : steps->ns / steps->count;
    }
    *ret_step_us = base / 1e3;
    *ret_token_us = slope / 1e3;
}

/* How long compute stood still between two steps while there was something to run. */
static void measure_step(scheduler_service_t *service, const batch_step_t *step, const qn_step_result_t *result,
                         uint64_t now_ns)
{
    history_result(service->history, step->step, result->begin_ns, result->end_ns, now_ns);
    observe(service, SCHEDULER_STAT_STEP_ROUND_TRIP, now_ns - step->sent_ns);
    observe(service, SCHEDULER_STAT_STEP_COMPUTE, result->end_ns - result->begin_ns);
    qn_window_observe(&service->windows.round_trips, now_ns, now_ns - step->sent_ns);
    qn_window_observe(&service->windows.steps, now_ns, result->end_ns - result->begin_ns);
    learn_step(&service->steps, step->token_count, (double)(result->end_ns - result->begin_ns));
    if (service->last_end_ns != 0 && result->begin_ns >= service->last_end_ns) {
        observe(service, SCHEDULER_STAT_IDLE_GAP, result->begin_ns - service->last_end_ns);
        qn_window_observe(&service->windows.idle, now_ns, result->begin_ns - service->last_end_ns);
    }
    service->last_end_ns = scheduler_batch(service->scheduler)->running_count > 0 ? result->end_ns : 0;
}

/* What compute said does not fit what it was sent (qn_err_text() says how): it begins anew, with empty slots. */
static void fail_session(scheduler_service_t *service)
{
    fault(service, "compute");
    scheduler_compute_failed(service->scheduler);
}

static void handle_step_result(void *state, qn_peer_t from, const void *message)
{
    scheduler_service_t *service = state;
    const qn_step_result_t *result = message;
    bool current = result->session == scheduler_session(service->scheduler);
    if (!current || !qn_peer_equal(from, service->compute)) return;
    uint64_t now_ns = qn_clock_now_ns();
    qn_arena_reset(&service->arena);
    batch_result_t translated = {
        .step = result->step,
        .begin_ns = result->begin_ns,
        .end_ns = result->end_ns,
        .tokens = read_tokens(service, result),
        .prompt = read_prompt(service, result),
        .top = read_top(service, result),
        .token_count = result->tokens_count,
        .prompt_count = result->prompt_count,
        .top_count = result->top_count,
    };
    const batch_step_t *step;
    for (uint32_t i = 0; i < result->reads_count; i++)
        scheduler_count_reads(service->scheduler, &result->reads[i]);
    qn_err_t err = scheduler_result(service->scheduler, &translated, now_ns, &step);
    if (err == QN_OK && QN_FAILPOINT(QN_FAILPOINT_SCHEDULER_AFTER_RESULT))
        err = qn_fail(QN_ERR_INVALID, "a failpoint failed step %" PRIu64, result->step);
    if (err == QN_ERR_PEER)
        fail_session(service);
    else if (err < 0)
        qn_daemon_fail(service->daemon, err);
    else if (step->step != 0)
        measure_step(service, step, result, now_ns);
    if (err == QN_OK) service->renewed = false;
}

static void handle_step_status(void *state, qn_peer_t from, const void *message)
{
    scheduler_service_t *service = state;
    const qn_step_status_t *status = message;
    if (!qn_peer_equal(from, service->compute)) return;
    scheduler_step_status(service->scheduler, status->session, status->step, status->held, qn_clock_now_ns());
}

static bool is_text(qn_text_t text, const char *wanted)
{
    return text.bytes == strlen(wanted) && memcmp(text.data, wanted, text.bytes) == 0;
}

/* A plan or a lease that is refused is either a race with the peer's own restart (503) or with plans it has not dropped
 * yet (429), or does not fit what the peer holds: then a new session begins. Memory answers what it grants and refuses in
 * the Grant. */
static void handle_refusal(void *state, qn_peer_t from, const void *message)
{
    scheduler_service_t *service = state;
    const qn_refusal_t *refusal = message;
    int bytes = (int)refusal->text.bytes;
    const char *text = refusal->text.bytes > 0 ? refusal->text.data : "";
    bool of_ours = qn_peer_equal(from, service->memory) || qn_peer_equal(from, service->compute);
    if (!of_ours || refusal->status == 503 || refusal->status == 429) {
        qn_log_warning("refused by a peer: %.*s", bytes, text);
        if (!of_ours || !qn_peer_equal(from, service->compute)) return;
        if (is_text(refusal->param, "session")) /* it is ready, but has another session open, or none */
            scheduler_renew(service->scheduler);
        else
            scheduler_doubt_compute(service);
        return;
    }
    bool by_memory = qn_peer_equal(from, service->memory);
    qn_fail(QN_ERR_PEER, "%s refused what the scheduler sent: %.*s", by_memory ? "memory" : "compute", bytes, text);
    if (by_memory) {
        fault(service, "memory");
        scheduler_memory_failed(service->scheduler);
    } else {
        fail_session(service);
    }
}

const qn_handler_t scheduler_handlers[] = {
    {QN_MESSAGE_SUBMIT, handle_submit},
    {QN_MESSAGE_CANCEL, handle_cancel},
    {QN_MESSAGE_REPLAY_COMPLETE, handle_replay_complete},
    {QN_MESSAGE_MODEL_DESCRIPTION, handle_model},
    {QN_MESSAGE_GRANT, handle_grant},
    {QN_MESSAGE_COMMIT_QUERY, handle_commit_query},
    {QN_MESSAGE_STEP_RESULT, handle_step_result},
    {QN_MESSAGE_STEP_STATUS, handle_step_status},
    {QN_MESSAGE_REFUSAL, handle_refusal},
    {QN_MESSAGE_PREFIX_HITS, handle_prefix_hits},
    {QN_MESSAGE_NONE, NULL},
};

qn_err_t scheduler_send_refusals(scheduler_service_t *service)
{
    uint64_t request;
    request_client_t client;
    admission_refusal_t refusal;
    while (scheduler_next_refusal(service->scheduler, &request, &client, &refusal)) {
        qn_peer_t to = {.epoch = client.epoch, .service = client.service, .instance = client.instance};
        refuse(service, to, request, &refusal);
    }
    return QN_OK;
}
