/* What is this?      The thread for large bodies and replies.
 * State owned:       the thread, two queues under one lock, an eventfd.
 * Must never:        hold the lock while it works; know what the work is.
 * Read next:         bodies.c, which gives it work. */
#include "services/frontend/worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/assert.h"

#define NICE 5

typedef struct {
    work_t *first, *last;
} queue_t;

struct worker {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t given;
    queue_t to_do, done;
    bool stopping, joined;
    int fd;
};

static void push(queue_t *queue, work_t *work)
{
    work->next = NULL;
    if (queue->last)
        queue->last->next = work;
    else
        queue->first = work;
    queue->last = work;
}

static work_t *pop(queue_t *queue)
{
    work_t *work = queue->first;
    if (!work) return NULL;
    queue->first = work->next;
    if (!queue->first) queue->last = NULL;
    return work;
}

static void *work_on(void *context)
{
    worker_t *worker = context;
    setpriority(PRIO_PROCESS, (id_t)gettid(), NICE); /* of this thread: the loops of all daemons come first */
    pthread_mutex_lock(&worker->lock);
    while (!worker->stopping) {
        work_t *work = pop(&worker->to_do);
        if (!work) {
            pthread_cond_wait(&worker->given, &worker->lock);
            continue;
        }
        pthread_mutex_unlock(&worker->lock);
        work->run(work);
        pthread_mutex_lock(&worker->lock);
        push(&worker->done, work);
        uint64_t one = 1;
        if (write(worker->fd, &one, sizeof one) < 0 && errno != EAGAIN) worker->stopping = true;
    }
    pthread_mutex_unlock(&worker->lock);
    return NULL;
}

/* Signals are for the loop's thread. */
static int start_thread(worker_t *worker)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&worker->thread, NULL, work_on, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

qn_err_t worker_create(worker_t **ret_worker)
{
    worker_t *worker = calloc(1, sizeof *worker);
    QN_ASSERT(worker != NULL);
    worker->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&worker->lock, NULL);
    pthread_cond_init(&worker->given, NULL);
    int failed = worker->fd < 0 ? errno : start_thread(worker);
    if (failed) {
        if (worker->fd >= 0) close(worker->fd);
        free(worker);
        return qn_fail(QN_ERR_IO, "cannot start the thread for large bodies: %s", strerror(failed));
    }
    *ret_worker = worker;
    return QN_OK;
}

void worker_stop(worker_t *worker)
{
    if (worker->joined) return;
    pthread_mutex_lock(&worker->lock);
    worker->stopping = true;
    pthread_cond_signal(&worker->given);
    pthread_mutex_unlock(&worker->lock);
    pthread_join(worker->thread, NULL);
    worker->joined = true;
    for (work_t *work; (work = pop(&worker->to_do));)
        push(&worker->done, work);
}

void worker_destroy(worker_t **worker)
{
    worker_t *leaving = *worker;
    if (!leaving) return;
    worker_stop(leaving);
    QN_ASSERT(!leaving->done.first);
    pthread_mutex_destroy(&leaving->lock);
    pthread_cond_destroy(&leaving->given);
    close(leaving->fd);
    free(leaving);
    *worker = NULL;
}

int worker_fd(const worker_t *worker) { return worker->fd; }

void worker_give(worker_t *worker, work_t *work)
{
    pthread_mutex_lock(&worker->lock);
    push(&worker->to_do, work);
    pthread_cond_signal(&worker->given);
    pthread_mutex_unlock(&worker->lock);
}

work_t *worker_take(worker_t *worker)
{
    uint64_t count;
    pthread_mutex_lock(&worker->lock);
    work_t *work = pop(&worker->done);
    if (!work && read(worker->fd, &count, sizeof count) < 0 && errno != EAGAIN) work = NULL;
    pthread_mutex_unlock(&worker->lock);
    return work;
}
