/* What is this?      Brings the bytes of the weights into their region, with a few threads: reads them from the
 *                    files, or invents them.
 * State owned:       one job, on the caller's stack.
 * Must never:        let the bytes depend on the number of threads; touch a file through its mapping (SIGBUS).
 * Read next:         weights.c, which decided the places. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/limits.h"
#include "services/memory/weights_internal.h"

/* One read: large enough that a thread seldom meets another, small enough to be cancelled soon. */
#define CHUNK_BYTES ((uint64_t)8 << 20)

typedef struct {
    const weights_t *weights;
    const qn_mapping_t *region;
    weights_progress_t *progress;
    pthread_mutex_t mutex;         /* guards the rest */
    size_t next_tensor;
    uint64_t next_offset;          /* in next_tensor */
    qn_err_t err;                  /* the first failure, which stops all; its text, since qn_err_text is per thread */
    char text[QN_ERR_TEXT_MAX];
} fill_job_t;

typedef struct {
    size_t tensor;
    uint64_t offset, bytes;        /* in the tensor */
} chunk_t;

static bool take_chunk(fill_job_t *job, chunk_t *ret_chunk)
{
    const weights_t *weights = job->weights;
    bool taken = false;
    pthread_mutex_lock(&job->mutex);
    if (!job->err && !atomic_load(&job->progress->cancel)) {
        while (job->next_tensor < weights->count && job->next_offset == weights->tensors[job->next_tensor].bytes) {
            job->next_tensor++;
            job->next_offset = 0;
        }
        if (job->next_tensor < weights->count) {
            uint64_t left = weights->tensors[job->next_tensor].bytes - job->next_offset;
            *ret_chunk = (chunk_t){ job->next_tensor, job->next_offset, left < CHUNK_BYTES ? left : CHUNK_BYTES };
            job->next_offset += ret_chunk->bytes;
            taken = true;
        }
    }
    pthread_mutex_unlock(&job->mutex);
    return taken;
}

static void record_failure(fill_job_t *job, qn_err_t err)
{
    pthread_mutex_lock(&job->mutex);
    if (!job->err) {
        job->err = err;
        snprintf(job->text, sizeof job->text, "%s", qn_err_text());
    }
    pthread_mutex_unlock(&job->mutex);
}

