/* What is this?      The sending half of the translation: plans, traffic and tokens become messages.
 * State owned:       none; the service's.
 * Must never:        decide what is in a message; the planner and the delivery did.
 * Read next:         handlers.c (the other direction), planner.h, delivery.h. */
#include <inttypes.h>
#include <string.h>

#include "common/clock.h"
#include "common/failpoint.h"
#include "common/watch/log.h"
#include "services/scheduler/handlers.h"

_Static_assert((int)REQUEST_UNFINISHED == QN_FINISH_NONE && (int)REQUEST_STOP == QN_FINISH_STOP &&
                   (int)REQUEST_LENGTH == QN_FINISH_LENGTH && (int)REQUEST_CANCELLED == QN_FINISH_CANCELLED &&
                   (int)REQUEST_ERROR == QN_FINISH_ERROR,
               "request_finish_t is cast to Finish");

static void count(scheduler_service_t *service, unsigned row, uint64_t amount)
{
    qn_stats_add(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, row, amount);
}

/* Memory and compute have at most a few of our messages outstanding; a full outbox means the peer is stuck. */
static qn_err_t send_to_peer(scheduler_service_t *service, qn_peer_t to, qn_message_type_t type, const void *message)
{
    qn_send_outcome_t outcome = qn_daemon_send(service->daemon, to, type, message);
    if (outcome == QN_SEND_OK || outcome == QN_SEND_GONE) return QN_OK; /* when it is gone, its event will say so */
    if (outcome == QN_SEND_INVALID) return QN_ERR_LIMIT;
    return qn_fail(QN_ERR_PEER, "a %s cannot be sent: the receiver (epoch %" PRIu32 ") takes nothing any more",
                   qn_message_name(type), to.epoch);
}

/* ---- plans ---- */

