/* What is this?      The tokenizer daemon: descriptor, start, tick, peers.
 * State owned:       vocabulary and running streams; all of it can be rebuilt from (ids, position).
 * Must never:        schedule, keep a request nobody waits for, or touch a tensor.
 * Read next:         handlers.c, tokenizer.h, README.md */
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/watch/log.h"
#include "common/file.h"
#include "common/paths.h"
#include "services/tokenizer/handlers.h"
#include "services/tokenizer/outgoing.h"

#define RETRY_NS 1000000ull

static const qn_stat_spec_t tokenizer_stats[TOKENIZER_STAT_COUNT] = {
    [TOKENIZER_STAT_ENCODED_TOKENS] = {"tokenizer_encoded_tokens", QN_STAT_COUNTER, "tokens",
                                       "Tokens that texts were encoded to"},
    [TOKENIZER_STAT_ENCODED_BYTES] = {"tokenizer_encoded_bytes", QN_STAT_COUNTER, "bytes", "Bytes of text encoded"},
    [TOKENIZER_STAT_DETOKENIZED_TOKENS] = {"tokenizer_detokenized_tokens", QN_STAT_COUNTER, "tokens",
                                           "Generated tokens turned into text"},
    [TOKENIZER_STAT_STREAMS] = {"tokenizer_streams", QN_STAT_GAUGE, "requests", "Requests being turned into text"},
    [TOKENIZER_STAT_WAITING] = {"tokenizer_waiting_texts", QN_STAT_GAUGE, "texts",
                                "Long texts being encoded or decoded beside the loop, waiting ones included"},
    [TOKENIZER_STAT_STOP_STRINGS] = {"tokenizer_stop_strings", QN_STAT_COUNTER, "requests",
                                     "Requests ended by a stop string"},
    [TOKENIZER_STAT_ENCODE_TIME] = {"tokenizer_encode", QN_STAT_HISTOGRAM_NS, "seconds", "Time to encode one prompt"},
    [TOKENIZER_STAT_DETOKENIZE_TIME] = {"tokenizer_detokenize", QN_STAT_HISTOGRAM_NS, "seconds",
                                        "Time to turn one TokenBatch into text"},
    [TOKENIZER_STAT_WAIT_TIME] = {"tokenizer_wait", QN_STAT_HISTOGRAM_NS, "seconds",
                                  "Time from the scheduler's sending a TokenBatch until its tokens are text"},
};

