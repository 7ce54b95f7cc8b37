/* What is this?      How fast weights come to the device: files in the page cache through the loader, by number of
 *                    threads, and made on the device; the same as quintet-memory does it, tensor by tensor.
 * State owned:       temporary files.
 * Must never:        time the first read of a file.
 * Read next:         kernels/cuda/load.h, services/memory/weights/weights_fill.c. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "common/region/region.h"
#include "kernels/cuda/load.h"
#include "services/memory/weights/weights.h"
#include "tests/gpu/checkpoint.h"
#include "tests/gpu/timing.h"

#define FILE_BYTES ((size_t)3 << 30)
#define PIECE ((size_t)8 << 20)
#define THREADS_MAX 16

typedef struct {
    int fd;
    char *to;
    qn_cuda_loader_t *loader;
    _Atomic size_t next;
} load_t;

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void *load_pieces(void *argument)
{
    load_t *load = argument;
    for (size_t at; (at = atomic_fetch_add(&load->next, PIECE)) < FILE_BYTES;) {
        void *buffer;
        must_ok(qn_cuda_loader_take(load->loader, &buffer));
        if (pread(load->fd, buffer, PIECE, (off_t)at) != (ssize_t)PIECE) exit(70);
        must_ok(qn_cuda_loader_send(load->loader, buffer, load->to + at, PIECE));
    }
    return NULL;
}

static void time_threads(int fd, char *to, unsigned threads)
{
    load_t load = {.fd = fd, .to = to};
    pthread_t list[THREADS_MAX];
    must_ok(qn_cuda_loader_create(0, threads + 2, PIECE, &load.loader));
    double begin = now_seconds();
    for (unsigned i = 0; i < threads; i++)
        if (pthread_create(&list[i], NULL, load_pieces, &load)) exit(70);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(list[i], NULL);
    must_ok(qn_cuda_loader_finish(load.loader));
    double seconds = now_seconds() - begin;
    printf("%-20s page cache to device, %2u threads %13.1f GB/s\n", "load", threads,
           (double)FILE_BYTES / seconds / 1e9);
    qn_cuda_loader_destroy(&load.loader);
}

static void time_invented(char *to)
{
    qn_cuda_loader_t *loader;
    must_ok(qn_cuda_loader_create(0, 1, PIECE, &loader));
    must_ok(qn_cuda_loader_invent(loader, to, FILE_BYTES / 2, 1));
    must_ok(qn_cuda_loader_finish(loader));
    double begin = now_seconds();
    for (int i = 0; i < 10; i++)
        must_ok(qn_cuda_loader_invent(loader, to, FILE_BYTES / 2, 1));
    must_ok(qn_cuda_loader_finish(loader));
    double seconds = now_seconds() - begin;
    printf("%-20s dummy weights made on the device %21.1f GB/s\n", "load", 10 * (double)FILE_BYTES / seconds / 1e9);
    qn_cuda_loader_destroy(&loader);
}

/* ---- as quintet-memory does it ---- */

/* Three layers of Llama-3.1-8B. */
static const qn_model_config_t SHAPE = {.layers = 3,
                                        .hidden = 4096,
                                        .heads = 32,
                                        .kv_heads = 8,
                                        .head_dim = 128,
                                        .intermediate = 14336,
                                        .vocab = 128256,
                                        .gated_mlp = true,
                                        .rope.type = QN_ROPE_DEFAULT};

static void time_fill(const weights_t *weights, qn_share_t share, unsigned threads, const char *what)
{
    weights_progress_t progress = {0};
    qn_mapping_t *region;
    qn_region_spec_t spec = {.id = 1,
                             .kind = QN_REGION_KIND_WEIGHTS,
                             .share = share,
                             .bytes = weights_bytes(weights),
                             .epoch = 1,
                             .name = "weights"};
    double begin = now_seconds();
    must_ok(qn_region_create(&spec, &region));
    double middle = now_seconds();
    must_ok(weights_fill(weights, region, threads, &progress));
    double seconds = now_seconds() - middle;
    printf("%-20s %-24s %s, %2u threads %6.1f GB/s  (%.3f s, region made in %.3f s)\n", "load", what,
           share == QN_SHARE_CUDA_IPC ? "cuda_ipc" : "cuda_vmm", threads, (double)spec.bytes / seconds / 1e9, seconds,
           middle - begin);
    qn_region_close(&region);
}

static void time_weights(void)
{
    static const weights_format_t ROWS = {.layout = QN_LAYOUT_ROWS};
    char directory[] = "/tmp/quintet-load-XXXXXX";
    weights_t *weights;
    if (!mkdtemp(directory)) exit(70);
    checkpoint_make(directory, &SHAPE, "BF16");
    must_ok(weights_plan(directory, &SHAPE, &ROWS, &weights));
    for (unsigned threads = 1; threads <= 16; threads *= 2)
        time_fill(weights, QN_SHARE_CUDA_IPC, threads, "checkpoint to region");
    time_fill(weights, QN_SHARE_CUDA_VMM, 8, "checkpoint to region");
    weights_destroy(&weights);
    checkpoint_remove(directory);
    must_ok(weights_plan_dummy(&SHAPE, 1, &ROWS, &weights));
    time_fill(weights, QN_SHARE_CUDA_IPC, 8, "dummy");
    weights_destroy(&weights);
}

void time_load(void)
{
    char path[] = "/tmp/quintet-load-XXXXXX", *block = malloc(PIECE);
    int fd = mkstemp(path);
    arena_t arena;
    if (fd < 0 || !block) exit(70);
    unlink(path);
    memset(block, 7, PIECE);
    for (size_t at = 0; at < FILE_BYTES; at += PIECE)
        if (pwrite(fd, block, PIECE, (off_t)at) != (ssize_t)PIECE) exit(70);
    free(block);
    arena_make(&arena, FILE_BYTES);
    static const unsigned THREADS[] = {1, 4, 8, 16};
    for (unsigned i = 0; i < 4; i++)
        time_threads(fd, arena.base, THREADS[i]);
    time_invented(arena.base);
    must(cudaFree(arena.base), "free");
    close(fd);
    time_weights();
}
