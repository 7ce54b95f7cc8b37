/* The step queue between two threads: order, bound, wake-ups, discarding. */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "services/compute/worker/step_queue.h"

static step_queue_t *make_queue(void)
{
    step_limits_t limits = step_limits_make(4, 8, 20, 4, 10, 50);
    step_queue_t *queue = NULL;
    assert_int_equal(step_queue_create(&limits, &queue), QN_OK);
    return queue;
}

/* Finishes every job with its step number, until the queue is closed. */
static void *work(void *argument)
{
    step_queue_t *queue = argument;
    for (step_job_t *job; (job = step_queue_take(queue, true)) != NULL; step_queue_finish(queue))
        if (!job->skipped) job->result.step = job->plan.step;
    return NULL;
}

static void wait_for_result(step_queue_t *queue)
{
    struct pollfd fd = {.fd = step_queue_fd(queue), .events = POLLIN};
    assert_int_equal(poll(&fd, 1, 10000), 1);
    step_queue_quiet(queue);
}

static void test_step_queue_jobs_come_back_in_order(void **state)
{
    (void)state;
    step_queue_t *queue = make_queue();
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, work, queue), 0);
    uint64_t sent = 0, got = 0;
    while (got < 2000) {
        step_job_t *job;
        while (sent < 2000 && (job = step_queue_vacant(queue)) != NULL) {
            job->plan.step = ++sent;
            *(uint64_t *)qn_arena_alloc(&job->arena, 8, 8) = sent;
            step_queue_submit(queue);
        }
        assert_in_range(step_queue_depth(queue), 0, STEP_QUEUE_JOBS);
        if (!step_queue_finished(queue)) wait_for_result(queue);
        while ((job = step_queue_finished(queue)) != NULL) {
            assert_int_equal(job->result.step, ++got);
            step_queue_release(queue);
        }
    }
    step_queue_close(queue);
    pthread_join(thread, NULL);
    step_queue_destroy(&queue);
    assert_null(queue);
}

static void test_step_queue_full_has_no_vacancy(void **state)
{
    (void)state;
    step_queue_t *queue = make_queue();
    for (int i = 0; i < STEP_QUEUE_JOBS; i++) {
        assert_non_null(step_queue_vacant(queue));
        step_queue_submit(queue);
    }
    assert_null(step_queue_vacant(queue));
    assert_null(step_queue_finished(queue));
    assert_non_null(step_queue_take(queue, true));
    step_queue_finish(queue);
    assert_null(step_queue_vacant(queue)); /* finished, but the loop has not released it */
    assert_non_null(step_queue_finished(queue));
    step_queue_release(queue);
    assert_non_null(step_queue_vacant(queue));
    step_queue_close(queue);
    assert_null(step_queue_take(queue, true));
    step_queue_destroy(&queue);
}

static void test_step_queue_discard_skips_what_has_not_begun(void **state)
{
    (void)state;
    step_queue_t *queue = make_queue();
    for (int i = 0; i < 3; i++) {
        assert_non_null(step_queue_vacant(queue));
        step_queue_submit(queue);
    }
    step_job_t *running = step_queue_take(queue, true);
    assert_false(running->skipped);
    step_queue_discard(queue);
    step_queue_finish(queue);
    for (int i = 0; i < 2; i++) {
        assert_true(step_queue_take(queue, true)->skipped);
        step_queue_finish(queue);
    }
    assert_false(step_queue_finished(queue)->skipped);
    for (int i = 0; i < 3; i++)
        step_queue_release(queue);
    step_job_t *fresh = step_queue_vacant(queue);
    assert_false(fresh->skipped);
    step_queue_submit(queue);
    assert_false(step_queue_take(queue, true)->skipped);
    step_queue_finish(queue);
    step_queue_destroy(&queue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_queue_jobs_come_back_in_order),
        cmocka_unit_test(test_step_queue_full_has_no_vacancy),
        cmocka_unit_test(test_step_queue_discard_skips_what_has_not_begun),
    };
    return cmocka_run_group_tests_name("step_queue", tests, NULL, NULL);
}
