/* What is this?      The loop that sends a load's requests when they are due and reads all answers.
 * State owned:       a place per request at once, libcurl's multi handle, an epoll and a timer descriptor.
 * Must never:        wait for one transfer, or let a full house pass for lateness of its own.
 * Read next:         load_transfer.c (one request), load_plan.c (when they are due). */
#include "tools/bench/load_engine.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "tools/bench/load_transfer.h"

#define NEVER UINT64_MAX
#define EVENTS_AT_ONCE 256
#define PROGRESS_NS 200000000ull
#define OTHER_FILES 64 /* descriptors beside connections */

struct load_engine {
    load_engine_options_t options;
    load_transfer_options_t transfer_options;
    CURLM *multi;               /* owned */
    struct curl_slist *headers; /* owned */
    int epoll_fd, timer_fd;     /* owned */
    load_transfer_t *places;    /* owned; options.concurrency of them */
    uint64_t *free_at_ns;       /* owned; when each place can take a request; NEVER: it has one */
    uint64_t curl_at_ns;        /* when libcurl wants to be called; NEVER: not */
    uint64_t progress_at_ns;

    /* of the run */
    const load_run_t *run;
    uint64_t begin_ns, sent, arrival_ns; /* arrival_ns: of the request that is sent next */
    uint32_t busy;
    bool no_more; /* nothing is sent any more */
    load_end_t end;
    qn_err_t err;
};

/* ---- what libcurl calls ---- */

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *context, void *known)
{
    (void)easy;
    load_engine_t *engine = context;
    if (what == CURL_POLL_REMOVE) {
        epoll_ctl(engine->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
        return 0;
    }
    struct epoll_event event = {.data.fd = fd};
    event.events = (what & CURL_POLL_IN ? EPOLLIN : 0u) | (what & CURL_POLL_OUT ? EPOLLOUT : 0u);
    int result = epoll_ctl(engine->epoll_fd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event);
    if (result && !engine->err) engine->err = qn_fail(QN_ERR_IO, "epoll_ctl: %s", strerror(errno));
    curl_multi_assign(engine->multi, fd, engine);
    return 0;
}

static int on_timer(CURLM *multi, long ms, void *context)
{
    (void)multi;
    load_engine_t *engine = context;
    engine->curl_at_ns = ms < 0 ? NEVER : qn_clock_now_ns() + (uint64_t)ms * 1000000;
    return 0;
}

/* ---- open and close ---- */

/* Raises the soft bound of open files, which servers and load need higher than shells set it. */
static qn_err_t allow_connections(uint32_t count)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit)) return qn_fail(QN_ERR_IO, "getrlimit: %s", strerror(errno));
    rlim_t wanted = (rlim_t)count + OTHER_FILES;
    if (limit.rlim_cur >= wanted) return QN_OK;
    if (limit.rlim_max < wanted)
        return qn_fail(
            QN_ERR_LIMIT,
            "%u requests at once need %llu open files and this process may have %llu: give a lower --concurrency, or raise ulimit -n",
            count, (unsigned long long)wanted, (unsigned long long)limit.rlim_max);
    limit.rlim_cur = wanted;
    return setrlimit(RLIMIT_NOFILE, &limit) ? qn_fail(QN_ERR_IO, "setrlimit: %s", strerror(errno)) : QN_OK;
}

static qn_err_t watch(load_engine_t *engine, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (fd < 0 || epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, fd, &event))
        return qn_fail(QN_ERR_IO, "cannot wait for descriptors: %s", strerror(errno));
    return QN_OK;
}

