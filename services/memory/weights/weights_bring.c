/* What is this?      The bytes of a chunk of a tensor: read from its file or dummy, widened, transposed, packed.
 * State owned:       none; buffers belong to the thread that fills.
 * Must never:        touch a file through its mapping (SIGBUS when it shrinks); let a chunk depend on another.
 * Read next:         kernels/weight_layout.h, which packs; weights_fill.c, which hands out chunks. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/assert.h"
#include "services/memory/weights/weights_internal.h"
#include "services/memory/weights/weights_number.h"

/* One read into the region: large enough that a thread seldom meets another, small enough to be cancelled soon. */
#define COPY_BYTES ((uint64_t)8 << 20)
/* One read to be converted: it, and what becomes of it, stay in a core's second-level cache. */
#define CONVERT_BYTES ((uint64_t)256 << 10)
/* Widened outputs of a transposed source, which is read from its beginning for each chunk. */
#define TURN_BYTES ((uint64_t)16 << 20)
#define TURN_TILE 16

/* ---- how much at a time ---- */

static uint64_t element_bytes(const weights_origin_t *origin) { return safetensors_dtype_bytes(origin->dtype); }

/* The bytes of the source are those of the region. */
static bool is_copied(const weights_t *weights, size_t tensor)
{
    const weights_origin_t *origin = &weights->origins[tensor];
    qn_scalar_t scalar = weights->tensors[tensor].scalar;
    return weights->tensors[tensor].layout == QN_LAYOUT_ROWS && !origin->transposed &&
           origin->dtype == (scalar == QN_SCALAR_F32 ? SAFETENSORS_F32 : SAFETENSORS_BF16);
}

uint64_t weights_chunk_outputs(const weights_t *weights, size_t tensor)
{
    const weights_origin_t *origin = &weights->origins[tensor];
    uint64_t row_bytes = origin->inputs * element_bytes(origin), count;
    if (is_copied(weights, tensor)) return COPY_BYTES / row_bytes ? COPY_BYTES / row_bytes : 1;
    if (origin->transposed)
        count = TURN_BYTES / (origin->inputs * sizeof(float));
    else
        count = CONVERT_BYTES / row_bytes;
    count = count / QN_PANEL_ROWS * QN_PANEL_ROWS;
    return count ? count : QN_PANEL_ROWS;
}

void weights_chunk_place(const weights_t *weights, const weights_chunk_t *chunk, uint64_t *ret_offset,
                         uint64_t *ret_bytes)
{
    const weights_tensor_t *tensor = &weights->tensors[chunk->tensor];
    uint64_t inputs = weights->origins[chunk->tensor].inputs, unit = 1, each;
    if (tensor->layout == QN_LAYOUT_PANELS) {
        unit = QN_PANEL_ROWS;
        each = qn_panel_bytes(tensor->scalar, tensor->group, inputs);
    } else
        each = inputs * qn_scalar_bytes(tensor->scalar);
    *ret_offset = chunk->first / unit * each;
    *ret_bytes = (chunk->count + unit - 1) / unit * each;
}

/* Rows of a transposed source that are read at a time. */
static uint64_t turned_rows(const weights_origin_t *origin)
{
    uint64_t rows = CONVERT_BYTES / (origin->source_outputs * element_bytes(origin));
    return rows ? rows : 1;
}

/* The first chunk of a tensor is its largest. */
static uint64_t largest_chunk(const weights_t *weights, size_t tensor)
{
    uint64_t count = weights_chunk_outputs(weights, tensor), outputs = weights->origins[tensor].outputs;
    return count < outputs ? count : outputs;
}

uint64_t weights_chunk_bytes_max(const weights_t *weights)
{
    uint64_t most = 0;
    for (size_t i = 0; i < weights->count; i++) {
        uint64_t offset, bytes;
        weights_chunk_place(weights, &(weights_chunk_t){i, 0, largest_chunk(weights, i)}, &offset, &bytes);
        if (bytes > most) most = bytes;
    }
    return most;
}

