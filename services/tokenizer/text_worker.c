/* What is this?      A queue of long texts and the thread that works on it.
 * State owned:       the thread, its scratch, the jobs between submit and finished.
 * Must never:        touch a stream, a peer or a message; change what a job gives.
 * Read next:         text_job.h, handlers.c. */
#include "services/tokenizer/text_worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/assert.h"

#define WORKER_NICE 5 /* streams go first where cores are few */

struct text_worker {
    const tokenizer_t *tokenizer;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work;
    text_job_t *waiting, *running, *finished; /* guarded by lock, like all below */
    bool stops;
    size_t count, bytes; /* not yet taken by text_worker_finished() */
    int fd;
};

/* ---- the thread ---- */

/* Unlinks the next job: one that waited long enough, else the shortest. */
static text_job_t *take_next(text_worker_t *worker)
{
    text_job_t **best = NULL;
    for (text_job_t **at = &worker->waiting; *at; at = &(*at)->next) {
        if ((*at)->cancelled || (*at)->passed_over >= TEXT_WORKER_PATIENCE) { /* the list is oldest first */
            best = at;
            break;
        }
        if (!best || text_job_bytes(*at) < text_job_bytes(*best)) best = at;
    }
    if (!best) return NULL;
    text_job_t *job = *best;
    *best = job->next;
    job->next = NULL;
    for (text_job_t *other = worker->waiting; other; other = other->next)
        other->passed_over++;
    return job;
}

static void put_finished(text_worker_t *worker, text_job_t *job)
{
    text_job_t **end = &worker->finished;
    while (*end)
        end = &(*end)->next;
    *end = job;
    uint64_t one = 1;
    ssize_t written = write(worker->fd, &one, sizeof one); /* cannot overflow: one per job */
    QN_ASSERT(written == sizeof one);
}

static void *worker_main(void *argument)
{
    text_worker_t *worker = argument;
    tokenizer_scratch_t *scratch = worker->tokenizer ? tokenizer_scratch_open(worker->tokenizer) : NULL;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), WORKER_NICE);
    pthread_mutex_lock(&worker->lock);
    while (!worker->stops) {
        text_job_t *job = worker->running = take_next(worker);
        if (!job) {
            pthread_cond_wait(&worker->work, &worker->lock);
            continue;
        }
        pthread_mutex_unlock(&worker->lock);
        qn_in_hand_take_beside(job->hand, job->key);
        if (!job->cancelled) text_job_run(job, worker->tokenizer, scratch);
        qn_in_hand_take_beside(job->hand, 0);
        pthread_mutex_lock(&worker->lock);
        worker->running = NULL;
        put_finished(worker, job);
    }
    pthread_mutex_unlock(&worker->lock);
    if (scratch) tokenizer_scratch_close(&scratch);
    return NULL;
}

/* ---- life ---- */

static int start_thread(text_worker_t *worker)
{
    sigset_t all, before; /* signals belong to the process's own loop */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = pthread_create(&worker->thread, NULL, worker_main, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failure;
}

qn_err_t text_worker_start(const tokenizer_t *tokenizer, text_worker_t **ret_worker)
{
    text_worker_t *worker = calloc(1, sizeof *worker);
    QN_ASSERT(worker != NULL);
    worker->tokenizer = tokenizer;
    worker->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->fd < 0) {
        free(worker);
        return qn_fail(QN_ERR_IO, "eventfd: %s; raise the limit of open files", strerror(errno));
    }
    pthread_mutex_init(&worker->lock, NULL);
    pthread_cond_init(&worker->work, NULL);
    int failure = start_thread(worker);
    if (failure) {
        close(worker->fd);
        free(worker);
        return qn_fail(QN_ERR_IO, "cannot start the text worker: %s", strerror(failure));
    }
    *ret_worker = worker;
    return QN_OK;
}

static void drop_all(text_job_t *jobs, void (*drop)(text_job_t *job))
{
    while (jobs) {
        text_job_t *job = jobs;
        jobs = job->next;
        drop(job);
        text_job_destroy(&job);
    }
}

void text_worker_stop(text_worker_t **worker, void (*drop)(text_job_t *job))
{
    text_worker_t *old = *worker;
    if (!old) return;
    pthread_mutex_lock(&old->lock);
    old->stops = true;
    pthread_cond_signal(&old->work);
    pthread_mutex_unlock(&old->lock);
    pthread_join(old->thread, NULL);
    drop_all(old->waiting, drop);
    drop_all(old->finished, drop);
    pthread_mutex_destroy(&old->lock);
    pthread_cond_destroy(&old->work);
    close(old->fd);
    free(old);
    *worker = NULL;
}

int text_worker_fd(const text_worker_t *worker) { return worker->fd; }

/* ---- the loop's side ---- */

bool text_worker_submit(text_worker_t *worker, text_job_t **job)
{
    size_t bytes = text_job_bytes(*job);
    if (worker->count == TEXT_WORKER_JOBS_MAX || worker->bytes + bytes > TEXT_WORKER_BYTES_MAX) return false;
    text_job_own(*job);
    pthread_mutex_lock(&worker->lock);
    text_job_t **end = &worker->waiting;
    while (*end)
        end = &(*end)->next;
    *end = *job;
    worker->count++;
    worker->bytes += bytes;
    pthread_cond_signal(&worker->work);
    pthread_mutex_unlock(&worker->lock);
    *job = NULL;
    return true;
}

text_job_t *text_worker_finished(text_worker_t *worker)
{
    uint64_t counter;
    pthread_mutex_lock(&worker->lock);
    if (worker->finished == NULL || worker->finished->next == NULL)
        while (read(worker->fd, &counter, sizeof counter) < 0 && errno == EINTR) /* level-triggered: none is left */
            ;
    text_job_t *job = worker->finished;
    if (job) {
        worker->finished = job->next;
        job->next = NULL;
        worker->count--;
        worker->bytes -= text_job_bytes(job);
    }
    pthread_mutex_unlock(&worker->lock);
    return job;
}

static text_job_t *find(const text_worker_t *worker, uint64_t request)
{
    if (worker->running && worker->running->request == request && !worker->running->cancelled) return worker->running;
    for (text_job_t *job = worker->waiting; job; job = job->next)
        if (job->request == request && !job->cancelled) return job;
    for (text_job_t *job = worker->finished; job; job = job->next)
        if (job->request == request && !job->cancelled) return job;
    return NULL;
}

bool text_worker_has(const text_worker_t *worker, uint64_t request)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&worker->lock;
    pthread_mutex_lock(lock);
    bool has = find(worker, request) != NULL;
    pthread_mutex_unlock(lock);
    return has;
}

bool text_worker_cancel(text_worker_t *worker, uint64_t request)
{
    pthread_mutex_lock(&worker->lock);
    text_job_t *job = find(worker, request);
    if (job) job->cancelled = true;
    pthread_mutex_unlock(&worker->lock);
    return job != NULL;
}

static void cancel_list(text_job_t *jobs, qn_peer_t from)
{
    for (text_job_t *job = jobs; job; job = job->next)
        if (qn_peer_equal(job->from, from)) job->cancelled = true;
}

void text_worker_cancel_peer(text_worker_t *worker, qn_peer_t from)
{
    pthread_mutex_lock(&worker->lock);
    cancel_list(worker->running, from);
    cancel_list(worker->waiting, from);
    cancel_list(worker->finished, from);
    pthread_mutex_unlock(&worker->lock);
}

size_t text_worker_count(const text_worker_t *worker) { return worker->count; }