static bool has_tokenizer_json(const char *directory)
{
    char path[QN_PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/tokenizer.json", directory);
    return qn_file_exists(AT_FDCWD, path);
}

/* A model directory without tokenizer.json serves token ids only. A tokenizer.path of its own must lead to one; the
 * configuration fills in model.path where none was given. */
static qn_err_t service_open_tokenizer(tokenizer_service_t *service, const qn_config_values_t *config)
{
    char path[QN_PATH_MAX];
    const char *given = config->tokenizer.path;
    if (given[0] && strcmp(given, config->model.path) != 0) return tokenizer_open(given, &service->tokenizer);
    qn_err_t err = qn_paths_model(config, path, sizeof path);
    if (err != QN_OK) return err;
    if (has_tokenizer_json(path)) return tokenizer_open(path, &service->tokenizer);
    qn_log_notice("%s has no tokenizer.json: token ids only, no text", path);
    return QN_OK;
}

static void service_fini(void **state)
{
    tokenizer_service_t *service = *state;
    if (!service) return;
    if (service->streams) tokenizer_close_all(service);
    streams_destroy(&service->streams);
    qn_in_hand_close(&service->hand);
    tokenizer_outgoing_destroy(&service->outgoing);
    if (service->scratch) tokenizer_scratch_close(&service->scratch);
    tokenizer_close(&service->tokenizer);
    text_buffer_fini(&service->text);
    free(service->cancels);
    free(service);
    *state = NULL;
}

static qn_err_t service_init(qn_daemon_t *daemon, const qn_config_values_t *config, void **ret_state)
{
    tokenizer_service_t *service = calloc(1, sizeof *service);
    if (!service) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the tokenizer");
    service->daemon = daemon;
    service->cancels = calloc(TOKENIZER_CANCELS_MAX, sizeof *service->cancels);
    QN_ASSERT(service->cancels);
    uint64_t begin_ns = qn_clock_now_ns();
    qn_err_t err = service_open_tokenizer(service, config);
    if (err == QN_OK)
        err = qn_in_hand_open(qn_daemon_run_dir(daemon), "tokenizer", qn_daemon_epoch(daemon), &service->hand);
    if (err != QN_OK) {
        service_fini((void **)&service);
        return err;
    }
    char text[QN_REASON_MAX] = "token ids only";
    if (service->tokenizer) {
        service->scratch = tokenizer_scratch_open(service->tokenizer);
        snprintf(text, sizeof text, "%zu tokens", tokenizer_vocab_size(service->tokenizer));
        for (size_t i = 0; i < tokenizer_note_count(service->tokenizer); i++)
            qn_log_warning("%s", tokenizer_note(service->tokenizer, i));
    }
    service->streams = streams_create(QN_REQUESTS_MAX);
    service->outgoing = tokenizer_outgoing_create();
    err = text_worker_start(service->tokenizer, &service->worker);
    if (!err) err = qn_daemon_watch(daemon, text_worker_fd(service->worker));
    if (err != QN_OK) {
        service_fini((void **)&service);
        return err;
    }
    qn_log_info("vocabulary: %s, opened in %.1f ms", text, (double)(qn_clock_now_ns() - begin_ns) / 1e6);
    qn_daemon_set_state(daemon, QN_STATE_READY, text);
    *ret_state = service;
    return QN_OK;
}

static void service_peer(void *state, qn_peer_t peer, qn_peer_event_t event)
{
    tokenizer_service_t *service = state;
    if (peer.service == QN_SERVICE_FRONTEND && event == QN_PEER_UP) tokenizer_meet_frontend(service);
    if (event == QN_PEER_GONE) tokenizer_drop_frontend(service, peer); /* of whatever service: it may have asked */
    if (peer.service == QN_SERVICE_SCHEDULER && event == QN_PEER_UP) tokenizer_submit_all(service, peer);
}

static uint64_t service_tick(void *state, uint64_t now_ns)
{
    tokenizer_service_t *service = state;
    qn_stats_t *stats = qn_daemon_stats(service->daemon);
    bool all_taken = !tokenizer_take_finished(service);
    service->turn_work_ns = 0;
    qn_stats_set(stats, QN_DAEMON_STATS_TABLE, TOKENIZER_STAT_STREAMS, streams_count(service->streams));
    qn_stats_set(stats, QN_DAEMON_STATS_TABLE, TOKENIZER_STAT_WAITING, text_worker_count(service->worker));
    bool all_sent = tokenizer_send_cancels(service);
    all_sent = tokenizer_outgoing_flush(service) && all_sent;
    return !all_taken ? now_ns : all_sent ? UINT64_MAX : now_ns + RETRY_NS;
}

static bool service_drained(const void *state)
{
    const tokenizer_service_t *service = state;
    return streams_count(service->streams) == 0 && text_worker_count(service->worker) == 0;
}

const qn_daemon_descriptor_t qn_tokenizer_daemon = {
    .service = QN_SERVICE_TOKENIZER,
    .name = "tokenizer",
    .dials = (const qn_service_t[]){QN_SERVICE_SCHEDULER, QN_SERVICE_NONE},
    .handlers = tokenizer_handlers,
    .methods = tokenizer_methods,
    .stats = tokenizer_stats,
    .stat_count = TOKENIZER_STAT_COUNT,
    .init = service_init,
    .peer = service_peer,
    .tick = service_tick,
    .drained = service_drained,
    .fini = service_fini,
};
