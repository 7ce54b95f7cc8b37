/* What is this?      Two lists between loop and worker: tasks to do and tasks done.
 * State owned:       tasks from add until they are taken back.
 * Must never:        hold the lock while a slice runs.
 * Read next:         step_worker.c (who runs them), ../tensors/tensor_task.c (what they do). */
#include "services/compute/worker/task_queue.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "common/assert.h"

struct task_queue {
    pthread_mutex_t mutex;
    task_t *waiting, *finished; /* oldest first; under the mutex */
    atomic_uint pending;        /* in `waiting` */
    unsigned count;             /* the loop's: added and not taken back */
};

static void append(task_t **list, task_t *task)
{
    while (*list)
        list = &(*list)->next;
    task->next = NULL;
    *list = task;
}

static task_t *take(task_queue_t *queue, task_t **list)
{
    pthread_mutex_lock(&queue->mutex);
    task_t *first = *list;
    if (first) *list = first->next;
    pthread_mutex_unlock(&queue->mutex);
    return first;
}

qn_err_t task_queue_create(task_queue_t **ret_queue)
{
    task_queue_t *queue = calloc(1, sizeof *queue);
    if (!queue) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the task queue");
    pthread_mutex_init(&queue->mutex, NULL);
    *ret_queue = queue;
    return QN_OK;
}

void task_queue_destroy(task_queue_t **queue)
{
    if (!*queue) return;
    QN_ASSERT((*queue)->count == 0);
    pthread_mutex_destroy(&(*queue)->mutex);
    free(*queue);
    *queue = NULL;
}

bool task_queue_add(task_queue_t *queue, task_t *task)
{
    if (queue->count == TASKS_MAX) return false;
    queue->count++;
    pthread_mutex_lock(&queue->mutex);
    append(&queue->waiting, task);
    pthread_mutex_unlock(&queue->mutex);
    atomic_fetch_add(&queue->pending, 1);
    return true;
}

task_t *task_queue_finished(task_queue_t *queue)
{
    task_t *task = take(queue, &queue->finished);
    if (task) queue->count--;
    return task;
}

task_t *task_queue_withdraw(task_queue_t *queue)
{
    task_t *task = take(queue, &queue->waiting);
    if (!task) return NULL;
    atomic_fetch_sub(&queue->pending, 1);
    queue->count--;
    return task;
}

bool task_queue_pending(const task_queue_t *queue) { return atomic_load(&queue->pending) > 0; }

/* The oldest stays in the list while it runs: only this side takes from it then. */
bool task_queue_run(task_queue_t *queue, qn_stream_t *stream)
{
    if (!task_queue_pending(queue)) return false;
    pthread_mutex_lock(&queue->mutex);
    task_t *task = queue->waiting;
    pthread_mutex_unlock(&queue->mutex);
    if (!task || !task->slice(task, stream)) return false;
    pthread_mutex_lock(&queue->mutex);
    queue->waiting = task->next;
    append(&queue->finished, task);
    pthread_mutex_unlock(&queue->mutex);
    atomic_fetch_sub(&queue->pending, 1);
    return true;
}
