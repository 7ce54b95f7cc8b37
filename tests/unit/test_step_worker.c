/* The worker thread with a real executor: plans go in, results come back in order, and stopping waits for the step. */
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>

#include <cmocka.h>

#include "services/compute/worker/step_worker.h"
#include "tests/golden/engine.h"

static const uint32_t PROMPT[3] = {5, 6, 7};

/* Step 1 sets slot 0 and runs the prompt; later ones decode from the slot. */
static void submit(engine_t *engine, step_queue_t *queue, uint64_t step)
{
    step_job_t *job = step_queue_vacant(queue);
    assert_non_null(job);
    step_set_t *set = qn_arena_zalloc(&job->arena, 1, sizeof *set);
    step_run_t *run = qn_arena_zalloc(&job->arena, 1, sizeof *run);
    qn_table_entry_t *entry = qn_arena_zalloc(&job->arena, 1, sizeof *entry);
    *set = (step_set_t){.request = 4, .prompt_tokens = 3, .sampling = engine_greedy()};
    *run = (step_run_t){.position = step == 1 ? 0 : (uint32_t)step + 1,
                        .tokens = step == 1 ? 3 : 1,
                        .from_slot = step > 1,
                        .sample = true};
    job->plan = (step_plan_t){.step = step, .runs = run, .run_count = 1, .ids = PROMPT, .id_count = 3};
    if (step == 1) job->plan.sets = set, job->plan.set_count = 1, job->plan.blocks = entry, job->plan.block_count = 1;
    const char *param;
    ENGINE_OK(slot_book_admit(engine->book, &job->plan, &param));
    step_queue_submit(queue);
}

static void test_step_worker_runs_plans_in_order(void **state)
{
    (void)state;
    engine_t *engine = engine_open((engine_options_t){.directory = "tests/golden/llama3"});
    engine_sequence_t *want = calloc(1, sizeof *want);
    *want = (engine_sequence_t){.prompt = PROMPT, .prompt_tokens = 3, .max_tokens = 8, .sampling = engine_greedy()};
    engine_run(engine, want, 1);
    step_queue_t *queue;
    step_worker_t *worker;
    ENGINE_OK(step_queue_create(&engine->limits, &queue));
    ENGINE_OK(step_worker_start(queue, engine->executor, &(step_worker_options_t){.steps_in_flight = 1}, &worker));
    for (uint64_t step = 1, submitted = 0; step <= 8;) {
        while (submitted < 8 && step_queue_depth(queue) < 2)
            submit(engine, queue, ++submitted);
        struct pollfd fd = {.fd = step_queue_fd(queue), .events = POLLIN};
        assert_int_equal(poll(&fd, 1, 10000), 1);
        step_queue_quiet(queue);
        for (step_job_t *job; (job = step_queue_finished(queue)) != NULL; step_queue_release(queue), step++) {
            assert_int_equal(job->result.step, step);
            assert_int_equal(job->result.token_count, 1);
            assert_int_equal(job->result.tokens[0].id, want->ids[step - 1]);
            assert_true(job->result.end_ns > job->result.begin_ns);
        }
    }
    step_worker_stop(&worker);
    assert_null(worker);
    step_worker_stop(&worker);
    step_queue_destroy(&queue);
    engine_close(engine);
    free(want);
}

static void test_step_worker_stop_finishes_the_running_step(void **state)
{
    (void)state;
    engine_t *engine = engine_open((engine_options_t){.directory = "tests/golden/llama3"});
    step_queue_t *queue;
    step_worker_t *worker;
    ENGINE_OK(step_queue_create(&engine->limits, &queue));
    ENGINE_OK(step_worker_start(queue, engine->executor, &(step_worker_options_t){.steps_in_flight = 1}, &worker));
    submit(engine, queue, 1);
    struct pollfd fd = {.fd = step_queue_fd(queue), .events = POLLIN};
    assert_int_equal(poll(&fd, 1, 10000), 1);
    submit(engine, queue, 2);
    step_worker_stop(&worker); /* whether the second began or not: no thread touches anything now */
    assert_non_null(step_queue_finished(queue));
    assert_in_range(step_queue_depth(queue), 1, 2);
    step_queue_destroy(&queue);
    engine_close(engine);
}

typedef struct {
    step_queue_t *queue;
    uint64_t finished; /* jobs that were, when it ran; UINT64_MAX: it was cancelled */
    atomic_bool ran;
} noted_t;

static void note(void *context, executor_t *executor)
{
    noted_t *noted = context;
    uint64_t finished = 0;
    for (; executor && step_queue_finished(noted->queue); step_queue_release(noted->queue))
        finished++; /* the loop's side, which waits for `ran` meanwhile */
    noted->finished = executor ? finished : UINT64_MAX;
    atomic_store(&noted->ran, true);
}

static void test_step_worker_errand_runs_after_the_jobs_before_it(void **state)
{
    (void)state;
    engine_t *engine = engine_open((engine_options_t){.directory = "tests/golden/llama3"});
    step_queue_t *queue;
    step_worker_t *worker;
    noted_t first = {.finished = 0}, second = first;
    ENGINE_OK(step_queue_create(&engine->limits, &queue));
    first.queue = second.queue = queue;
    submit(engine, queue, 1);
    submit(engine, queue, 2);
    assert_true(step_queue_send(queue, (step_errand_t){note, &first}));
    submit(engine, queue, 3);
    ENGINE_OK(step_worker_start(queue, engine->executor, &(step_worker_options_t){.steps_in_flight = 1}, &worker));
    while (!atomic_load(&first.ran))
        sched_yield();
    assert_int_equal(first.finished, 2);
    assert_true(step_queue_send(queue, (step_errand_t){note, &second}));
    while (!atomic_load(&second.ran))
        sched_yield();
    assert_int_equal(second.finished, 1);
    step_worker_stop(&worker);
    step_queue_destroy(&queue);
    engine_close(engine);
}

static void test_step_worker_errand_that_never_ran_is_cancelled(void **state)
{
    (void)state;
    engine_t *engine = engine_open((engine_options_t){.directory = "tests/golden/llama3"});
    step_queue_t *queue;
    step_worker_t *worker;
    noted_t noted[STEP_QUEUE_ERRANDS + 1] = {0};
    ENGINE_OK(step_queue_create(&engine->limits, &queue));
    for (unsigned i = 0; i < STEP_QUEUE_ERRANDS; i++)
        assert_true(step_queue_send(queue, (step_errand_t){note, &noted[i]}));
    assert_false(step_queue_send(queue, (step_errand_t){note, &noted[STEP_QUEUE_ERRANDS]}));
    step_queue_close(queue);
    ENGINE_OK(step_worker_start(queue, engine->executor, &(step_worker_options_t){.steps_in_flight = 1}, &worker));
    step_worker_stop(&worker);
    for (unsigned i = 0; i < STEP_QUEUE_ERRANDS; i++)
        assert_true(noted[i].finished == UINT64_MAX);
    assert_false(step_queue_send(queue, (step_errand_t){note, &noted[0]}));
    step_queue_destroy(&queue);
    engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_worker_runs_plans_in_order),
        cmocka_unit_test(test_step_worker_stop_finishes_the_running_step),
        cmocka_unit_test(test_step_worker_errand_runs_after_the_jobs_before_it),
        cmocka_unit_test(test_step_worker_errand_that_never_ran_is_cancelled),
    };
    return cmocka_run_group_tests_name("step_worker", tests, NULL, NULL);
}
