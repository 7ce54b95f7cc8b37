/* Units of services/compute/tensors/ and worker/task_queue.c: pieces, shapes, slices, the queue's order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "services/compute/tensors/tensor_task.h"

static uint64_t now(void)
{
    static uint64_t ns;
    return ++ns;
}

static tensor_shape_t shape_of(uint32_t rank, uint32_t a, uint32_t b, uint32_t c)
{
    return (tensor_shape_t){.rank = rank, .sizes = {a, rank > 1 ? b : 0, rank > 2 ? c : 0}};
}

static void test_tensor_store_is_bounded_in_bytes_and_number(void **state)
{
    (void)state;
    tensor_store_t *store = NULL;
    tensor_shape_t large = shape_of(1, 129, 0, 0), small = shape_of(1, 1, 0, 0);
    assert_int_equal(tensor_store_create(1024, &store), QN_OK);
    assert_non_null(tensor_store_add(store, &large, false, "", 0, 10)); /* 576 bytes, as lines of a cache */
    assert_null(tensor_store_add(store, &large, false, "", 0, 10));
    assert_int_equal(tensor_store_room(store), 448);
    assert_int_equal(tensor_store_expire(store, 9), 10);
    assert_int_equal(tensor_store_expire(store, 10), UINT64_MAX);
    assert_int_equal(tensor_store_room(store), 1024);
    tensor_store_destroy(&store);
    assert_int_equal(tensor_store_create(1 << 20, &store), QN_OK);
    for (int i = 0; i < TENSORS_MAX; i++)
        assert_non_null(tensor_store_add(store, &small, false, "", 0, 10));
    assert_null(tensor_store_add(store, &small, false, "", 0, 10));
    tensor_store_destroy(&store);
}

static void test_tensor_store_shows_no_hidden_ones_and_drops_none_in_use(void **state)
{
    (void)state;
    tensor_store_t *store = NULL;
    tensor_shape_t shape = shape_of(1, 4, 0, 0);
    assert_int_equal(tensor_store_create(1 << 20, &store), QN_OK);
    tensor_t *tensor = tensor_store_add(store, &shape, false, "ann", 0, 10);
    assert_null(tensor_store_find(store, tensor->id));
    tensor->hidden = false;
    assert_ptr_equal(tensor_store_find(store, "t1"), tensor);
    assert_null(tensor_store_find(store, "")); /* nobody split it */
    tensor->was_split = true;
    assert_ptr_equal(tensor_store_find(store, ""), tensor);
    tensor->uses = 1;
    assert_int_equal(tensor_store_expire(store, 100), UINT64_MAX);
    assert_int_equal(tensor_store_count(store), 1);
    tensor_store_destroy(&store);
}

static void test_tensor_count_both_sides_of_its_limit(void **state)
{
    (void)state;
    tensor_shape_t most = shape_of(2, 1 << 12, 1 << 12, 0), over = shape_of(2, (1 << 12) + 1, 1 << 12, 0);
    tensor_shape_t none = shape_of(2, 3, 0, 0), huge = shape_of(3, UINT32_MAX, UINT32_MAX, UINT32_MAX);
    assert_int_equal(tensor_count(&most), TENSOR_ELEMENTS_MAX);
    assert_int_equal(tensor_count(&over), 0);
    assert_int_equal(tensor_count(&none), 0);
    assert_int_equal(tensor_count(&huge), 0);
}