/* Bytes [offset, offset + bytes) of a tensor as they are in its file. */
static qn_err_t read_source(const weights_t *weights, const safetensors_tensor_t *source, uint64_t offset,
                            uint64_t bytes, uint8_t *target)
{
    int fd = safetensors_file_fd(weights->checkpoint, source->file_index);
    for (uint64_t done = 0; done < bytes;) {
        ssize_t got = pread(fd, target + done, bytes - done, (off_t)(source->file_offset + offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            return qn_fail(QN_ERR_IO, "%s: tensor '%s': %s", safetensors_file_path(weights->checkpoint,
                           source->file_index), source->name, got < 0 ? strerror(errno) : "the file became shorter");
        done += (uint64_t)got;
    }
    return QN_OK;
}

/* F16 that fills the second half of `target` becomes F32 that fills all of it: from the front, no value is written
 * over before it was read. */
static void widen_chunk(uint8_t *target, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes / 4; i++) {
        uint16_t half;
        memcpy(&half, target + bytes / 2 + 2 * i, sizeof half);
        float wide = safetensors_widen_f16(half);
        memcpy(target + 4 * i, &wide, sizeof wide);
    }
}

static qn_err_t read_chunk(const weights_t *weights, const chunk_t *chunk, uint8_t *target)
{
    const safetensors_tensor_t *source = safetensors_at(weights->checkpoint, weights->origins[chunk->tensor].source);
    if (source->dtype != SAFETENSORS_F16) return read_source(weights, source, chunk->offset, chunk->bytes, target);
    qn_err_t err = read_source(weights, source, chunk->offset / 2, chunk->bytes / 2, target + chunk->bytes / 2);
    if (!err) widen_chunk(target, chunk->bytes);
    return err;
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

static void invent_chunk(const weights_t *weights, const chunk_t *chunk, uint8_t *target)
{
    qn_tensor_role_t role = weights->origins[chunk->tensor].role;
    bool norm = role == QN_TENSOR_ATTENTION_NORM || role == QN_TENSOR_MLP_NORM || role == QN_TENSOR_FINAL_NORM ||
                role == QN_TENSOR_Q_NORM || role == QN_TENSOR_K_NORM;
    uint64_t stream = mix_counter(weights->seed ^ mix_counter(chunk->tensor)), first = chunk->offset / 2;
    /* Four neighbours share a random word, 16 bits each -> (-1, 1) -> standard deviation 0.02, since a uniform on
     * (-a, a) has a / sqrt 3. Chunks begin at multiples of four elements. */
    for (uint64_t i = 0; i < chunk->bytes / 2; i += 4) {
        uint64_t bits = mix_counter(stream + (first + i) / 4), left = chunk->bytes / 2 - i;
        uint16_t values[4];
        for (int j = 0; j < 4; j++) {
            float uniform = ((float)(int32_t)(bits >> 16 * j & 0xffff) - 32767.5f) * 0x1p-15f;
            values[j] = norm ? 0x3f80 : round_bf16(uniform * 0.034641016f);
        }
        memcpy(target + 2 * i, values, left < 4 ? 2 * left : sizeof values);
    }
}

/* Host regions are filled in place, device regions through `staging`. */
static qn_err_t bring_chunk(fill_job_t *job, const chunk_t *chunk, uint8_t *staging)
{
    uint64_t place = job->weights->tensors[chunk->tensor].offset + chunk->offset;
    uint8_t *target = staging ? staging : (uint8_t *)qn_region_pointer(job->region) + place;
    qn_err_t err = QN_OK;
    if (job->weights->dummy) invent_chunk(job->weights, chunk, target);
    else err = read_chunk(job->weights, chunk, target);
    if (!err && staging) err = qn_region_write(job->region, place, staging, chunk->bytes);
    return err;
}

static void *fill_worker(void *job_pointer)
{
    fill_job_t *job = job_pointer;
    chunk_t chunk;
    uint8_t *staging = NULL;
    if (qn_region_share(job->region) != QN_SHARE_MEMFD && !(staging = malloc(CHUNK_BYTES))) {
        record_failure(job, qn_fail(QN_ERR_NO_MEMORY, "weights: no memory for a staging buffer"));
        return NULL;
    }
    while (take_chunk(job, &chunk)) {
        qn_err_t err = bring_chunk(job, &chunk, staging);
        if (err) record_failure(job, err);
        else atomic_fetch_add(&job->progress->done_bytes, chunk.bytes);
    }
    free(staging);
    return NULL;
}

qn_err_t weights_fill(const weights_t *weights, const qn_mapping_t *region, unsigned threads,
                      weights_progress_t *progress)
{
    QN_ASSERT(threads >= 1 && threads <= WEIGHTS_THREADS_MAX && qn_region_bytes(region) == weights->bytes);
    QN_ASSERT(weights->dummy || weights->checkpoint);
    fill_job_t job = { .weights = weights, .region = region, .progress = progress };
    pthread_t workers[WEIGHTS_THREADS_MAX];
    unsigned started = 0;
    pthread_mutex_init(&job.mutex, NULL);
    /* This thread is one of them, so fewer helpers than asked for only make it slower. */
    while (started + 1 < threads && pthread_create(&workers[started], NULL, fill_worker, &job) == 0) started++;
    fill_worker(&job);
    for (unsigned i = 0; i < started; i++) pthread_join(workers[i], NULL);
    pthread_mutex_destroy(&job.mutex);
    if (job.err) return qn_fail(job.err, "%s", job.text);
    if (atomic_load(&progress->cancel)) return qn_fail(QN_ERR_CANCELLED, "loading the weights was cancelled");
    return QN_OK;
}
