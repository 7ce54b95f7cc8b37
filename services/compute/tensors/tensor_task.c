/* What is this?      Tasks on tensors, slice by slice.
 * State owned:       what a task works on while it runs.
 * Must never:        take longer than a millisecond or so in a slice (one row at least), or allocate in one.
 * Read next:         tensor_task.h, tensor_shape.c (what may begin), kernels/kernels.h. */
#include "services/compute/tensors/tensor_task.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "kernels/weight_layout.h"

#define SLICE_NUMBERS (UINT64_C(1) << 17) /* filled, copied, or looked at in a slice */
#define SLICE_WORK (UINT64_C(1) << 23)    /* multiplications in a slice */
#define SLICE_ROWS_MAX 4096u

enum { STAGE_WITH, STAGE_ZERO, STAGE_WEIGHT, STAGE_ROWS, STAGE_SUMMARY, STAGE_DONE };

/* ---- numbers ---- */

float tensor_random(uint64_t seed, uint64_t i)
{
    uint64_t x = seed * UINT64_C(0x9e3779b97f4a7c15) + (i + 1) * UINT64_C(0xd1342543de82ef95);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    x ^= x >> 31;
    return (float)(x >> 40) * 0x1p-23f - 1.0f;
}

static float rounded(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return value;
    bits = (bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

static void round_all(float *values, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        values[i] = rounded(values[i]);
}

/* A slice of a fill from `at` on; true: all of it. */
static bool fill_slice(tensor_t *tensor, tensor_fill_t fill, uint64_t seed, uint64_t *at)
{
    uint64_t end = *at + SLICE_NUMBERS < tensor->count ? *at + SLICE_NUMBERS : tensor->count;
    for (uint64_t i = *at; i < end && fill != TENSOR_FILL_VALUES; i++)
        tensor->values[i] = fill == TENSOR_FILL_RANDOM   ? tensor_random(seed, i)
                            : fill == TENSOR_FILL_ARANGE ? (float)i
                                                         : 0;
    if (tensor->bf16) round_all(tensor->values + *at, end - *at);
    *at = end;
    return end == tensor->count;
}

/* ---- where rows are ---- */

static uint32_t last_of(const tensor_shape_t *shape) { return shape->sizes[shape->rank - 1]; }

/* Numbers behind one index of the split dimension. */
static uint64_t inner_of(const tensor_shape_t *shape, uint32_t dim)
{
    uint64_t inner = 1;
    for (uint32_t i = dim + 1; i < shape->rank; i++)
        inner *= shape->sizes[i];
    return inner;
}

/* Row `row` of a piece [first, first + size) of `dim`: where it begins in a tensor of `shape`. */
static uint64_t row_offset(const tensor_shape_t *shape, uint32_t dim, uint32_t first, uint32_t size, uint64_t row)
{
    uint32_t last = last_of(shape);
    if (dim == shape->rank - 1) return row * last + first;
    uint64_t inner_rows = inner_of(shape, dim) / last;
    uint64_t outer = row / (size * inner_rows), within = row % (size * inner_rows);
    return ((outer * shape->sizes[dim] + first) * inner_rows + within) * last;
}

static uint64_t rows_of(const tensor_shape_t *shape)
{
    uint64_t rows = 1;
    for (uint32_t i = 0; i + 1 < shape->rank; i++)
        rows *= shape->sizes[i];
    return rows;
}

/* Where number `column` of the row at `offset` of `in` finds its partner in `with`, broadcast as numpy does. */
static float partner(const tensor_t *with, const tensor_shape_t *in, uint64_t offset)
{
    uint64_t at = 0, stride = 1;
    for (uint32_t i = 1; i <= in->rank && i <= with->shape.rank; i++) {
        uint32_t size = with->shape.sizes[with->shape.rank - i], index = (uint32_t)(offset % in->sizes[in->rank - i]);
        if (size != 1) at += index * stride;
        stride *= size;
        offset /= in->sizes[in->rank - i];
    }
    return with->values[at];
}

/* ---- operations on `rows` dense rows of x [rows, width] ---- */

static void softmax_row(const float *x, float *y, uint32_t width)
{
    float most = -INFINITY;
    double sum = 0;
    for (uint32_t i = 0; i < width; i++)
        most = x[i] > most || isnan(x[i]) ? x[i] : most;
    for (uint32_t i = 0; i < width; i++)
        sum += y[i] = expf(x[i] - most);
    for (uint32_t i = 0; i < width; i++)
        y[i] = (float)(y[i] / sum);
}

static void normalise(tensor_task_t *self, qn_stream_t *stream, uint32_t rows, uint32_t width)
{
    qn_weight_t weight = {.data = self->weight, .scalar = QN_SCALAR_F32, .layout = QN_LAYOUT_ROWS};
    if (self->operation == TENSOR_RMSNORM)
        qn_launch(&self->kernels, QN_OP_RMSNORM, stream,
                  &(qn_rmsnorm_t){
                      .x = self->x, .weight = weight, .rows = rows, .width = width, .eps = self->eps, .out = self->y});
    else
        qn_launch(&self->kernels, QN_OP_LAYERNORM, stream,
                  &(qn_layernorm_t){
                      .x = self->x, .weight = weight, .rows = rows, .width = width, .eps = self->eps, .out = self->y});
}

static void activate(tensor_task_t *self, qn_stream_t *stream, uint32_t rows, uint32_t width)
{
    qn_activation_t kind = self->operation == TENSOR_SILU        ? QN_ACTIVATION_SILU
                           : self->operation == TENSOR_GELU      ? QN_ACTIVATION_GELU
                           : self->operation == TENSOR_GELU_TANH ? QN_ACTIVATION_GELU_TANH
                                                                 : QN_ACTIVATION_RELU;
    qn_launch(&self->kernels, QN_OP_ACTIVATION, stream,
              &(qn_activate_t){.gate = self->x, .tokens = rows, .width = width, .kind = kind, .out = self->y});
}

static void multiply(tensor_task_t *self, qn_stream_t *stream, uint32_t rows, uint32_t width)
{
    qn_matmul_t arguments = {
        .x = self->x,
        .tokens = rows,
        .inputs = width,
        .parts = {{.weight = {.data = self->weight, .scalar = QN_SCALAR_F32, .layout = QN_LAYOUT_ROWS},
                   .out = self->y,
                   .outputs = last_of(&self->with->shape)}},
        .part_count = 1,
        .scratch = self->scratch,
    };
    qn_launch(&self->kernels, QN_OP_MATMUL, stream, &arguments);
}

static void combine(tensor_task_t *self, uint64_t offset, uint32_t row, uint32_t width)
{
    const float *x = self->x + (uint64_t)row * width;
    float *y = self->y + (uint64_t)row * width;
    for (uint32_t i = 0; i < width; i++) {
        float other = partner(self->with, &self->in->shape, offset + i);
        y[i] = self->operation == TENSOR_ADD ? x[i] + other : x[i] * other;
    }
}

/* ---- stages ---- */

typedef struct {
    uint32_t first, size; /* of the piece, along the split dimension */
    uint32_t width, out_width;
    uint64_t rows;
} piece_t;

static piece_t piece_of(const tensor_task_t *self, uint32_t i)
{
    piece_t piece;
    const tensor_t *in = self->in;
    piece.first = tensor_piece(in, self->pieces[i], &piece.size);
    piece.width = in->split_dim == in->shape.rank - 1 ? piece.size : last_of(&in->shape);
    piece.out_width = last_of(&self->piece_shape[i]);
    piece.rows = rows_of(&self->piece_shape[i]);
    return piece;
}

static uint32_t slice_rows(const tensor_task_t *self, const piece_t *piece)
{
    uint64_t cost = self->operation == TENSOR_MATMUL ? (uint64_t)piece->width * piece->out_width : 64ull * piece->width;
    uint64_t rows = SLICE_WORK / cost;
    uint64_t most = SLICE_NUMBERS / (piece->width > piece->out_width ? piece->width : piece->out_width);
    if (rows > most) rows = most;
    if (rows > SLICE_ROWS_MAX) rows = SLICE_ROWS_MAX;
    return rows ? (uint32_t)rows : 1;
}

/* Lays the right side of a product out as the kernels want it: [outputs, inputs], the inputs of this piece. */
static bool weight_slice(tensor_task_t *self, const piece_t *piece)
{
    uint32_t outputs = last_of(&self->with->shape);
    bool along_last = self->in->split_dim == self->in->shape.rank - 1;
    uint64_t end = self->at + SLICE_NUMBERS / piece->width + 1;
    if (end > outputs) end = outputs;
    for (uint64_t o = self->at; o < end; o++)
        for (uint32_t k = 0; k < piece->width; k++)
            self->weight[o * piece->width + k] =
                self->with->values[(uint64_t)((along_last ? piece->first : 0) + k) * outputs + o];
    self->at = end;
    return end == outputs;
}

/* Of a norm: one for each number of a row. */
static void norm_weight(tensor_task_t *self)
{
    for (uint32_t i = 0; i < last_of(&self->in->shape); i++)
        self->weight[i] = self->with ? self->with->values[i] : 1;
}

/* The result of piece rows [from, from + count) goes where it belongs. */
static void put_rows(tensor_task_t *self, const piece_t *piece, uint64_t from, uint32_t count)
{
    uint32_t joined_first = 0, dim = self->in->split_dim, size = self->piece_shape[self->at_piece].sizes[dim];
    for (uint32_t i = 0; i < self->at_piece; i++)
        joined_first += self->piece_shape[i].sizes[dim];
    for (uint32_t r = 0; r < count; r++) {
        const float *y = self->y + (uint64_t)r * piece->out_width;
        uint64_t at = (from + r) * piece->out_width;
        if (self->join == TENSOR_APART) at += self->piece_offset[self->at_piece];
        if (self->join == TENSOR_GATHER) at = row_offset(&self->out->shape, dim, joined_first, size, from + r);
        float *out = self->out->values + at;
        for (uint32_t i = 0; i < piece->out_width; i++)
            out[i] = self->join == TENSOR_SUM ? out[i] + y[i] : y[i];
        bool final = self->join != TENSOR_SUM || self->at_piece + 1 == self->piece_count;
        if (self->out->bf16 && final) round_all(out, piece->out_width);
    }
    self->moved_bytes += (uint64_t)count * piece->out_width * sizeof(float);
}

static bool rows_slice(tensor_task_t *self, const piece_t *piece, qn_stream_t *stream)
{
    uint64_t left = piece->rows - self->at;
    uint32_t rows = slice_rows(self, piece), dim = self->in->split_dim;
    if (rows > left) rows = (uint32_t)left;
    for (uint32_t r = 0; r < rows; r++) {
        uint64_t offset = row_offset(&self->in->shape, dim, piece->first, piece->size, self->at + r);
        memcpy(self->x + (uint64_t)r * piece->width, self->in->values + offset, piece->width * sizeof(float));
        if (self->operation == TENSOR_ADD || self->operation == TENSOR_MUL) combine(self, offset, r, piece->width);
        if (self->operation == TENSOR_SOFTMAX)
            softmax_row(self->x + (uint64_t)r * piece->width, self->y + (uint64_t)r * piece->width, piece->width);
    }
    self->moved_bytes += (uint64_t)rows * piece->width * sizeof(float);
    if (self->operation == TENSOR_MATMUL)
        multiply(self, stream, rows, piece->width);
    else if (self->operation == TENSOR_RMSNORM || self->operation == TENSOR_LAYERNORM)
        normalise(self, stream, rows, piece->width);
    else if (self->operation >= TENSOR_SILU)
        activate(self, stream, rows, piece->width);
    put_rows(self, piece, self->at, rows);
    self->at += rows;
    return self->at == piece->rows;
}

static void next_piece(tensor_task_t *self)
{
    self->times[self->at_piece].end_ns = self->now_ns();
    self->at = 0;
    self->stage = STAGE_WEIGHT;
    if (++self->at_piece < self->piece_count) return;
    self->at_piece = 0;
    self->stage = STAGE_SUMMARY;
}

/* ---- the summary ---- */

static void summary_begin(tensor_summary_t *summary)
{
    *summary = (tensor_summary_t){.min = INFINITY, .max = -INFINITY};
}

/* mean and std hold sum and sum of squares until summary_end. */
static void summary_add(tensor_summary_t *summary, const float *values, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        double value = values[i];
        summary->nan_count += isnan(values[i]);
        if (isnan(values[i])) continue;
        if (value < summary->min) summary->min = value;
        if (value > summary->max) summary->max = value;
        summary->mean += value;
        summary->std += value * value;
        summary->zeros += value == 0;
    }
}

static void summary_end(tensor_summary_t *summary, uint64_t count)
{
    double numbers = (double)(count - summary->nan_count);
    double mean = summary->mean / numbers, square = summary->std / numbers;
    summary->zeros /= (double)count;
    summary->mean = mean;
    summary->std = sqrt(square > mean * mean ? square - mean * mean : 0);
}

/* Of the whole result, or of one piece after the other. True: all of it. */
static bool summary_slice(tensor_task_t *self)
{
    bool apart = !self->fills && self->join == TENSOR_APART;
    uint32_t i = self->at_piece;
    const float *values = self->out->values + (apart ? self->piece_offset[i] : 0);
    uint64_t count = apart ? tensor_count(&self->piece_shape[i]) : self->out->count;
    uint64_t end = self->at + SLICE_NUMBERS < count ? self->at + SLICE_NUMBERS : count;
    if (self->at == 0) summary_begin(&self->summaries[i]);
    summary_add(&self->summaries[i], values + self->at, end - self->at);
    self->at = end;
    if (end < count) return false;
    summary_end(&self->summaries[i], count);
    self->at = 0;
    return !apart || ++self->at_piece == self->piece_count;
}

/* ---- slices ---- */

static bool fill_task_slice(tensor_task_t *self)
{
    if (self->stage != STAGE_SUMMARY) {
        if (fill_slice(self->out, self->fill, self->seed, &self->at)) {
            self->stage = STAGE_SUMMARY;
            self->at = 0;
        }
        return false;
    }
    return summary_slice(self);
}

bool tensor_task_slice(task_t *task, qn_stream_t *stream)
{
    tensor_task_t *self = (tensor_task_t *)task;
    if (self->fills) return fill_task_slice(self);
    piece_t piece =
        self->stage >= STAGE_WEIGHT && self->stage <= STAGE_ROWS ? piece_of(self, self->at_piece) : (piece_t){0};
    switch (self->stage) {
    case STAGE_WITH:
        if (self->with_random && !fill_slice(self->with, TENSOR_FILL_RANDOM, 1, &self->at)) return false;
        if (self->weight && self->operation != TENSOR_MATMUL) norm_weight(self);
        self->at = 0;
        self->stage = STAGE_ZERO;
        return false;
    case STAGE_ZERO:
        if (self->join == TENSOR_SUM && !fill_slice(self->out, TENSOR_FILL_ZEROS, 0, &self->at)) return false;
        self->at = 0;
        self->stage = STAGE_WEIGHT;
        return false;
    case STAGE_WEIGHT:
        if (self->at == 0) self->times[self->at_piece].begin_ns = self->now_ns();
        if (self->operation == TENSOR_MATMUL && !weight_slice(self, &piece)) return false;
        self->at = 0;
        self->stage = STAGE_ROWS;
        return false;
    case STAGE_ROWS:
        if (rows_slice(self, &piece, stream)) next_piece(self);
        return false;
    default: return summary_slice(self);
    }
}

/* ---- memory ---- */

static void *take(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

static bool take_weight(tensor_task_t *self, const piece_t *piece)
{
    bool norm = self->operation == TENSOR_RMSNORM || self->operation == TENSOR_LAYERNORM;
    size_t numbers = self->operation == TENSOR_MATMUL ? (size_t)piece->width * piece->out_width : piece->width;
    if (!norm && self->operation != TENSOR_MATMUL) return true;
    return (self->weight = take(numbers * sizeof(float))) != NULL;
}

qn_err_t tensor_task_prepare(tensor_task_t *task)
{
    task->task.slice = tensor_task_slice;
    if (task->fills) return QN_OK;
    qn_kernel_case_t shape = {.activations = QN_SCALAR_F32};
    qn_err_t err = qn_kernels_choose("", &shape, qn_kernels_isa() & (QN_ISA_AVX2 | QN_ISA_AVX512), &task->kernels);
    if (err) return err;
    piece_t largest = {0};
    size_t rows = 0, x = 0, y = 0;
    for (uint32_t i = 0; i < task->piece_count; i++) {
        piece_t piece = piece_of(task, i);
        size_t here = slice_rows(task, &piece);
        if (here > rows) rows = here;
        if (here * piece.width > x) x = here * piece.width;
        if (here * piece.out_width > y) y = here * piece.out_width;
        if (piece.width > largest.width) largest = piece;
    }
    task->x = take(x * sizeof(float));
    task->y = take(y * sizeof(float));
    task->scratch = task->operation == TENSOR_MATMUL ? take(qn_matmul_scratch_bytes(rows, largest.width)) : NULL;
    if (!task->x || !task->y || !take_weight(task, &largest) || (task->operation == TENSOR_MATMUL && !task->scratch))
        return qn_fail(QN_ERR_NO_MEMORY, "operation: compute has no memory for it");
    return QN_OK;
}

void tensor_task_fini(tensor_task_t *task)
{
    free(task->x);
    free(task->y);
    free(task->weight);
    free(task->scratch);
    task->x = task->y = task->weight = NULL;
    task->scratch = NULL;
}