static qn_sampling_t write_sampling(const request_sampling_t *sampling)
{
    return (qn_sampling_t){
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

static const qn_slot_set_t *write_sets(scheduler_service_t *service, const plan_t *plan)
{
    qn_slot_set_t *sets = qn_arena_zalloc(&service->arena, plan->set_count, sizeof *sets);
    for (uint32_t i = 0; i < plan->set_count; i++) {
        const plan_set_t *set = &plan->sets[i];
        sets[i] = (qn_slot_set_t){.request = set->request->id,
                                  .slot = set->slot,
                                  .prompt_tokens = set->request->prompt_tokens,
                                  .stop_offset = set->stop_offset,
                                  .stop_count = set->stop_count,
                                  .bias_offset = set->bias_offset,
                                  .bias_count = set->bias_count,
                                  .history_offset = set->history_offset,
                                  .history_count = set->history_count,
                                  .sampling = write_sampling(&set->request->sampling)};
    }
    return sets;
}

static const qn_slot_block_t *write_blocks(scheduler_service_t *service, const plan_t *plan)
{
    qn_slot_block_t *blocks = qn_arena_zalloc(&service->arena, plan->block_count, sizeof *blocks);
    for (uint32_t i = 0; i < plan->block_count; i++)
        blocks[i] = (qn_slot_block_t){.slot = plan->blocks[i].slot,
                                      .index = plan->blocks[i].index,
                                      .block = plan->blocks[i].block};
    return blocks;
}

static const qn_block_copy_t *write_copies(scheduler_service_t *service, const plan_t *plan)
{
    qn_block_copy_t *copies = qn_arena_zalloc(&service->arena, plan->copy_count, sizeof *copies);
    for (uint32_t i = 0; i < plan->copy_count; i++)
        copies[i] = (qn_block_copy_t){.from = plan->copies[i].from, .to = plan->copies[i].to};
    return copies;
}

static const qn_slot_run_t *write_runs(scheduler_service_t *service, const plan_t *plan)
{
    qn_slot_run_t *runs = qn_arena_zalloc(&service->arena, plan->run_count, sizeof *runs);
    for (uint32_t i = 0; i < plan->run_count; i++)
        runs[i] = (qn_slot_run_t){.slot = plan->runs[i].slot,
                                  .position = plan->runs[i].position,
                                  .token_count = plan->runs[i].token_count,
                                  .ids_offset = plan->runs[i].ids_offset,
                                  .from_slot = plan->runs[i].from_slot,
                                  .sample = plan->runs[i].sample};
    return runs;
}

static const qn_logit_bias_t *write_bias(scheduler_service_t *service, const plan_t *plan)
{
    qn_logit_bias_t *bias = qn_arena_zalloc(&service->arena, plan->bias_count, sizeof *bias);
    for (uint32_t i = 0; i < plan->bias_count; i++)
        bias[i] = (qn_logit_bias_t){.id = plan->bias[i].id, .bias = plan->bias[i].bias};
    return bias;
}

/* Slots whose bias is all there is to choose from. */
static const uint32_t *write_allow_only(scheduler_service_t *service, const plan_t *plan, uint32_t *ret_count)
{
    uint32_t *slots = qn_arena_zalloc(&service->arena, plan->set_count, sizeof *slots);
    *ret_count = 0;
    for (uint32_t i = 0; i < plan->set_count; i++) {
        if (plan->sets[i].request->allow_only) slots[(*ret_count)++] = plan->sets[i].slot;
    }
    return slots;
}

static const qn_slot_lists_t *write_lists(scheduler_service_t *service, const plan_t *plan, uint32_t *ret_count)
{
    qn_slot_lists_t *lists = qn_arena_zalloc(&service->arena, plan->set_count, sizeof *lists);
    *ret_count = 0;
    for (uint32_t i = 0; i < plan->set_count; i++) {
        const plan_set_t *set = &plan->sets[i];
        if (set->request->logprob_id_count + set->request->bad_id_count == 0) continue;
        lists[(*ret_count)++] = (qn_slot_lists_t){.slot = set->slot,
                                                  .logprob_offset = set->logprob_offset,
                                                  .logprob_count = set->request->logprob_id_count,
                                                  .bad_offset = set->bad_offset,
                                                  .bad_count = set->request->bad_id_count};
    }
    return lists;
}

static void append(void *to, uint32_t *count, const void *from, uint32_t more, size_t bytes)
{
    if (more) memcpy((char *)to + *count * bytes, from, more * bytes);
    *count += more;
}

/* What is done beside the network for the slots that are set. */
static void write_probes(scheduler_service_t *service, const plan_t *plan, qn_step_plan_t *message)
{
    uint32_t masks_count = 0;
    for (uint32_t i = 0; i < plan->set_count; i++)
        masks_count += plan->sets[i].request->probe.mask_count;
    if (masks_count + plan->tap_count == 0) return;
    qn_slot_probe_t *probes = qn_arena_zalloc(&service->arena, plan->set_count, sizeof *probes);
    qn_mask_rule_t *masks = qn_arena_zalloc(&service->arena, masks_count + 1, sizeof *masks);
    qn_tap_point_t *taps = qn_arena_zalloc(&service->arena, plan->tap_count + 1, sizeof *taps);
    float *values = qn_arena_zalloc(&service->arena, plan->tap_value_count + 1, sizeof *values);
    *message = (qn_step_plan_t){.probes = probes, .masks = masks, .taps = taps, .tap_values = values};
    for (uint32_t i = 0; i < plan->set_count; i++) {
        const qn_probe_t *probe = &plan->sets[i].request->probe;
        if (qn_probe_is_empty(probe)) continue;
        probes[message->probes_count++] = (qn_slot_probe_t){.workspace = probe->workspace,
                                                            .workspace_until_ns = probe->workspace_until_ns,
                                                            .workspace_epoch = probe->workspace_epoch,
                                                            .slot = plan->sets[i].slot,
                                                            .mask_offset = message->masks_count,
                                                            .mask_count = probe->mask_count,
                                                            .tap_offset = message->taps_count,
                                                            .tap_count = probe->tap_count,
                                                            .value_offset = message->tap_values_count,
                                                            .value_count = probe->value_count};
        append(masks, &message->masks_count, probe->masks, probe->mask_count, sizeof *masks);
        append(taps, &message->taps_count, probe->taps, probe->tap_count, sizeof *taps);
        append(values, &message->tap_values_count, probe->values, probe->value_count, sizeof *values);
    }
}

static const qn_text_t *write_reasons(scheduler_service_t *service, const plan_t *plan)
{
    qn_text_t *reasons = qn_arena_zalloc(&service->arena, plan->reason_count, sizeof *reasons);
    for (uint32_t i = 0; i < plan->reason_count; i++)
        reasons[i] = qn_text(plan->reasons[i]);
    return reasons;
}

static qn_err_t send_plan(scheduler_service_t *service, const plan_t *plan)
{
    for (uint32_t i = 0; i < plan->reason_count; i++)
        qn_log_debug("step %" PRIu64 ": %s", plan->step, plan->reasons[i]);
    qn_arena_reset(&service->arena);
    qn_step_plan_t message = {
        .step = plan->step,
        .session = plan->session,
        .opens = plan->opens,
        .memory_epoch = service->memory.epoch,
        .retire = plan->retire,
        .retire_count = plan->retire_count,
        .sets = write_sets(service, plan),
        .sets_count = plan->set_count,
        .blocks = write_blocks(service, plan),
        .blocks_count = plan->block_count,
        .copies = write_copies(service, plan),
        .copies_count = plan->copy_count,
        .runs = write_runs(service, plan),
        .runs_count = plan->run_count,
        .ids = plan->ids,
        .ids_count = plan->id_count,
        .stop_ids = plan->stop_ids,
        .stop_ids_count = plan->stop_id_count,
        .bias = write_bias(service, plan),
        .bias_count = plan->bias_count,
        .list_ids = plan->list_ids,
        .list_ids_count = plan->list_id_count,
        .reasons = write_reasons(service, plan),
        .reasons_count = plan->reason_count,
    };
    message.allow_only = write_allow_only(service, plan, &message.allow_only_count);
    message.lists = write_lists(service, plan, &message.lists_count);
    qn_step_plan_t beside = {0};
    write_probes(service, plan, &beside);
    message.probes = beside.probes;
    message.probes_count = beside.probes_count;
    message.masks = beside.masks;
    message.masks_count = beside.masks_count;
    message.taps = beside.taps;
    message.taps_count = beside.taps_count;
    message.tap_values = beside.tap_values;
    message.tap_values_count = beside.tap_values_count;
    return send_to_peer(service, service->compute, QN_MESSAGE_STEP_PLAN, &message);
}

static void measure_plan(scheduler_service_t *service, const plan_t *plan, uint64_t now_ns)
{
    qn_stats_t *stats = qn_daemon_stats(service->daemon);
    for (uint32_t i = 0; i < plan->set_count; i++) {
        const request_timeline_t *timeline = &plan->sets[i].request->timeline;
        if (timeline->planned_ns == now_ns && timeline->queued_ns <= now_ns) {
            qn_stats_observe_ns(stats, QN_DAEMON_STATS_TABLE, SCHEDULER_STAT_QUEUE, now_ns - timeline->queued_ns);
            qn_window_observe(&service->windows.queued, now_ns, now_ns - timeline->queued_ns);
        }
    }
    count(service, SCHEDULER_STAT_STEPS, 1);
    count(service, SCHEDULER_STAT_STEP_TOKENS, plan->token_count);
}

qn_err_t scheduler_send_plans(scheduler_service_t *service, uint64_t now_ns)
{
    for (;;) {
        plan_t plan;
        bool built;
        uint64_t begin_ns = qn_clock_now_ns();
        scheduler_plan(service->scheduler, now_ns, &plan, &built);
        if (!built) return QN_OK;
        if (QN_FAILPOINT_IDS(QN_FAILPOINT_SCHEDULER_BEFORE_PLAN, plan.ids, plan.id_count))
            return qn_fail(QN_ERR_INVALID, "a failpoint failed plan %" PRIu64, plan.step);
        qn_err_t err = send_plan(service, &plan);
        if (err == QN_OK && QN_FAILPOINT_IDS(QN_FAILPOINT_SCHEDULER_AFTER_PLAN, plan.ids, plan.id_count))
            err = qn_fail(QN_ERR_INVALID, "a failpoint failed plan %" PRIu64, plan.step);
        if (err < 0) return err;
        const batch_t *batch = scheduler_batch(service->scheduler);
        history_plan(service->history, batch, &batch->steps[batch->step_count - 1]);
        measure_plan(service, &plan, now_ns);
        uint64_t took_ns = qn_clock_now_ns() - begin_ns;
        qn_stats_observe_ns(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, SCHEDULER_STAT_PLAN_BUILD,
                            took_ns);
        qn_window_observe(&service->windows.plans, now_ns, took_ns);
    }
}

qn_err_t scheduler_send_query(scheduler_service_t *service, uint64_t step)
{
    qn_step_query_t message = {.session = scheduler_session(service->scheduler), .step = step};
    return send_to_peer(service, service->compute, QN_MESSAGE_STEP_QUERY, &message);
}

/* ---- traffic with memory ---- */

static qn_err_t send_commits(scheduler_service_t *service, const plan_traffic_t *traffic)
{
    qn_arena_reset(&service->arena);
    uint32_t ids_count = 0;
    for (uint32_t i = 0; i < traffic->commit_count; i++)
        ids_count += traffic->commits[i].ids_count;
    uint32_t *ids = qn_arena_zalloc(&service->arena, ids_count, sizeof *ids);
    qn_commit_item_t *items = qn_arena_zalloc(&service->arena, traffic->commit_count, sizeof *items);
    uint32_t offset = 0;
    for (uint32_t i = 0; i < traffic->commit_count; i++) {
        const plan_commit_t *commit = &traffic->commits[i];
        items[i] = (qn_commit_item_t){.sequence = commit->sequence,
                                      .position = commit->position,
                                      .ids_offset = offset,
                                      .ids_count = commit->ids_count};
        memcpy(ids + offset, commit->ids, commit->ids_count * sizeof *ids);
        offset += commit->ids_count;
    }
    qn_commit_t message = {.items = items, .items_count = traffic->commit_count, .ids = ids, .ids_count = ids_count};
    return send_to_peer(service, service->memory, QN_MESSAGE_COMMIT, &message);
}

/* All that the sequence has written, or nothing. The batch knows nothing of it: what memory has twice it skips. */
qn_err_t scheduler_send_written(scheduler_service_t *service, qn_peer_t to, uint64_t query, uint64_t id)
{
    const batch_t *batch = scheduler_batch(service->scheduler);
    const request_t *request = ledger_find(scheduler_ledger(service->scheduler), id);
    const sequence_t *sequence = request ? &batch->sequences[request->index] : NULL;
    qn_commit_item_t item = {.sequence = id};
    qn_commit_t message = {.head.request = query, .items = &item};
    if (sequence && sequence->phase == SEQUENCE_RUNNING && batch_written(batch, request->index) > sequence->committed) {
        item.position = sequence->committed;
        item.ids_count = batch_written(batch, request->index) - sequence->committed;
        message.items_count = 1;
        message.ids = request->ids + item.position;
        message.ids_count = item.ids_count;
    }
    return send_to_peer(service, to, QN_MESSAGE_COMMIT, &message);
}

static qn_err_t send_leases(scheduler_service_t *service, const plan_traffic_t *traffic)
{
    qn_arena_reset(&service->arena);
    uint32_t ids_count = 0;
    for (uint32_t i = 0; i < traffic->lease_count; i++)
        ids_count += traffic->leases[i].ids_count;
    uint32_t *ids = qn_arena_zalloc(&service->arena, ids_count, sizeof *ids);
    qn_lease_item_t *items = qn_arena_zalloc(&service->arena, traffic->lease_count, sizeof *items);
    uint32_t offset = 0;
    for (uint32_t i = 0; i < traffic->lease_count; i++) {
        const plan_lease_t *lease = &traffic->leases[i];
        items[i] = (qn_lease_item_t){.sequence = lease->sequence,
                                     .salt = lease->salt,
                                     .tokens = lease->tokens,
                                     .ids_offset = offset,
                                     .ids_count = lease->ids_count,
                                     .open = lease->open};
        if (lease->ids_count > 0) memcpy(ids + offset, lease->ids, lease->ids_count * sizeof *ids);
        offset += lease->ids_count;
    }
    qn_lease_t message = {.batch = traffic->lease_batch,
                          .items = items,
                          .items_count = traffic->lease_count,
                          .ids = ids,
                          .ids_count = ids_count};
    return send_to_peer(service, service->memory, QN_MESSAGE_LEASE, &message);
}

static qn_err_t send_lookups(scheduler_service_t *service, const plan_traffic_t *traffic)
{
    qn_arena_reset(&service->arena);
    uint32_t ids_count = 0;
    for (uint32_t i = 0; i < traffic->lookup_count; i++)
        ids_count += traffic->lookups[i].ids_count;
    uint32_t *ids = qn_arena_zalloc(&service->arena, ids_count, sizeof *ids);
    qn_prefix_query_item_t *items = qn_arena_zalloc(&service->arena, traffic->lookup_count, sizeof *items);
    uint32_t offset = 0;
    for (uint32_t i = 0; i < traffic->lookup_count; i++) {
        const plan_lookup_t *lookup = &traffic->lookups[i];
        items[i] = (qn_prefix_query_item_t){.sequence = lookup->sequence,
                                            .salt = lookup->salt,
                                            .ids_offset = offset,
                                            .ids_count = lookup->ids_count};
        memcpy(ids + offset, lookup->ids, lookup->ids_count * sizeof *ids);
        offset += lookup->ids_count;
    }
    qn_prefix_query_t message = {.batch = traffic->lookup_batch,
                                 .items = items,
                                 .items_count = traffic->lookup_count,
                                 .ids = ids,
                                 .ids_count = ids_count};
    return send_to_peer(service, service->memory, QN_MESSAGE_PREFIX_QUERY, &message);
}

qn_err_t scheduler_send_traffic(scheduler_service_t *service, uint64_t now_ns, uint64_t *ret_again_ns)
{
    plan_traffic_t traffic;
    qn_err_t err = QN_OK;
    scheduler_traffic(service->scheduler, now_ns, &traffic);
    if (traffic.commit_count > 0) err = send_commits(service, &traffic);
    if (err == QN_OK && traffic.release_count > 0) {
        qn_release_t message = {.sequences = traffic.releases, .sequences_count = traffic.release_count};
        err = send_to_peer(service, service->memory, QN_MESSAGE_RELEASE, &message);
    }
    if (err == QN_OK && traffic.lease_count > 0) err = send_leases(service, &traffic);
    if (err == QN_OK && traffic.lookup_count > 0) err = send_lookups(service, &traffic);
    *ret_again_ns = traffic.again_ns;
    return err;
}

/* ---- tokens for tokenizers ---- */

static const qn_token_logprob_t *write_top(scheduler_service_t *service, const request_alternative_t *top,
                                           uint32_t top_count)
{
    qn_token_logprob_t *copy = qn_arena_zalloc(&service->arena, top_count, sizeof *copy);
    for (uint32_t i = 0; i < top_count; i++)
        copy[i] = (qn_token_logprob_t){.id = top[i].id, .logprob = top[i].logprob};
    return copy;
}

static const qn_sampled_token_t *write_tokens(scheduler_service_t *service, const delivery_message_t *delivery)
{
    qn_sampled_token_t *tokens = qn_arena_zalloc(&service->arena, delivery->token_count, sizeof *tokens);
    for (uint32_t i = 0; i < delivery->token_count; i++) {
        const delivery_token_t *token = &delivery->tokens[i];
        tokens[i] = (qn_sampled_token_t){.request = token->request,
                                         .position = token->position,
                                         .id = token->id,
                                         .logprob = token->logprob,
                                         .top_count = token->top_count};
    }
    return tokens;
}

static const qn_sequence_end_t *write_ends(scheduler_service_t *service, const delivery_message_t *delivery)
{
    qn_sequence_end_t *ends = qn_arena_zalloc(&service->arena, delivery->end_count, sizeof *ends);
    for (uint32_t i = 0; i < delivery->end_count; i++) {
        const request_t *request = delivery->ends[i];
        ends[i] = (qn_sequence_end_t){
            .request = request->id,
            .prompt_tokens = request->prompt_tokens,
            .cached_tokens = request->cached_tokens,
            .generated_tokens = request->generated_tokens,
            .stop_id = request->stopped ? request->ids[request_known_tokens(request) - 1] : 0,
            .finish = (qn_finish_t)request->finish,
            .by_stop_id = request->finish == REQUEST_STOP && request->stopped,
        };
    }
    return ends;
}

static const qn_timeline_t *write_timelines(scheduler_service_t *service, const delivery_message_t *delivery)
{
    qn_timeline_t *timelines = qn_arena_zalloc(&service->arena, delivery->first_count, sizeof *timelines);
    for (uint32_t i = 0; i < delivery->first_count; i++) {
        const request_timeline_t *timeline = &delivery->firsts[i]->timeline;
        timelines[i] = (qn_timeline_t){.request = delivery->firsts[i]->id,
                                       .received_ns = timeline->received_ns,
                                       .encode_begin_ns = timeline->encode_begin_ns,
                                       .submitted_ns = timeline->submitted_ns,
                                       .queued_ns = timeline->queued_ns,
                                       .planned_ns = timeline->planned_ns,
                                       .executed_ns = timeline->executed_ns,
                                       .computed_ns = timeline->computed_ns,
                                       .resulted_ns = timeline->resulted_ns};
    }
    return timelines;
}

static const qn_sequence_read_t *write_reads(scheduler_service_t *service, const delivery_message_t *delivery,
                                             uint32_t *ret_count)
{
    qn_sequence_read_t *reads = qn_arena_zalloc(&service->arena, delivery->end_count, sizeof *reads);
    *ret_count = 0;
    for (uint32_t i = 0; i < delivery->end_count; i++) {
        const request_t *request = delivery->ends[i];
        if (request->kv_all)
            reads[(*ret_count)++] =
                (qn_sequence_read_t){.request = request->id, .read = request->kv_read, .all = request->kv_all};
    }
    return reads;
}

static qn_send_outcome_t send_token_batch(scheduler_service_t *service, qn_peer_t to,
                                          const delivery_message_t *delivery)
{
    qn_token_batch_t message = {
        .step = scheduler_batch(service->scheduler)->last.step,
        .tokens = write_tokens(service, delivery),
        .tokens_count = delivery->token_count,
        .top = write_top(service, delivery->top, delivery->top_count),
        .top_count = delivery->top_count,
        .ends = write_ends(service, delivery),
        .ends_count = delivery->end_count,
        .timelines = write_timelines(service, delivery),
        .timelines_count = delivery->first_count,
    };
    message.reads = write_reads(service, delivery, &message.reads_count);
    return qn_daemon_send(service->daemon, to, QN_MESSAGE_TOKEN_BATCH, &message);
}

static qn_send_outcome_t send_scores(scheduler_service_t *service, qn_peer_t to, const delivery_message_t *delivery)
{
    const request_t *request = delivery->scores;
    uint32_t scores = delivery->scores_end - delivery->scores_begin;
    uint32_t each = delivery->scores_top_count;
    qn_token_logprob_t *top = qn_arena_zalloc(&service->arena, (size_t)scores * each, sizeof *top);
    for (uint32_t i = 0; i < scores * each; i++) {
        size_t position = delivery->scores_begin + i / each;
        const request_alternative_t *from = &request->prompt.top[position * request_alternatives(request) + i % each];
        top[i] = (qn_token_logprob_t){.id = from->id, .logprob = from->logprob};
    }
    qn_prompt_logprobs_t message = {
        .head.request = request->id,
        .position = delivery->scores_begin,
        .ids = request->ids + delivery->scores_begin,
        .ids_count = scores,
        .logprobs = request->prompt.logprobs + delivery->scores_begin,
        .logprobs_count = scores,
        .top_per_token = delivery->scores_top_count,
        .top = top,
        .top_count = scores * each,
    };
    return qn_daemon_send(service->daemon, to, QN_MESSAGE_PROMPT_LOGPROBS, &message);
}

void scheduler_send_tokens(scheduler_service_t *service)
{
    delivery_t *delivery = scheduler_delivery(service->scheduler);
    delivery_message_t message;
    delivery_begin(delivery);
    while (delivery_next(delivery, &message)) {
        qn_peer_t to = {.epoch = message.client.epoch,
                        .service = message.client.service,
                        .instance = message.client.instance};
        qn_arena_reset(&service->arena);
        qn_send_outcome_t outcome =
            message.scores != NULL ? send_scores(service, to, &message) : send_token_batch(service, to, &message);
        if (outcome == QN_SEND_FULL || outcome == QN_SEND_GONE) { /* its event will say so */
            delivery_refused(delivery);
            continue;
        } /* QN_SEND_INVALID: the receiver sees the gap and fails those requests; all others go on */
        for (uint32_t i = 0; i < message.end_count; i++) {
            history_end(service->history, message.ends[i], qn_clock_now_ns());
            count(service, SCHEDULER_STAT_CACHED_TOKENS, message.ends[i]->cached_tokens);
            count(service, SCHEDULER_STAT_GENERATED_TOKENS, message.ends[i]->generated_tokens);
        }
        count(service, SCHEDULER_STAT_FINISHED, message.end_count);
        delivery_sent(delivery);
    }
}