static qn_err_t prepare(load_engine_t *engine)
{
    const load_engine_options_t *options = &engine->options;
    qn_err_t err = allow_connections(options->concurrency);
    if (err) return err;
    engine->multi = curl_multi_init();
    engine->headers = http_client_headers(true, NULL);
    engine->places = calloc(options->concurrency, sizeof *engine->places);
    engine->free_at_ns = calloc(options->concurrency, sizeof *engine->free_at_ns);
    if (!engine->multi || !engine->headers || !engine->places || !engine->free_at_ns)
        return qn_fail(QN_ERR_NO_MEMORY, "no memory for %u requests at once", options->concurrency);
    curl_multi_setopt(engine->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(engine->multi, CURLMOPT_SOCKETDATA, engine);
    curl_multi_setopt(engine->multi, CURLMOPT_TIMERFUNCTION, on_timer);
    curl_multi_setopt(engine->multi, CURLMOPT_TIMERDATA, engine);
    curl_multi_setopt(engine->multi, CURLMOPT_MAXCONNECTS, (long)options->concurrency);
    engine->transfer_options = (load_transfer_options_t){.client = options->client,
                                                         .headers = engine->headers,
                                                         .timeout_ms = options->timeout_ms,
                                                         .keeps_ids = options->keeps_ids};
    engine->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    engine->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    err = watch(engine, engine->timer_fd);
    return !err && options->interrupt_fd >= 0 ? watch(engine, options->interrupt_fd) : err;
}

qn_err_t load_engine_open(const load_engine_options_t *options, load_engine_t **ret_engine)
{
    load_engine_t *engine = calloc(1, sizeof *engine);
    if (!engine) return qn_fail(QN_ERR_NO_MEMORY, "no memory");
    engine->options = *options;
    engine->epoll_fd = engine->timer_fd = -1;
    engine->curl_at_ns = NEVER;
    qn_err_t err = prepare(engine);
    if (err)
        load_engine_close(&engine);
    else
        *ret_engine = engine;
    return err;
}

void load_engine_close(load_engine_t **engine)
{
    load_engine_t *it = *engine;
    if (!it) return;
    for (uint32_t i = 0; it->places && i < it->options.concurrency; i++)
        load_transfer_fini(&it->places[i]);
    if (it->multi) curl_multi_cleanup(it->multi);
    curl_slist_free_all(it->headers);
    free(it->places);
    free(it->free_at_ns);
    if (it->epoll_fd >= 0) close(it->epoll_fd);
    if (it->timer_fd >= 0) close(it->timer_fd);
    free(it);
    *engine = NULL;
}

/* ---- sending ---- */

static double since_begin(const load_engine_t *engine, uint64_t at_ns)
{
    return at_ns > engine->begin_ns ? (double)(at_ns - engine->begin_ns) * 1e-9 : 0;
}

/* Decides when the next request arrives, and whether there is one. */
static void plan_next(load_engine_t *engine)
{
    const load_run_t *run = engine->run;
    double arrival_s = 0;
    if ((run->requests && engine->sent == run->requests) || engine->sent == LOAD_REQUESTS_MAX) {
        engine->no_more = true;
        engine->end = run->requests && engine->sent == run->requests ? LOAD_ENDED_REQUESTS : LOAD_ENDED_LIMIT;
        return;
    }
    if (run->is_trace)
        arrival_s = engine->options.prompts->lines.items[engine->sent].arrival_s;
    else if (run->arrivals)
        arrival_s = load_arrivals_next(run->arrivals);
    engine->arrival_ns = engine->begin_ns + (uint64_t)(arrival_s * 1e9);
}

/* The place that is free first. */
static uint32_t next_place(const load_engine_t *engine)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < engine->run->concurrency; i++)
        if (engine->free_at_ns[i] < engine->free_at_ns[best]) best = i;
    return best;
}

static void finish(load_engine_t *engine, uint32_t place)
{
    load_transfer_t *transfer = &engine->places[place];
    bool failed = transfer->record.outcome != LOAD_OK, closed_loop = !engine->run->arrivals && !engine->run->is_trace;
    curl_multi_remove_handle(engine->multi, transfer->easy);
    engine->busy--;
    engine->free_at_ns[place] = qn_clock_now_ns() + (failed && closed_loop ? LOAD_PAUSE_NS : 0);
    bool go_on = engine->options.ended(engine->options.context, &transfer->record, transfer->gaps, transfer->gap_count,
                                       transfer->ids);
    if (go_on || engine->no_more) return;
    engine->no_more = true;
    engine->end = LOAD_ENDED_LIMIT;
}

static qn_err_t send_one(load_engine_t *engine, uint32_t place, uint64_t due_ns)
{
    load_transfer_t *transfer = &engine->places[place];
    load_request_t request;
    qn_err_t err = load_prompts_make(engine->options.prompts, engine->run->purpose, engine->sent, &request);
    if (!err) err = load_transfer_begin(transfer, &engine->transfer_options, &request, engine->begin_ns);
    if (err) return err;
    load_record_t *record = &transfer->record;
    bool closed_loop = !engine->run->arrivals && !engine->run->is_trace;
    record->index = engine->sent++;
    record->due_s = since_begin(engine, due_ns);
    record->arrival_s = closed_loop ? record->due_s : since_begin(engine, engine->arrival_ns);
    record->sent_s = since_begin(engine, qn_clock_now_ns());
    engine->free_at_ns[place] = NEVER;
    if (curl_multi_add_handle(engine->multi, transfer->easy)) return qn_fail(QN_ERR_IO, "libcurl refuses a request");
    engine->busy++;
    plan_next(engine);
    return QN_OK;
}

/* Sends what is due; returns when the next is, NEVER when that depends on an answer. */
static uint64_t send_due(load_engine_t *engine)
{
    while (!engine->no_more && !engine->err) {
        uint32_t place = next_place(engine);
        uint64_t free_ns = engine->free_at_ns[place], now_ns = qn_clock_now_ns();
        uint64_t due_ns = free_ns > engine->arrival_ns ? free_ns : engine->arrival_ns;
        double seconds = engine->run->seconds;
        if (seconds > 0 &&
            (since_begin(engine, now_ns) >= seconds || since_begin(engine, engine->arrival_ns) >= seconds)) {
            engine->no_more = true;
            engine->end = LOAD_ENDED_SECONDS;
            break;
        }
        if (due_ns > now_ns) return due_ns;
        engine->err = send_one(engine, place, due_ns);
    }
    return NEVER;
}

