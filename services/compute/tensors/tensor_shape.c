/* What is this?      What an operation on pieces gives: shapes, and what is refused.
 * State owned:       none.
 * Must never:        let a task begin whose result would not be that of the whole tensor.
 * Read next:         tensor_task.h, tensor_task.c (how it is done). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "services/compute/tensors/tensor_task.h"

#define WORK_MAX (UINT64_C(1) << 36) /* multiplications of one call: seconds of a core */

static const char *const NAMES[TENSOR_OPERATIONS] = {
    [TENSOR_MATMUL] = "matmul",   [TENSOR_ADD] = "add",         [TENSOR_MUL] = "mul",
    [TENSOR_SOFTMAX] = "softmax", [TENSOR_RMSNORM] = "rmsnorm", [TENSOR_LAYERNORM] = "layernorm",
    [TENSOR_SILU] = "silu",       [TENSOR_GELU] = "gelu",       [TENSOR_GELU_TANH] = "gelu_tanh",
    [TENSOR_RELU] = "relu",
};

const char *tensor_operation_name(tensor_operation_t operation) { return NAMES[operation]; }

bool tensor_operation_find(const char *name, tensor_operation_t *ret_operation)
{
    for (unsigned i = 0; i < TENSOR_OPERATIONS; i++)
        if (strcmp(NAMES[i], name) == 0) {
            *ret_operation = (tensor_operation_t)i;
            return true;
        }
    return false;
}

static bool is_row_wise(tensor_operation_t operation)
{
    return operation == TENSOR_SOFTMAX || operation == TENSOR_RMSNORM || operation == TENSOR_LAYERNORM;
}

static uint32_t last_of(const tensor_shape_t *shape) { return shape->sizes[shape->rank - 1]; }

static void show(const tensor_shape_t *shape, char *ret_text, size_t size)
{
    size_t used = 0;
    ret_text[0] = '\0';
    for (uint32_t i = 0; i < shape->rank && used < size; i++)
        used += (size_t)snprintf(ret_text + used, size - used, "%s%" PRIu32, i ? ", " : "", shape->sizes[i]);
}

/* As numpy: the sizes of `with`, from the last, are those of `in`, or 1. */
static bool broadcasts(const tensor_shape_t *with, const tensor_shape_t *in)
{
    if (with->rank > in->rank) return false;
    for (uint32_t i = 1; i <= with->rank; i++) {
        uint32_t size = with->sizes[with->rank - i];
        if (size != 1 && size != in->sizes[in->rank - i]) return false;
    }
    return true;
}

static qn_err_t check_with(const tensor_task_t *task)
{
    const tensor_shape_t *in = &task->in->shape, *with = task->with ? &task->with->shape : NULL;
    char in_text[96], with_text[96];
    bool good = true;
    show(in, in_text, sizeof in_text);
    switch (task->operation) {
    case TENSOR_MATMUL: good = with && with->rank == 2 && with->sizes[0] == last_of(in); break;
    case TENSOR_ADD:
    case TENSOR_MUL: good = with && broadcasts(with, in); break;
    case TENSOR_RMSNORM:
    case TENSOR_LAYERNORM: good = !with || (with->rank == 1 && with->sizes[0] == last_of(in)); break;
    default: good = !with; break;
    }
    if (good) return QN_OK;
    if (!with) return qn_fail(QN_ERR_INVALID, "with: %s needs a second tensor", NAMES[task->operation]);
    show(with, with_text, sizeof with_text);
    return qn_fail(QN_ERR_INVALID, "with: [%s] does not suit %s of [%s]", with_text, NAMES[task->operation], in_text);
}

static qn_err_t check_split(const tensor_task_t *task)
{
    const tensor_t *in = task->in;
    bool along_last = in->split_dim == in->shape.rank - 1 && in->splits > 1;
    if (along_last && is_row_wise(task->operation))
        return qn_fail(QN_ERR_INVALID,
                       "operation: %s needs whole rows, and the last dimension is split; split another dimension",
                       NAMES[task->operation]);
    if (along_last && task->operation == TENSOR_MATMUL && task->join == TENSOR_GATHER)
        return qn_fail(QN_ERR_INVALID,
                       "gather: the last dimension is split, so each piece gives a part of the sum; use "
                       "reduce \"sum\"");
    for (uint32_t i = 1; i < task->piece_count && task->join == TENSOR_SUM; i++)
        if (memcmp(&task->piece_shape[i], &task->piece_shape[0], sizeof task->piece_shape[0]) != 0)
            return qn_fail(QN_ERR_INVALID, "reduce: the pieces are not of one size, so they cannot be added");
    return QN_OK;
}

static void shape_piece(tensor_task_t *task, uint32_t i)
{
    const tensor_t *in = task->in;
    uint32_t size;
    tensor_piece(in, task->pieces[i], &size);
    task->piece_shape[i] = in->shape;
    task->piece_shape[i].sizes[in->split_dim] = size;
    if (task->operation == TENSOR_MATMUL) task->piece_shape[i].sizes[in->shape.rank - 1] = last_of(&task->with->shape);
}

qn_err_t tensor_task_shape(tensor_task_t *task, tensor_shape_t *ret_shape)
{
    uint64_t total = 0, work = 0;
    qn_err_t err = check_with(task);
    if (err) return err;
    for (uint32_t i = 0; i < task->piece_count; i++) {
        shape_piece(task, i);
        uint64_t count = tensor_count(&task->piece_shape[i]);
        if (count == 0)
            return qn_fail(QN_ERR_LIMIT, "operation: its result has more than %u numbers", TENSOR_ELEMENTS_MAX);
        task->piece_offset[i] = total;
        total += count;
        work += count * (task->operation == TENSOR_MATMUL ? last_of(&task->in->shape) : 1);
    }
    if (work > WORK_MAX)
        return qn_fail(QN_ERR_LIMIT, "operation: %" PRIu64 " multiplications are more than the %" PRIu64 " of one call",
                       work, WORK_MAX);
    if (total > TENSOR_ELEMENTS_MAX)
        return qn_fail(QN_ERR_LIMIT, "operation: its result has more than %u numbers", TENSOR_ELEMENTS_MAX);
    if ((err = check_split(task))) return err;
    *ret_shape = task->piece_shape[0];
    if (task->join == TENSOR_APART) *ret_shape = (tensor_shape_t){.rank = 1, .sizes = {(uint32_t)total}};
    for (uint32_t i = 1; i < task->piece_count && task->join == TENSOR_GATHER; i++)
        ret_shape->sizes[task->in->split_dim] += task->piece_shape[i].sizes[task->in->split_dim];
    return QN_OK;
}
