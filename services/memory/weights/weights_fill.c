/* What is this?      Fills the weights region with a few threads, which take chunks of outputs from one list; dummy
 *                    weights of a device are made there instead.
 * State owned:       one job, on the caller's stack.
 * Must never:        let the bytes depend on the number of threads.
 * Read next:         weights_bring.c, which brings one chunk; weights_target.h, where it goes. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/assert.h"
#include "common/limits.h"
#include "services/memory/weights/weights_internal.h"
#include "services/memory/weights/weights_target.h"

/* Pages are asked for in slices of this size, before the first chunk is brought. */
#define SLICE_BYTES ((uint64_t)32 << 20)

typedef struct {
    const weights_t *weights;
    const qn_mapping_t *region;
    weights_target_t target;
    weights_progress_t *progress;
    pthread_mutex_t mutex; /* guards the rest */
    uint64_t next_slice;   /* offset in the region; its size when all are taken, or none is wanted any more */
    size_t next;           /* in weights->order */
    uint64_t next_output;  /* of that tensor */
    qn_failure_t failure;  /* the first, which stops all */
} fill_job_t;

static bool take_slice(fill_job_t *job, uint64_t *ret_offset, uint64_t *ret_bytes)
{
    pthread_mutex_lock(&job->mutex);
    uint64_t left = job->weights->bytes - job->next_slice;
    bool taken = left > 0 && !atomic_load(&job->progress->cancel);
    if (taken) {
        *ret_offset = job->next_slice;
        *ret_bytes = left < SLICE_BYTES ? left : SLICE_BYTES;
        job->next_slice += *ret_bytes;
    }
    pthread_mutex_unlock(&job->mutex);
    return taken;
}

/* Huge pages first: what is written into them then takes no page faults, and later reads fewer entries of the TLB. */
static void make_huge(fill_job_t *job)
{
    uint64_t offset, bytes;
    while (take_slice(job, &offset, &bytes)) {
        if (qn_region_make_huge(job->region, offset, bytes)) continue;
        pthread_mutex_lock(&job->mutex);
        job->next_slice = job->weights->bytes;
        pthread_mutex_unlock(&job->mutex);
    }
}

static bool take_chunk(fill_job_t *job, weights_chunk_t *ret_chunk)
{
    const weights_t *weights = job->weights;
    bool taken = false;
    pthread_mutex_lock(&job->mutex);
    if (!job->failure.code && !atomic_load(&job->progress->cancel)) {
        while (job->next < weights->count && job->next_output == weights->origins[weights->order[job->next]].outputs) {
            job->next++;
            job->next_output = 0;
        }
        if (job->next < weights->count) {
            size_t tensor = weights->order[job->next];
            uint64_t left = weights->origins[tensor].outputs - job->next_output;
            uint64_t count = weights_chunk_outputs(weights, tensor);
            *ret_chunk = (weights_chunk_t){tensor, job->next_output, left < count ? left : count};
            job->next_output += ret_chunk->count;
            taken = true;
        }
    }
    pthread_mutex_unlock(&job->mutex);
    return taken;
}

static void record_failure(fill_job_t *job, qn_err_t err)
{
    pthread_mutex_lock(&job->mutex);
    if (!job->failure.code) qn_failure_keep(&job->failure, err);
    pthread_mutex_unlock(&job->mutex);
}

static qn_err_t fill_chunk(fill_job_t *job, const weights_chunk_t *chunk, const weights_buffers_t *buffers)
{
    weights_target_t *target = &job->target;
    uint64_t offset, bytes;
    uint8_t *piece;
    weights_chunk_place(job->weights, chunk, &offset, &bytes);
    offset += job->weights->tensors[chunk->tensor].offset;
    qn_err_t err = target->kind->take(target, offset, &piece);
    if (err) return err;
    err = weights_bring(job->weights, chunk, buffers, piece);
    if (err) {
        target->kind->drop(target, piece);
        return err;
    }
    err = target->kind->send(target, offset, piece, bytes);
    if (!err) atomic_fetch_add(&job->progress->done_bytes, bytes);
    return err;
}