static void measure_buffers(const weights_t *weights, size_t tensor, uint64_t *raw, uint64_t *rows)
{
    const weights_origin_t *origin = &weights->origins[tensor];
    uint64_t raw_bytes = 0, row_count = 0;
    if (origin->transposed) {
        raw_bytes = turned_rows(origin) * origin->source_outputs * element_bytes(origin);
        row_count = largest_chunk(weights, tensor);
    } else if (!is_copied(weights, tensor)) {
        raw_bytes = largest_chunk(weights, tensor) * origin->inputs * element_bytes(origin);
        row_count = QN_PANEL_ROWS;
    }
    if (raw_bytes > *raw) *raw = raw_bytes;
    if (row_count * origin->inputs > *rows) *rows = row_count * origin->inputs;
}

qn_err_t weights_buffers_make(const weights_t *weights, weights_buffers_t *ret_buffers)
{
    uint64_t raw = 1, rows = 1;
    for (size_t i = 0; i < weights->count; i++)
        measure_buffers(weights, i, &raw, &rows);
    *ret_buffers = (weights_buffers_t){.raw = malloc(raw), .rows = malloc(rows * sizeof(float))};
    if (!ret_buffers->raw || !ret_buffers->rows)
        return qn_fail(QN_ERR_NO_MEMORY, "weights: no memory for the buffers of a thread");
    return QN_OK;
}

void weights_buffers_free(weights_buffers_t *buffers)
{
    free(buffers->raw);
    free(buffers->rows);
}

/* ---- elements of a source ---- */

static const char *path_of(const weights_t *weights, const safetensors_tensor_t *source)
{
    return safetensors_file_path(weights->checkpoint, source->file_index);
}

