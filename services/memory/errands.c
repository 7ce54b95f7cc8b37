/* What is this?      The thread that runs errands, and its two queues.
 * State owned:       the thread; errands from errands_add until their done.
 * Must never:        run two at once; touch what an errand is about.
 * Read next:         errands.h, save.c and restore.c (what is run). */
#include "services/memory/errands.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/watch/log.h"

struct errands {
    pthread_mutex_t mutex;
    pthread_cond_t work;
    errand_t *waiting, *finished; /* oldest first; under the mutex */
    unsigned count;               /* the loop's */
    atomic_bool cancelled;
    pthread_t thread;
    bool started;
    int event_fd;
};

static void append(errand_t **list, errand_t *errand)
{
    while (*list)
        list = &(*list)->next;
    errand->next = NULL;
    *list = errand;
}

static errand_t *take(errand_t **list)
{
    errand_t *first = *list;
    if (first) *list = first->next;
    return first;
}

static errand_t *wait_for_work(errands_t *errands)
{
    pthread_mutex_lock(&errands->mutex);
    while (!errands->waiting && !atomic_load(&errands->cancelled))
        pthread_cond_wait(&errands->work, &errands->mutex);
    errand_t *errand = atomic_load(&errands->cancelled) ? NULL : take(&errands->waiting);
    pthread_mutex_unlock(&errands->mutex);
    return errand;
}

static void *errands_main(void *argument)
{
    errands_t *errands = argument;
    uint64_t one = 1;
    qn_log_set_name("memory");
    for (errand_t *errand; (errand = wait_for_work(errands));) {
        qn_err_t err = errand->run(errand);
        if (err) qn_failure_keep(&errand->failure, err);
        pthread_mutex_lock(&errands->mutex);
        append(&errands->finished, errand);
        pthread_mutex_unlock(&errands->mutex);
        QN_ASSERT(write(errands->event_fd, &one, sizeof one) == (ssize_t)sizeof one);
    }
    return NULL;
}

qn_err_t errands_create(errands_t **ret_errands)
{
    errands_t *errands = calloc(1, sizeof *errands);
    if (!errands) return qn_fail(QN_ERR_NO_MEMORY, "errands: no memory");
    pthread_mutex_init(&errands->mutex, NULL);
    pthread_cond_init(&errands->work, NULL);
    errands->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int status = errands->event_fd < 0 ? errno : pthread_create(&errands->thread, NULL, errands_main, errands);
    if (status) {
        errands_destroy(&errands);
        return qn_fail(QN_ERR_IO, "errands: no thread: %s", strerror(status));
    }
    errands->started = true;
    *ret_errands = errands;
    return QN_OK;
}

void errands_destroy(errands_t **errands_pointer)
{
    errands_t *errands = *errands_pointer;
    if (!errands) return;
    pthread_mutex_lock(&errands->mutex);
    atomic_store(&errands->cancelled, true);
    pthread_cond_signal(&errands->work);
    pthread_mutex_unlock(&errands->mutex);
    if (errands->started) pthread_join(errands->thread, NULL);
    for (errand_t *errand; (errand = take(&errands->finished));)
        errand->done(errand);
    for (errand_t *errand; (errand = take(&errands->waiting));) {
        qn_failure_keep(&errand->failure, qn_fail(QN_ERR_CANCELLED, "memory is stopping"));
        errand->done(errand);
    }
    if (errands->event_fd >= 0) close(errands->event_fd);
    pthread_cond_destroy(&errands->work);
    pthread_mutex_destroy(&errands->mutex);
    free(errands);
    *errands_pointer = NULL;
}

bool errands_add(errands_t *errands, errand_t *errand)
{
    if (errands->count == ERRANDS_MAX) return false;
    errands->count++;
    errand->errands = errands;
    errand->failure.code = QN_OK;
    pthread_mutex_lock(&errands->mutex);
    append(&errands->waiting, errand);
    pthread_cond_signal(&errands->work);
    pthread_mutex_unlock(&errands->mutex);
    return true;
}

int errands_fd(const errands_t *errands) { return errands->event_fd; }

void errands_finish(errands_t *errands)
{
    uint64_t count;
    if (read(errands->event_fd, &count, sizeof count) != (ssize_t)sizeof count) return;
    for (;;) {
        pthread_mutex_lock(&errands->mutex);
        errand_t *errand = take(&errands->finished);
        pthread_mutex_unlock(&errands->mutex);
        if (!errand) return;
        errands->count--;
        errand->done(errand);
    }
}

bool errands_cancelled(const errand_t *errand) { return atomic_load(&errand->errands->cancelled); }
