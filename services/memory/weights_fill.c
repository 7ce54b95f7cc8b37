/* What is this?      Fills the weights region with a few threads, which take chunks of outputs from one list.
 * State owned:       one job, on the caller's stack.
 * Must never:        let the bytes depend on the number of threads.
 * Read next:         weights_bring.c, which brings one chunk. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/assert.h"
#include "common/limits.h"
#include "services/memory/weights_internal.h"

/* Pages are asked for in slices of this size, before the first chunk is brought. */
#define SLICE_BYTES ((uint64_t)32 << 20)

typedef struct {
    const weights_t *weights;
    const qn_mapping_t *region;
    weights_progress_t *progress;
    pthread_mutex_t mutex;         /* guards the rest */
    uint64_t next_slice;           /* offset in the region; its size when all are taken, or none is wanted any more */
    size_t next;                   /* in weights->order */
    uint64_t next_output;          /* of that tensor */
    qn_err_t err;                  /* the first failure, which stops all; its text, since qn_err_text is per thread */
    char text[QN_ERR_TEXT_MAX];
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
    if (!job->err && !atomic_load(&job->progress->cancel)) {
        while (job->next < weights->count && job->next_output == weights->origins[weights->order[job->next]].outputs) {
            job->next++;
            job->next_output = 0;
        }
        if (job->next < weights->count) {
            size_t tensor = weights->order[job->next];
            uint64_t left = weights->origins[tensor].outputs - job->next_output;
            uint64_t count = weights_chunk_outputs(weights, tensor);
            *ret_chunk = (weights_chunk_t){ tensor, job->next_output, left < count ? left : count };
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
    if (!job->err) {
        job->err = err;
        snprintf(job->text, sizeof job->text, "%s", qn_err_text());
    }
    pthread_mutex_unlock(&job->mutex);
}

/* Host regions are filled in place, device regions through the staging buffer. */
static qn_err_t fill_chunk(fill_job_t *job, const weights_chunk_t *chunk, const weights_buffers_t *buffers)
{
    uint64_t offset, bytes;
    weights_chunk_place(job->weights, chunk, &offset, &bytes);
    uint64_t place = job->weights->tensors[chunk->tensor].offset + offset;
    uint8_t *target = buffers->staging ? buffers->staging : (uint8_t *)qn_region_pointer(job->region) + place;
    qn_err_t err = weights_bring(job->weights, chunk, buffers, target);
    if (!err && buffers->staging) err = qn_region_write(job->region, place, buffers->staging, bytes);
    if (!err) atomic_fetch_add(&job->progress->done_bytes, bytes);
    return err;
}

static void *fill_worker(void *job_pointer)
{
    fill_job_t *job = job_pointer;
    weights_chunk_t chunk;
    weights_buffers_t buffers;
    qn_err_t err = weights_buffers_make(job->weights, qn_region_share(job->region) != QN_SHARE_MEMFD, &buffers);
    if (!err) make_huge(job);
    while (!err && take_chunk(job, &chunk)) err = fill_chunk(job, &chunk, &buffers);
    if (err) record_failure(job, err);
    weights_buffers_free(&buffers);
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
