/* What is this?      The CPU stream: a pool of threads that run each launch together, by a static split.
 * State owned:       the threads and the two words they meet at.
 * Must never:        spin for long: control daemons share these cores; cut the items differently from time to time.
 * Read next:         cpu.h, then any kernel of this folder.
 *
 * A launch cuts the items into one part per thread, always at the same places, opens them and bumps `round`. Every pool
 * thread takes its part; the launching thread runs part 0, then whatever is still open: on a busy machine a thread that
 * has not been given a core must not hold up the step (no result depends on who runs a part). It then waits until
 * `running` is zero. A part's word holds the round it is open in, so a late thread cannot take one of the next round.
 *
 * Waiting spins for SPIN_NS, which covers the gap to the next launch of a step, then sleeps in futex(2); while it spins
 * it offers the core to others every two microseconds. The sleeper announces itself before it sleeps and the waker
 * looks after it has changed the word, both sequentially consistent, so that no wake-up is lost.
 *
 * A thread that wakes while every core is busy is put on its waker's core, and there the two would take turns for as
 * long as the load lasts. A pool thread that finds itself on the launching thread's core therefore moves to another. */
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/clock.h"
#include "kernels/cpu/cpu.h"

#define SPIN_NS 30000
#define HUGE_PAGE ((size_t)2 << 20)

typedef struct {
    qn_stream_t *stream;
    unsigned index;
    _Atomic uint64_t part; /* 2 * round while open, one more once taken */
    pthread_t thread;
} pool_thread_t;

struct qn_stream {
    /* Written by the launching thread before `round` changes. */
    qn_cpu_body_t body;
    const void *arguments;
    size_t items;
    unsigned parts;
    atomic_bool ending;
    unsigned threads, started;
    int nice;
    bool spread;  /* there is a core for each thread */
    char *memory; /* QN_SHARED_BYTES, then QN_WORKSPACE_BYTES per thread; pages come with their first use */
    _Alignas(64) _Atomic uint32_t round;
    _Atomic uint32_t sleepers;
    _Atomic int launcher_core;
    _Alignas(64) _Atomic uint32_t running;
    _Atomic uint32_t launcher_sleeps;
    pool_thread_t pool[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, 0x7fffffff, NULL, NULL, 0);
}

/* Waits until *word differs from `value`, announcing sleep in *sleepers. */
static void wait_while(_Atomic uint32_t *word, uint32_t value, _Atomic uint32_t *sleepers)
{
    uint64_t until = 0;
    for (unsigned i = 1; atomic_load(word) == value; i++) {
        __builtin_ia32_pause();
        if (i % 32) continue;
        uint64_t now = qn_clock_now_ns();
        if (until == 0) until = now + SPIN_NS;
        if (now < until) {
            sched_yield();
            continue;
        }
        atomic_fetch_add(sleepers, 1);
        while (atomic_load(word) == value)
            futex_wait(word, value);
        atomic_fetch_sub(sleepers, 1);
    }
}

static void run_part(qn_stream_t *stream, unsigned index)
{
    size_t begin = stream->items * index / stream->parts;
    size_t end = stream->items * (index + 1) / stream->parts;
    if (begin < end) stream->body(stream->arguments, begin, end, index);
    if (atomic_fetch_sub(&stream->running, 1) == 1 && atomic_load(&stream->launcher_sleeps))
        futex_wake_all(&stream->running);
}

/* Runs the part of `thread` if it is still open in this round. */
static void take_part(pool_thread_t *thread, uint32_t round)
{
    uint64_t open = 2 * (uint64_t)round;
    if (atomic_compare_exchange_strong(&thread->part, &open, open + 1)) run_part(thread->stream, thread->index);
}

/* Leaves the launching thread's core; the affinity is what it was afterwards. A refusal only costs time. */
static void move_away(int core)
{
    cpu_set_t allowed, others;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    others = allowed;
    CPU_CLR((size_t)core, &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
    sched_setaffinity(0, sizeof allowed, &allowed);
}

static void *pool_main(void *argument)
{
    pool_thread_t *self = argument;
    qn_stream_t *stream = self->stream;
    /* A refused renice only costs latency of others; the thread works on. */
    if (stream->nice) setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), stream->nice);
    for (uint32_t seen = 0;;) {
        wait_while(&stream->round, seen, &stream->sleepers);
        seen = atomic_load(&stream->round);
        if (atomic_load(&stream->ending)) return NULL;
        int core = atomic_load(&stream->launcher_core);
        if (stream->spread && core >= 0 && core == sched_getcpu()) move_away(core);
        take_part(self, seen);
    }
}

