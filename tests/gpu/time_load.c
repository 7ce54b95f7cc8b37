/* What is this?      How fast weights come to the device: files in the page cache through the loader, by number of
 *                    threads, and made on the device.
 * State owned:       a temporary file.
 * Must never:        time the first read of the file.
 * Read next:         kernels/cuda/load.h. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "kernels/cuda/load.h"
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
    load_t load = { .fd = fd, .to = to };
    pthread_t list[THREADS_MAX];
    must_ok(qn_cuda_loader_create(0, threads + 2, PIECE, &load.loader));
    double begin = now_seconds();
    for (unsigned i = 0; i < threads; i++)
        if (pthread_create(&list[i], NULL, load_pieces, &load)) exit(70);
    for (unsigned i = 0; i < threads; i++) pthread_join(list[i], NULL);
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
    for (int i = 0; i < 10; i++) must_ok(qn_cuda_loader_invent(loader, to, FILE_BYTES / 2, 1));
    must_ok(qn_cuda_loader_finish(loader));
    double seconds = now_seconds() - begin;
    printf("%-20s invented on the device %21.1f GB/s\n", "load", 10 * (double)FILE_BYTES / seconds / 1e9);
    qn_cuda_loader_destroy(&loader);
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
    static const unsigned THREADS[] = { 1, 4, 8, 16 };
    for (unsigned i = 0; i < 4; i++) time_threads(fd, arena.base, THREADS[i]);
    time_invented(arena.base);
    must(cudaFree(arena.base), "free");
    close(fd);
}