static qn_err_t read_bytes(const weights_t *weights, const safetensors_tensor_t *source, uint64_t offset,
                           uint64_t bytes, uint8_t *target)
{
    int fd = safetensors_file_fd(weights->checkpoint, source->file_index);
    for (uint64_t done = 0; done < bytes;) {
        ssize_t got = pread(fd, target + done, bytes - done, (off_t)(source->file_offset + offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            return qn_fail(QN_ERR_IO, "%s: tensor '%s': %s", path_of(weights, source), source->name,
                           got < 0 ? strerror(errno) : "the file became shorter");
        done += (uint64_t)got;
    }
    return QN_OK;
}

static qn_err_t fail_not_finite(const weights_t *weights, const safetensors_tensor_t *source, uint64_t element)
{
    uint64_t width = source->rank == 2 && source->shape[1] ? source->shape[1] : 1;
    return qn_fail(QN_ERR_INVALID,
                   "%s: tensor '%s' holds a NaN or an infinite number in row %" PRIu64 ", column %" PRIu64
                   " (quintet model check counts them all): download the file again",
                   path_of(weights, source), source->name, element / width, element % width);
}

/* Reads and looks at a piece while it is in the cache: a number that is none would make every answer none. */
static qn_err_t read_source(const weights_t *weights, size_t tensor, uint64_t first, uint64_t count, uint8_t *target)
{
    const safetensors_tensor_t *source = safetensors_at(weights->checkpoint, weights->origins[tensor].source);
    uint64_t each = safetensors_dtype_bytes(source->dtype), most = CONVERT_BYTES / each;
    for (uint64_t done = 0; done < count;) {
        uint64_t piece = count - done < most ? count - done : most;
        uint8_t *at = target + done * each;
        qn_err_t err = read_bytes(weights, source, (first + done) * each, piece * each, at);
        if (err) return err;
        uint64_t bad = weights_number_not_finite(source->dtype, at, piece);
        if (bad < piece) return fail_not_finite(weights, source, first + done + bad);
        done += piece;
    }
    return QN_OK;
}

/* splitmix64 (Steele, Lea, Flood 2014) of a counter: element i of a tensor is the same whoever makes it. */
static uint64_t mix_counter(uint64_t value)
{
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

static uint16_t round_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); /* nearest, ties to even; finite values only */
}

static bool is_norm(qn_tensor_role_t role)
{
    return role == QN_TENSOR_ATTENTION_NORM || role == QN_TENSOR_MLP_NORM || role == QN_TENSOR_FINAL_NORM ||
           role == QN_TENSOR_Q_NORM || role == QN_TENSOR_K_NORM || role == QN_TENSOR_POST_ATTENTION_NORM ||
           role == QN_TENSOR_POST_MLP_NORM;
}

weights_invention_t weights_invention(const weights_t *weights, size_t tensor)
{
    return (weights_invention_t){.repeated = is_norm(weights->origins[tensor].role),
                                 .value = round_bf16(weights->dummy_norm),
                                 .stream = mix_counter(weights->seed ^ mix_counter(tensor))};
}

/* Four neighbours share a random word, 16 bits each -> (-1, 1) -> standard deviation 0.02, since a uniform on (-a, a)
 * has a / sqrt 3. */
static void draw_dummies(const weights_t *weights, size_t tensor, uint64_t first, uint64_t count, uint8_t *target)
{
    weights_invention_t how = weights_invention(weights, tensor);
    uint64_t bits = mix_counter(how.stream + first / 4);
    for (uint64_t i = first; i < first + count; i++) {
        if (i % 4 == 0) bits = mix_counter(how.stream + i / 4);
        float uniform = ((float)(int32_t)(bits >> 16 * (i % 4) & 0xffff) - 32767.5f) * 0x1p-15f;
        uint16_t value = how.repeated ? how.value : round_bf16(uniform * 0.034641016f);
        memcpy(target + 2 * (i - first), &value, sizeof value);
    }
}

/* Elements [first, first + count) of the source as they are. */
static qn_err_t fetch(const weights_t *weights, size_t tensor, uint64_t first, uint64_t count, uint8_t *target)
{
    if (!weights->dummy) return read_source(weights, tensor, first, count, target);
    draw_dummies(weights, tensor, first, count, target);
    return QN_OK;
}

/* ---- into the format ---- */

static void store_rows(const weights_tensor_t *tensor, const float *values, uint64_t count, uint8_t *target)
{
    if (tensor->scalar == QN_SCALAR_F32) {
        memcpy(target, values, count * sizeof *values);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint32_t bits; /* of a widened bf16: nothing to round */
        memcpy(&bits, &values[i], sizeof bits);
        uint16_t half = (uint16_t)(bits >> 16);
        memcpy(target + 2 * i, &half, sizeof half);
    }
}

/* An infinite scale is what packing leaves of numbers near the greatest that f32 has. */
static bool has_finite_scales(const weights_tensor_t *tensor, uint64_t inputs, const uint8_t *panel)
{
    uint64_t at = qn_panel_scales(tensor->scalar, tensor->group, inputs);
    if (tensor->scalar == QN_SCALAR_INT8) {
        for (uint64_t i = 0; i < QN_PANEL_ROWS; i++) {
            uint32_t bits;
            memcpy(&bits, panel + at + i * sizeof bits, sizeof bits);
            if ((bits & 0x7f800000u) == 0x7f800000u) return false;
        }
        return true;
    }
    for (uint64_t i = 0; i < (inputs + tensor->group - 1) / tensor->group * QN_PANEL_ROWS; i++) {
        uint16_t bits;
        memcpy(&bits, panel + at + i * sizeof bits, sizeof bits);
        if ((bits & 0x7f80) == 0x7f80) return false;
    }
    return true;
}

/* `count` outputs from `first` on, whose rows are `values`. */
static qn_err_t store(const weights_t *weights, const weights_chunk_t *chunk, const float *values, uint8_t *target)
{
    const weights_tensor_t *tensor = &weights->tensors[chunk->tensor];
    const weights_origin_t *origin = &weights->origins[chunk->tensor];
    if (tensor->layout == QN_LAYOUT_ROWS) {
        store_rows(tensor, values, chunk->count * origin->inputs, target);
        return QN_OK;
    }
    uint64_t panels = qn_panel_count(chunk->count);
    uint64_t each = qn_panel_bytes(tensor->scalar, tensor->group, origin->inputs);
    qn_weight_pack(tensor->scalar, tensor->group, origin->outputs, origin->inputs, chunk->first / QN_PANEL_ROWS, panels,
                   values, target);
    if (tensor->scalar != QN_SCALAR_INT8 && tensor->scalar != QN_SCALAR_INT4) return QN_OK;
    for (uint64_t i = 0; i < panels; i++) {
        if (has_finite_scales(tensor, origin->inputs, target + i * each)) continue;
        const safetensors_tensor_t *source = safetensors_at(weights->checkpoint, origin->source);
        return qn_fail(QN_ERR_INVALID,
                       "%s: tensor '%s' holds numbers that are too great for a quantised form; set model.quantize to "
                       "none",
                       path_of(weights, source), source->name);
    }
    return QN_OK;
}

/* Reads the whole chunk, then widens and stores one panel's rows at a time. */
static qn_err_t convert(const weights_t *weights, const weights_chunk_t *chunk, const weights_buffers_t *buffers,
                        uint8_t *target)
{
    const weights_origin_t *origin = &weights->origins[chunk->tensor];
    uint64_t inputs = origin->inputs, end = chunk->first + chunk->count;
    qn_err_t err = fetch(weights, chunk->tensor, (origin->source_first + chunk->first) * inputs, chunk->count * inputs,
                         buffers->raw);
    for (uint64_t first = chunk->first; !err && first < end; first += QN_PANEL_ROWS) {
        weights_chunk_t part = {chunk->tensor, first, end - first < QN_PANEL_ROWS ? end - first : QN_PANEL_ROWS};
        uint64_t offset, base, bytes;
        weights_chunk_place(weights, &part, &offset, &bytes);
        weights_chunk_place(weights, chunk, &base, &bytes);
        weights_number_widen(origin->dtype, buffers->raw + (first - chunk->first) * inputs * element_bytes(origin),
                             part.count * inputs, buffers->rows);
        err = store(weights, &part, buffers->rows, target + (offset - base));
    }
    return err;
}

/* Columns of `rows` rows of the source, each `stride` elements long, become rows of the tensor. A tile of columns is
 * widened at once, and written to as many rows side by side. */
static void turn(const weights_origin_t *origin, const uint8_t *raw, uint64_t rows, uint64_t count, float *values)
{
    uint64_t stride = origin->source_outputs * element_bytes(origin);
    for (uint64_t first = 0; first < count; first += TURN_TILE) {
        uint64_t wide = count - first < TURN_TILE ? count - first : TURN_TILE;
        for (uint64_t m = 0; m < rows; m++) {
            float tile[TURN_TILE];
            weights_number_widen(origin->dtype, raw + m * stride + first * element_bytes(origin), wide, tile);
            for (uint64_t o = 0; o < wide; o++)
                values[(first + o) * origin->inputs + m] = tile[o];
        }
    }
}

/* Reads the source block by block, in whole rows: the outputs of the chunk are columns of it. */
static qn_err_t convert_turned(const weights_t *weights, const weights_chunk_t *chunk, const weights_buffers_t *buffers,
                               uint8_t *target)
{
    const weights_origin_t *origin = &weights->origins[chunk->tensor];
    uint64_t step = turned_rows(origin), column = origin->source_first + chunk->first;
    qn_err_t err = QN_OK;
    for (uint64_t m = 0; !err && m < origin->inputs; m += step) {
        uint64_t rows = origin->inputs - m < step ? origin->inputs - m : step;
        err = fetch(weights, chunk->tensor, m * origin->source_outputs, rows * origin->source_outputs, buffers->raw);
        if (!err) turn(origin, buffers->raw + column * element_bytes(origin), rows, chunk->count, buffers->rows + m);
    }
    return err ? err : store(weights, chunk, buffers->rows, target);
}

qn_err_t weights_bring(const weights_t *weights, const weights_chunk_t *chunk, const weights_buffers_t *buffers,
                       uint8_t *target)
{
    const weights_origin_t *origin = &weights->origins[chunk->tensor];
    if (is_copied(weights, chunk->tensor))
        return fetch(weights, chunk->tensor, (origin->source_first + chunk->first) * origin->inputs,
                     chunk->count * origin->inputs, target);
    if (origin->transposed) return convert_turned(weights, chunk, buffers, target);
    return convert(weights, chunk, buffers, target);
}