/* Returns the number of the round. */
static uint32_t start_round(qn_stream_t *stream)
{
    uint32_t round = atomic_load(&stream->round) + 1;
    atomic_store(&stream->running, stream->parts);
    atomic_store_explicit(&stream->launcher_core, sched_getcpu(), memory_order_relaxed);
    for (unsigned i = 1; i < stream->parts; i++)
        atomic_store(&stream->pool[i - 1].part, 2 * (uint64_t)round);
    atomic_store(&stream->round, round);
    if (atomic_load(&stream->sleepers)) futex_wake_all(&stream->round);
    return round;
}

void qn_cpu_split(qn_stream_t *stream, size_t items, size_t grain, qn_cpu_body_t body, const void *arguments)
{
    size_t parts = items / (grain ? grain : 1);
    if (parts > stream->threads) parts = stream->threads;
    if (parts <= 1) {
        if (items) body(arguments, 0, items, 0);
        return;
    }
    QN_ASSERT(items <= SIZE_MAX / QN_STREAM_THREADS_MAX);
    stream->body = body;
    stream->arguments = arguments;
    stream->items = items;
    stream->parts = (unsigned)parts;
    uint32_t round = start_round(stream);
    run_part(stream, 0);
    for (unsigned i = 1; i < stream->parts; i++)
        take_part(&stream->pool[i - 1], round);
    for (uint32_t left; (left = atomic_load(&stream->running)) != 0;)
        wait_while(&stream->running, left, &stream->launcher_sleeps);
}

void *qn_cpu_shared(qn_stream_t *stream) { return stream->memory; }

void *qn_cpu_workspace(qn_stream_t *stream, unsigned thread)
{
    QN_ASSERT(thread < stream->threads);
    return stream->memory + QN_SHARED_BYTES + thread * QN_WORKSPACE_BYTES;
}

static unsigned core_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int count = CPU_COUNT(&set);
    return count > 0 ? (unsigned)count : 1;
}

/* Signals belong to the process's own loop. */
static qn_err_t start_threads(qn_stream_t *stream)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = 0;
    while (stream->started + 1 < stream->threads) {
        pool_thread_t *thread = &stream->pool[stream->started];
        thread->stream = stream;
        thread->index = stream->started + 1;
        failure = pthread_create(&thread->thread, NULL, pool_main, thread);
        if (failure) break;
        stream->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure)
        return qn_fail(QN_ERR_IO, "cannot start compute thread %u of %u: %s; lower compute.threads",
                       stream->started + 1, stream->threads, strerror(failure));
    return QN_OK;
}

/* Huge pages where the system gives them to those who ask: a product walks through more small ones than the core keeps
 * addresses of. */
static char *make_memory(size_t bytes)
{
    bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    char *memory = aligned_alloc(HUGE_PAGE, bytes);
    if (memory) madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

uint32_t qn_stream_threads_for(uint32_t threads)
{
    uint32_t wanted = threads ? threads : core_count();
    return wanted > QN_STREAM_THREADS_MAX ? QN_STREAM_THREADS_MAX : wanted;
}

qn_err_t qn_stream_create(const qn_stream_options_t *options, qn_stream_t **ret_stream)
{
    unsigned threads = qn_stream_threads_for(options->threads);
    size_t bytes = sizeof(qn_stream_t) + threads * sizeof(pool_thread_t);
    qn_stream_t *stream = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (!stream) return qn_fail(QN_ERR_NO_MEMORY, "no memory for %u compute threads", threads);
    memset(stream, 0, bytes);
    stream->threads = threads;
    stream->nice = options->nice;
    stream->spread = threads <= core_count();
    stream->memory = make_memory(QN_SHARED_BYTES + threads * QN_WORKSPACE_BYTES);
    qn_err_t err = stream->memory
                       ? start_threads(stream)
                       : qn_fail(QN_ERR_NO_MEMORY, "no memory for the workspace of %u compute threads", threads);
    if (err) {
        qn_stream_destroy(&stream);
        return err;
    }
    *ret_stream = stream;
    return QN_OK;
}

void qn_stream_destroy(qn_stream_t **stream)
{
    qn_stream_t *self = *stream;
    if (!self) return;
    atomic_store(&self->ending, true);
    atomic_fetch_add(&self->round, 1);
    futex_wake_all(&self->round);
    for (unsigned i = 0; i < self->started; i++)
        pthread_join(self->pool[i].thread, NULL);
    free(self->memory);
    free(self);
    *stream = NULL;
}

/* Launches of this stream return when they are done, and cannot fail. */
qn_err_t qn_stream_wait(qn_stream_t *stream)
{
    (void)stream;
    return QN_OK;
}

uint32_t qn_stream_threads(const qn_stream_t *stream) { return stream->threads; }
