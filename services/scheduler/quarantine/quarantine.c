/* What is this?      The translation of quarantined requests: into files, into refusals.
 * State owned:       none; the service's.
 * Must never:        decide who is guilty (suspects.c), or be in the way of those who go on.
 * Read next:         suspects.h, common/watch/quarantine.h. */
#include <inttypes.h>
#include <stdio.h>

#include "common/watch/log.h"
#include "common/watch/quarantine.h"
#include "services/scheduler/handlers.h"

static json_t *sampling_json(const request_sampling_t *sampling)
{
    char seed[24]; /* JSON's numbers are signed */
    snprintf(seed, sizeof seed, "%" PRIu64, sampling->seed);
    return json_pack("{s:s,s:f,s:f,s:f,s:f,s:f,s:f,s:i,s:i,s:i,s:b,s:b,s:b,s:i}", "seed", seed, "temperature",
                     (double)sampling->temperature, "top_p", (double)sampling->top_p, "min_p", (double)sampling->min_p,
                     "repetition_penalty", (double)sampling->repetition_penalty, "presence_penalty",
                     (double)sampling->presence_penalty, "frequency_penalty", (double)sampling->frequency_penalty,
                     "top_k", (int)sampling->top_k, "max_tokens", (int)sampling->max_tokens, "min_tokens",
                     (int)sampling->min_tokens, "ignore_eos", sampling->ignore_eos, "logprobs", sampling->logprobs,
                     "prompt_logprobs", sampling->prompt_logprobs, "top_logprobs", (int)sampling->top_logprobs);
}

static json_t *bias_json(const request_bias_t *bias, uint32_t count)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++)
        json_array_append_new(list, json_pack("[i,f]", (int)bias[i].id, (double)bias[i].bias));
    return list;
}

static json_t *case_json(const ledger_submission_t *submission, const char *daemon, const char *how)
{
    return json_pack("{s:I,s:s,s:s,s:i,s:o,s:o,s:o,s:o,s:b,s:o,s:o,s:i,s:I,s:{s:I,s:I,s:I,s:I}}", "request",
                     (json_int_t)submission->id, "daemon", daemon, "crash", how, "prompt_tokens",
                     (int)submission->prompt_tokens, "prompt_ids",
                     qn_quarantine_ids(submission->prompt_ids, submission->prompt_tokens), "sampling",
                     sampling_json(&submission->sampling), "stop_ids",
                     qn_quarantine_ids(submission->stop_ids, submission->stop_count), "logit_bias",
                     bias_json(submission->bias, submission->bias_count), "allow_only", submission->allow_only,
                     "logprob_ids", qn_quarantine_ids(submission->logprob_ids, submission->logprob_id_count), "bad_ids",
                     qn_quarantine_ids(submission->bad_ids, submission->bad_id_count), "priority",
                     (int)submission->priority, "salt", (json_int_t)submission->salt, "timeline", "received_ns",
                     (json_int_t)submission->timeline.received_ns, "submitted_ns",
                     (json_int_t)submission->timeline.submitted_ns, "planned_ns",
                     (json_int_t)submission->timeline.planned_ns, "resulted_ns",
                     (json_int_t)submission->timeline.resulted_ns);
}

static void keep(scheduler_service_t *service, json_t *object, uint64_t id, const char *daemon)
{
    char path[QN_PATH_MAX];
    qn_stats_add(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, SCHEDULER_STAT_QUARANTINED, 1);
    if (object == NULL || qn_quarantine_write(qn_daemon_run_dir(service->daemon), daemon, id, object, path) != QN_OK)
        qn_log_error("request %" PRIu64 " made %s crash twice and is ended; no record of it: %s", id, daemon,
                     object != NULL ? qn_err_text() : "out of memory");
    else
        qn_log_error("request %" PRIu64 " made %s crash twice and is ended; see %s", id, daemon, path);
    json_decref(object);
}

void scheduler_keep_submission(scheduler_service_t *service, const ledger_submission_t *submission)
{
    keep(service, case_json(submission, "scheduler", service->crash_text), submission->id, "scheduler");
}

static void keep_request(scheduler_service_t *service, const request_t *request, suspects_peer_t peer)
{
    static const char *const daemons[] = {
        [SUSPECTS_COMPUTE] = "compute", [SUSPECTS_MEMORY] = "memory", [SUSPECTS_SCHEDULER] = "scheduler"};
    ledger_submission_t submission = {
        .id = request->id,
        .priority = request->priority,
        .salt = request->salt,
        .sampling = request->sampling,
        .timeline = request->timeline,
        .prompt_ids = request->ids,
        .prompt_tokens = request->prompt_tokens,
        .stop_ids = request->stop_ids,
        .stop_count = request->stop_count,
        .bias = request->bias,
        .bias_count = request->bias_count,
        .allow_only = request->allow_only,
        .logprob_ids = request->logprob_ids,
        .logprob_id_count = request->logprob_id_count,
        .bad_ids = request->bad_ids,
        .bad_id_count = request->bad_id_count,
        .probe = request->probe,
    };
    json_t *object = case_json(&submission, daemons[peer], service->crash_text);
    if (object != NULL)
        json_object_set_new(object, "generated_ids",
                            qn_quarantine_ids(request->ids + request->prompt_tokens, request->generated_tokens));
    scheduler_record_once(service->scheduler, request->id);
    keep(service, object, request->id, daemons[peer]);
}

bool scheduler_send_quarantined(scheduler_service_t *service)
{
    suspects_peer_t peer;
    const request_t *request;
    bool all = true;
    while ((request = scheduler_next_guilty(service->scheduler, &peer)) != NULL)
        keep_request(service, request, peer);
    for (request = NULL; (request = scheduler_next_untold(service->scheduler, request)) != NULL;) {
        qn_peer_t to = {.epoch = request->client.epoch,
                        .service = request->client.service,
                        .instance = request->client.instance};
        qn_refusal_t message = {
            .head.request = request->id,
            .status = 500,
            .refused_type = qn_text("QSUB"),
            .text = qn_text(SCHEDULER_QUARANTINED_TEXT),
        };
        if (qn_daemon_send(service->daemon, to, QN_MESSAGE_REFUSAL, &message) == QN_SEND_OK)
            scheduler_told(service->scheduler, request);
        else
            all = false;
    }
    return all;
}