/* ---- the loop ---- */

/* Wakes the loop at the first of several times. */
static void arm_timer(load_engine_t *engine, uint64_t due_ns)
{
    uint64_t at_ns = due_ns < engine->curl_at_ns ? due_ns : engine->curl_at_ns;
    if (engine->options.progress && engine->progress_at_ns < at_ns) at_ns = engine->progress_at_ns;
    /* Without requests under way, --seconds must end the wait for an arrival that is later. */
    if (engine->run->seconds > 0 && !engine->no_more) {
        uint64_t stop_ns = engine->begin_ns + (uint64_t)(engine->run->seconds * 1e9);
        if (stop_ns < at_ns) at_ns = stop_ns;
    }
    struct itimerspec when = {0};
    if (at_ns != NEVER) {
        when.it_value.tv_sec = (time_t)(at_ns / 1000000000);
        when.it_value.tv_nsec = (long)(at_ns % 1000000000);
    }
    timerfd_settime(engine->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void take_back_all(load_engine_t *engine)
{
    uint64_t now_ns = qn_clock_now_ns();
    engine->no_more = true;
    engine->end = LOAD_ENDED_INTERRUPT;
    for (uint32_t i = 0; i < engine->run->concurrency; i++) {
        if (engine->free_at_ns[i] != NEVER) continue;
        load_transfer_interrupt(&engine->places[i], now_ns);
        finish(engine, i);
    }
}

static void collect(load_engine_t *engine)
{
    const CURLMsg *message;
    int left;
    while ((message = curl_multi_info_read(engine->multi, &left))) {
        char *private = NULL;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &private);
        load_transfer_t *transfer = (load_transfer_t *)(void *)private;
        load_transfer_end(transfer, message->data.result, qn_clock_now_ns());
        finish(engine, (uint32_t)(transfer - engine->places));
    }
}

static void act(load_engine_t *engine, const struct epoll_event *event)
{
    int fd = event->data.fd, running;
    if (fd == engine->options.interrupt_fd) {
        take_back_all(engine);
    } else if (fd == engine->timer_fd) {
        uint64_t expirations;
        if (read(fd, &expirations, sizeof expirations) < 0) return; /* armed anew meanwhile */
    } else {
        int mask = (event->events & EPOLLIN ? CURL_CSELECT_IN : 0) | (event->events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
                   (event->events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0);
        curl_multi_socket_action(engine->multi, fd, mask, &running);
    }
}

static void wait_and_act(load_engine_t *engine)
{
    struct epoll_event events[EVENTS_AT_ONCE];
    int count = epoll_wait(engine->epoll_fd, events, EVENTS_AT_ONCE, -1), running;
    if (count < 0 && errno != EINTR) engine->err = qn_fail(QN_ERR_IO, "epoll_wait: %s", strerror(errno));
    for (int i = 0; i < count; i++)
        act(engine, &events[i]);
    uint64_t now_ns = qn_clock_now_ns();
    if (now_ns >= engine->curl_at_ns) {
        engine->curl_at_ns = NEVER;
        curl_multi_socket_action(engine->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    }
    collect(engine);
    if (engine->options.progress && now_ns >= engine->progress_at_ns) {
        engine->progress_at_ns = now_ns + PROGRESS_NS;
        engine->options.progress(engine->options.context, since_begin(engine, now_ns), engine->busy);
    }
}

static double processor_seconds(void)
{
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (double)used.tv_sec + (double)used.tv_nsec * 1e-9;
}

qn_err_t load_engine_run(load_engine_t *engine, const load_run_t *run, load_end_t *ret_end, double *ret_cpu_s)
{
    double cpu_s = processor_seconds();
    engine->run = run;
    engine->begin_ns = qn_clock_now_ns();
    engine->progress_at_ns = engine->begin_ns + PROGRESS_NS;
    engine->sent = 0;
    engine->no_more = false;
    engine->err = QN_OK;
    /* All places are free: a pause, or the end, of the run before is none of this one. */
    for (uint32_t i = 0; i < engine->options.concurrency; i++)
        engine->free_at_ns[i] = engine->begin_ns;
    plan_next(engine);
    while (!engine->err) {
        uint64_t due_ns = send_due(engine);
        if (engine->err || (engine->no_more && !engine->busy)) break;
        arm_timer(engine, due_ns);
        wait_and_act(engine);
    }
    *ret_end = engine->end;
    *ret_cpu_s = processor_seconds() - cpu_s;
    return engine->err;
}