static void *fill_worker(void *job_pointer)
{
    fill_job_t *job = job_pointer;
    weights_chunk_t chunk;
    weights_buffers_t buffers;
    qn_err_t err = weights_buffers_make(job->weights, &buffers);
    if (!err) make_huge(job);
    while (!err && take_chunk(job, &chunk))
        err = fill_chunk(job, &chunk, &buffers);
    if (err) record_failure(job, err);
    weights_buffers_free(&buffers);
    return NULL;
}

/* This thread is one of them, so fewer helpers than asked for only make it slower. */
static void fill_by_threads(fill_job_t *job, unsigned threads)
{
    pthread_t workers[WEIGHTS_THREADS_MAX];
    unsigned started = 0;
    while (started + 1 < threads && pthread_create(&workers[started], NULL, fill_worker, job) == 0)
        started++;
    fill_worker(job);
    for (unsigned i = 0; i < started; i++)
        pthread_join(workers[i], NULL);
}

/* ---- dummy weights, made where they belong ---- */

static bool is_dummy(const fill_job_t *job)
{
    const weights_t *weights = job->weights;
    bool plain = weights->dummy && job->target.kind->fill_dummy;
    for (size_t i = 0; plain && i < weights->count; i++)
        plain = weights->tensors[i].layout == QN_LAYOUT_ROWS && weights->tensors[i].scalar == QN_SCALAR_BF16;
    return plain;
}

static void fill_with_dummies(fill_job_t *job)
{
    weights_target_t *target = &job->target;
    for (size_t i = 0; i < job->weights->count && !job->failure.code && !atomic_load(&job->progress->cancel); i++) {
        const weights_tensor_t *tensor = &job->weights->tensors[i];
        weights_invention_t how = weights_invention(job->weights, i);
        uint64_t count = tensor->bytes / sizeof how.value;
        qn_err_t err = how.repeated ? target->kind->repeat(target, tensor->offset, count, how.value)
                                    : target->kind->fill_dummy(target, tensor->offset, count, how.stream);
        if (err)
            record_failure(job, err);
        else
            atomic_fetch_add(&job->progress->done_bytes, tensor->bytes);
    }
}

/* ---- all of it ---- */

static const weights_target_kind_t *kind_of(const qn_mapping_t *region)
{
    if (qn_region_share(region) == QN_SHARE_MEMFD) return &weights_target_host;
#ifdef QN_CUDA
    return &weights_target_device;
#else
    QN_ASSERT(!"a device region in a build without CUDA");
    return NULL;
#endif
}

static qn_err_t fill(fill_job_t *job, unsigned threads)
{
    weights_target_t *target = &job->target;
    bool dummy = is_dummy(job);
    qn_err_t err = target->kind->open(target, threads, dummy ? 1 : weights_chunk_bytes_max(job->weights));
    if (err) return err;
    if (dummy)
        fill_with_dummies(job);
    else
        fill_by_threads(job, threads);
    if (job->failure.code)
        err = qn_failure_raise(&job->failure);
    else
        err = target->kind->finish(target);
    target->kind->close(target);
    return err;
}

qn_err_t weights_fill(const weights_t *weights, const qn_mapping_t *region, unsigned threads,
                      weights_progress_t *progress)
{
    QN_ASSERT(threads >= 1 && threads <= WEIGHTS_THREADS_MAX && qn_region_bytes(region) == weights->bytes);
    QN_ASSERT(weights->dummy || weights->checkpoint);
    fill_job_t job = {.weights = weights,
                      .region = region,
                      .progress = progress,
                      .target = {.kind = kind_of(region),
                                 .base = qn_region_pointer(region),
                                 .device = qn_region_device(region)}};
    pthread_mutex_init(&job.mutex, NULL);
    qn_err_t err = fill(&job, threads);
    pthread_mutex_destroy(&job.mutex);
    if (!err && atomic_load(&progress->cancel)) err = qn_fail(QN_ERR_CANCELLED, "loading the weights was cancelled");
    return err;
}