/* A large product: many slices, the same bits as in one piece, and pieces of any size. */
static void multiply(tensor_store_t *store, qn_stream_t *stream, uint32_t dim, uint32_t splits, tensor_join_t join,
                     float *ret_values, unsigned *ret_slices)
{
    tensor_shape_t shape = shape_of(3, 5, 300, 96), square = shape_of(2, 96, 96, 0), out;
    tensor_task_t task = {.now_ns = now, .operation = TENSOR_MATMUL, .join = join, .with_random = true};
    task.in = tensor_store_add(store, &shape, false, "", 0, 1);
    task.with = tensor_store_add(store, &square, false, "", 0, 1);
    for (uint64_t i = 0; i < task.in->count; i++)
        task.in->values[i] = tensor_random(7, i);
    tensor_split(task.in, dim, splits);
    task.piece_count = task.in->splits;
    for (uint32_t i = 0; i < task.piece_count; i++)
        task.pieces[i] = i;
    assert_int_equal(tensor_task_shape(&task, &out), QN_OK);
    task.out = tensor_store_add(store, &out, false, "", 0, 1);
    assert_int_equal(tensor_task_prepare(&task), QN_OK);
    for (*ret_slices = 1; !tensor_task_slice(&task.task, stream); ++*ret_slices)
        assert_true(*ret_slices < 10000);
    memcpy(ret_values, task.out->values, task.out->count * sizeof *ret_values);
    tensor_task_fini(&task);
    tensor_store_expire(store, 1);
}

static void test_tensor_task_pieces_give_the_bits_of_the_whole(void **state)
{
    (void)state;
    static float whole[5 * 300 * 96], pieces[5 * 300 * 96];
    static const struct {
        uint32_t dim, splits;
    } table[] = {{0, 2}, {0, 5}, {1, 7}, {1, 64}};
    tensor_store_t *store = NULL;
    qn_stream_t *stream = NULL;
    unsigned slices;
    assert_int_equal(tensor_store_create(64 << 20, &store), QN_OK);
    assert_int_equal(qn_stream_create(&(qn_stream_options_t){.threads = 2}, &stream), QN_OK);
    multiply(store, stream, 0, 1, TENSOR_GATHER, whole, &slices);
    assert_true(slices > 3);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        multiply(store, stream, table[i].dim, table[i].splits, TENSOR_GATHER, pieces, &slices);
        assert_memory_equal(whole, pieces, sizeof whole);
    }
    multiply(store, stream, 2, 3, TENSOR_SUM, pieces, &slices);
    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++)
        assert_true(whole[i] - pieces[i] < 1e-4f && pieces[i] - whole[i] < 1e-4f);
    qn_stream_destroy(&stream);
    tensor_store_destroy(&store);
}

typedef struct {
    task_t task;
    unsigned left;
} counting_t;

static bool count_down(task_t *task, qn_stream_t *stream)
{
    (void)stream;
    return --((counting_t *)task)->left == 0;
}

static void test_task_queue_runs_in_order_and_is_bounded(void **state)
{
    (void)state;
    task_queue_t *queue = NULL;
    counting_t tasks[TASKS_MAX + 1];
    assert_int_equal(task_queue_create(&queue), QN_OK);
    for (unsigned i = 0; i <= TASKS_MAX; i++) {
        tasks[i] = (counting_t){.task.slice = count_down, .left = 2};
        assert_int_equal(task_queue_add(queue, &tasks[i].task), i < TASKS_MAX);
    }
    assert_false(task_queue_run(queue, NULL));
    assert_true(task_queue_run(queue, NULL));
    assert_ptr_equal(task_queue_finished(queue), &tasks[0].task);
    assert_null(task_queue_finished(queue));
    assert_true(task_queue_add(queue, &tasks[TASKS_MAX].task));
    for (unsigned i = 1; i <= TASKS_MAX; i++)
        assert_ptr_equal(task_queue_withdraw(queue), &tasks[i].task);
    assert_false(task_queue_pending(queue));
    assert_false(task_queue_run(queue, NULL));
    task_queue_destroy(&queue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensor_store_is_bounded_in_bytes_and_number),
        cmocka_unit_test(test_tensor_store_shows_no_hidden_ones_and_drops_none_in_use),
        cmocka_unit_test(test_tensor_count_both_sides_of_its_limit),
        cmocka_unit_test(test_tensor_task_pieces_give_the_bits_of_the_whole),
        cmocka_unit_test(test_task_queue_runs_in_order_and_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
