/* What is this?      Measures memory bandwidth and arithmetic peaks.
 * State owned:       the buffer and the threads of one measurement.
 * Must never:        leave a compiler the choice of instructions: the loops are assembly.
 * Read next:         bench_machine.c. */
#include "kernels/bench/machine_speed.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/clock.h"

#define ROUNDS_FIRST 2 /* to choose among the ways to read */
#define ROUNDS 6
#define BUFFER_LEAST (UINT64_C(256) << 20)
#define BUFFER_MOST (UINT64_C(8) << 30)
#define PREFETCH_BYTES 2048 /* about a memory latency ahead at 20 GB/s */
#define HUGE_PAGE (UINT64_C(2) << 20)

/* ---- the loops ---- */

#define CLOBBERED                                                                                              \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
        "xmm13", "cc", "memory"
#define TWELVE(m, a, b)                                                                                     \
    m(a, b, "0") m(a, b, "1") m(a, b, "2") m(a, b, "3") m(a, b, "4") m(a, b, "5") m(a, b, "6") m(a, b, "7") \
        m(a, b, "8") m(a, b, "9") m(a, b, "10") m(a, b, "11")
#define CLEAR(a, b, i) "vxorps %%xmm" i ", %%xmm" i ", %%xmm" i "\n\t"
#define MULTIPLY(op, r, i) op " %%" r "12, %%" r "13, %%" r i "\n\t"

/* 24 instructions a round on 12 chains: four cycles of latency times two or three pipes. */
#define ARITHMETIC(name, op, r)                                                                             \
    static void name(uint64_t rounds)                                                                       \
    {                                                                                                       \
        static const uint32_t value = 0x3f803f80; /* about one as f32, one twice as bf16, small as bytes */ \
        __asm__ volatile("vbroadcastss %1, %%" r "12\n\tvbroadcastss %1, %%" r                              \
                         "13\n\t" TWELVE(CLEAR, , ) "1:\n\t" TWELVE(MULTIPLY, op, r)                        \
                             TWELVE(MULTIPLY, op, r) "dec %0\n\tjnz 1b\n\tvzeroupper"                       \
                         : "+r"(rounds)                                                                     \
                         : "m"(value)                                                                       \
                         : CLOBBERED);                                                                      \
    }

ARITHMETIC(multiply_f32_256, "vfmadd231ps", "ymm")
ARITHMETIC(multiply_f32_512, "vfmadd231ps", "zmm")
ARITHMETIC(multiply_bf16_512, "vdpbf16ps", "zmm")
ARITHMETIC(multiply_int8_512, "vpdpbusd", "zmm")
ARITHMETIC(multiply_int8_256, "vpdpbusd", "ymm")

#define LOAD(r, step, i) "vmovups " i "*" step "(%0), %%" r i "\n\t"
#define EIGHT(m, a, b) \
    m(a, b, "0") m(a, b, "1") m(a, b, "2") m(a, b, "3") m(a, b, "4") m(a, b, "5") m(a, b, "6") m(a, b, "7")
#define PREFETCH(i) "prefetcht0 " i "(%0)\n\t"
#define AHEAD PREFETCH("%c2") PREFETCH("%c2+64") PREFETCH("%c2+128") PREFETCH("%c2+192")

#define READ(name, prefetches, loads, step)                                                                 \
    static void name(const char *data, uint64_t bytes)                                                      \
    {                                                                                                       \
        const char *end = data + bytes / 512 * 512;                                                         \
        __asm__ volatile("1:\n\t" prefetches loads "add $" step ", %0\n\tcmp %1, %0\n\tjb 1b\n\tvzeroupper" \
                         : "+r"(data)                                                                       \
                         : "r"(end), "i"(PREFETCH_BYTES)                                                    \
                         : CLOBBERED);                                                                      \
    }

READ(read_256, "", EIGHT(LOAD, "ymm", "32"), "256")
READ(read_256_ahead, AHEAD, EIGHT(LOAD, "ymm", "32"), "256")
READ(read_512, "", EIGHT(LOAD, "zmm", "64"), "512")

/* A cache line of each quarter in turn: four streams keep more lines on their way than one. */
static void read_quarters(const char *data, uint64_t bytes)
{
    uint64_t quarter = bytes / 4 / 64 * 64;
    const char *end = data + quarter, *last = data + 3 * quarter;
    __asm__ volatile("1:\n\tvmovups (%0), %%ymm0\n\tvmovups 32(%0), %%ymm1\n\t"
                     "vmovups (%0,%2), %%ymm2\n\tvmovups 32(%0,%2), %%ymm3\n\t"
                     "vmovups (%0,%2,2), %%ymm4\n\tvmovups 32(%0,%2,2), %%ymm5\n\t"
                     "vmovups (%1), %%ymm6\n\tvmovups 32(%1), %%ymm7\n\t"
                     "add $64, %0\n\tadd $64, %1\n\tcmp %3, %0\n\tjb 1b\n\tvzeroupper"
                     : "+r"(data), "+r"(last)
                     : "r"(quarter), "r"(end)
                     : CLOBBERED);
}

static void read_plain(const char *data, uint64_t bytes)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i + 64 <= bytes; i += 64) {
        uint64_t words[8];
        memcpy(words, data + i, sizeof words);
        for (int j = 0; j < 8; j++)
            sum += words[j];
    }
    __asm__ volatile("" : : "r"(sum));
}

static const struct {
    uint32_t isa;
    void (*read)(const char *data, uint64_t bytes);
} READS[] = {{0, read_plain},
             {QN_ISA_AVX2, read_256},
             {QN_ISA_AVX2, read_256_ahead},
             {QN_ISA_AVX2, read_quarters},
             {QN_ISA_AVX512, read_512}};

static const struct {
    machine_peak_t peak;
    uint32_t isa;
    void (*multiply)(uint64_t rounds);
    double operations; /* of one instruction */
} PEAKS[] = {
    {MACHINE_PEAK_F32, QN_ISA_AVX2, multiply_f32_256, 16},
    {MACHINE_PEAK_F32, QN_ISA_AVX512, multiply_f32_512, 32},
    {MACHINE_PEAK_BF16, QN_ISA_AVX512_BF16, multiply_bf16_512, 64},
    {MACHINE_PEAK_INT8, QN_ISA_AVX512_VNNI, multiply_int8_256, 64},
    {MACHINE_PEAK_INT8, QN_ISA_AVX512_VNNI, multiply_int8_512, 128},
};

/* ---- threads that start together ---- */

typedef struct {
    atomic_uint ready, state;
} gate_t; /* state: 0 closed, 1 open, 2 given up */

typedef struct {
    gate_t *gate;
    void (*read)(const char *data, uint64_t bytes);
    void (*multiply)(uint64_t rounds);
    const char *data;
    uint64_t bytes, rounds;
    uint64_t begin_ns, end_ns;
} part_t;

static void *run_part(void *argument)
{
    part_t *part = argument;
    unsigned state;
    atomic_fetch_add(&part->gate->ready, 1);
    while ((state = atomic_load(&part->gate->state)) == 0)
        sched_yield();
    if (state == 2) return NULL;
    part->begin_ns = qn_clock_now_ns();
    if (part->read)
        part->read(part->data, part->bytes);
    else
        part->multiply(part->rounds);
    part->end_ns = qn_clock_now_ns();
    return NULL;
}

/* Seconds from the first begin to the last end. */
static double span(const part_t *parts, unsigned threads)
{
    uint64_t begin = UINT64_MAX, end = 0;
    for (unsigned i = 0; i < threads; i++) {
        if (parts[i].begin_ns < begin) begin = parts[i].begin_ns;
        if (parts[i].end_ns > end) end = parts[i].end_ns;
    }
    return (double)(end - begin) * 1e-9;
}

/* One run of `threads` parts; seconds. */
static qn_err_t run_once(part_t *parts, unsigned threads, double *ret_seconds)
{
    pthread_t handles[MACHINE_THREADS_MAX];
    gate_t gate = {0};
    unsigned started = 0;
    for (unsigned i = 0; i < threads; i++)
        parts[i].gate = &gate;
    while (started + 1 < threads && pthread_create(&handles[started], NULL, run_part, &parts[started + 1]) == 0)
        started++;
    bool complete = started + 1 == threads;
    while (complete && atomic_load(&gate.ready) < started)
        sched_yield();
    atomic_store(&gate.state, complete ? 1 : 2);
    if (complete) run_part(&parts[0]);
    for (unsigned i = 0; i < started; i++)
        pthread_join(handles[i], NULL);
    if (!complete) return qn_fail(QN_ERR_IO, "cannot start thread %u of %u; use fewer", started + 2, threads);
    *ret_seconds = span(parts, threads);
    return QN_OK;
}

/* Runs `part` on each thread, the data cut among them; the shortest of the rounds in seconds. */
static qn_err_t run_together(const part_t *part, unsigned threads, int rounds, double *ret_seconds)
{
    part_t parts[MACHINE_THREADS_MAX];
    uint64_t each = part->bytes / threads / 4096 * 4096;
    double best = 1e30, seconds = 0;
    for (unsigned i = 0; i < threads; i++) {
        parts[i] = *part;
        parts[i].data = part->data ? part->data + i * each : NULL;
        parts[i].bytes = each;
    }
    for (int round = 0; round < rounds; round++) {
        qn_err_t err = run_once(parts, threads, &seconds);
        if (err) return err;
        if (seconds < best) best = seconds;
    }
    *ret_seconds = best;
    return QN_OK;
}

/* ---- the figures ---- */

static qn_err_t measure_read(const char *buffer, uint64_t bytes, unsigned threads, double *ret_speed)
{
    part_t part = {.data = buffer, .bytes = bytes}, best_part = part;
    double seconds, best = 1e30;
    for (size_t i = 0; i < sizeof READS / sizeof *READS; i++) {
        if (READS[i].isa & ~qn_kernels_isa()) continue;
        part.read = READS[i].read;
        qn_err_t err = run_together(&part, threads, ROUNDS_FIRST, &seconds);
        if (err) return err;
        if (seconds < best) best = seconds, best_part = part;
    }
    qn_err_t err = run_together(&best_part, threads, ROUNDS, &seconds);
    if (!err && seconds < best) best = seconds;
    size_t whole_pages = bytes / threads / 4096 * 4096 * threads;
    *ret_speed = (double)whole_pages / best;
    return err;
}

static qn_err_t measure_peak(machine_peak_t peak, unsigned threads, double *ret_speed)
{
    enum { PEAK_ROUNDS = 500000 }; /* 24 instructions each: 2 to 5 ms */
    uint32_t isa = qn_kernels_isa();
    double best = 0;
    for (size_t i = 0; i < sizeof PEAKS / sizeof *PEAKS; i++) {
        if (PEAKS[i].peak != peak || (PEAKS[i].isa & ~isa)) continue;
        double seconds;
        qn_err_t err =
            run_together(&(part_t){.multiply = PEAKS[i].multiply, .rounds = PEAK_ROUNDS}, threads, ROUNDS, &seconds);
        if (err) return err;
        double speed = 24.0 * PEAK_ROUNDS * PEAKS[i].operations * threads / seconds;
        if (speed > best) best = speed;
    }
    *ret_speed = best;
    return QN_OK;
}

static qn_err_t measure_arithmetic(machine_speed_t *speed)
{
    qn_err_t err = measure_peak(MACHINE_PEAK_F32, speed->threads, &speed->f32);
    if (!err) err = measure_peak(MACHINE_PEAK_F32, 1, &speed->f32_one);
    if (!err) err = measure_peak(MACHINE_PEAK_BF16, speed->threads, &speed->bf16);
    if (!err) err = measure_peak(MACHINE_PEAK_INT8, speed->threads, &speed->int8);
    return err;
}

static unsigned core_count(void)
{
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return count < 1 ? 1 : count > MACHINE_THREADS_MAX ? MACHINE_THREADS_MAX : (unsigned)count;
}

uint64_t machine_cache_bytes(void)
{
    long level3 = sysconf(_SC_LEVEL3_CACHE_SIZE), level2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return level3 > 0 ? (uint64_t)level3 : level2 > 0 ? (uint64_t)level2 : 0;
}

static uint64_t choose_bytes(uint64_t asked, uint64_t cache)
{
    uint64_t bytes = asked ? asked : cache * 8 > BUFFER_LEAST ? cache * 8 : BUFFER_LEAST;
    return bytes > BUFFER_MOST ? BUFFER_MOST : (bytes + 4095) / 4096 * 4096;
}

qn_err_t machine_speed_measure(unsigned threads, uint64_t buffer_bytes, machine_speed_t *ret_speed)
{
    machine_speed_t speed = {.threads = threads ? threads : core_count(), .cache_bytes = machine_cache_bytes()};
    if (speed.threads > MACHINE_THREADS_MAX) speed.threads = MACHINE_THREADS_MAX;
    speed.buffer_bytes = choose_bytes(buffer_bytes, speed.cache_bytes);
    uint64_t mapped = speed.buffer_bytes + HUGE_PAGE;
    char *range = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED)
        return qn_fail(QN_ERR_NO_MEMORY, "no memory for a buffer of %llu bytes", (unsigned long long)mapped);
    char *buffer = range + (HUGE_PAGE - (uintptr_t)range % HUGE_PAGE) % HUGE_PAGE;
    madvise(buffer, speed.buffer_bytes, MADV_HUGEPAGE);
    memset(buffer, 1, speed.buffer_bytes); /* untouched pages would all be one page of zeros */
    qn_err_t err = measure_read(buffer, speed.buffer_bytes, 1, &speed.read_one);
    if (!err) err = measure_read(buffer, speed.buffer_bytes, speed.threads, &speed.read_all);
    munmap(range, mapped);
    if (!err) err = measure_arithmetic(&speed);
    if (!err) *ret_speed = speed;
    return err;
}

void machine_speed_of_gpu(const char *name, machine_speed_t *ret_speed)
{
    static const struct {
        const char *part;
        double read, bf16;
        uint64_t cache;
    } KNOWN[] = {{"H200", 4.54e12, 790e12, UINT64_C(50) << 20}};
    *ret_speed = (machine_speed_t){.threads = 0};
    for (size_t i = 0; i < sizeof KNOWN / sizeof KNOWN[0]; i++)
        if (strstr(name, KNOWN[i].part))
            *ret_speed =
                (machine_speed_t){.read_all = KNOWN[i].read, .bf16 = KNOWN[i].bf16, .cache_bytes = KNOWN[i].cache};
}

static void raise_figure(double *figure, double other)
{
    if (other > *figure) *figure = other;
}

void machine_speed_raise(machine_speed_t *speed, const machine_speed_t *other)
{
    raise_figure(&speed->read_one, other->read_one);
    raise_figure(&speed->read_all, other->read_all);
    raise_figure(&speed->f32, other->f32);
    raise_figure(&speed->f32_one, other->f32_one);
    raise_figure(&speed->bf16, other->bf16);
    raise_figure(&speed->int8, other->int8);
}

machine_peak_t machine_peak_of(const char *kernel_name, qn_scalar_t scalar)
{
    if (strcmp(kernel_name, "vnni") == 0 && (scalar == QN_SCALAR_INT8 || scalar == QN_SCALAR_INT4))
        return MACHINE_PEAK_INT8;
    bool bf16_products = strcmp(kernel_name, "avx512bf16") == 0 || strcmp(kernel_name, "cuda") == 0;
    if (bf16_products && scalar == QN_SCALAR_BF16) return MACHINE_PEAK_BF16;
    return MACHINE_PEAK_F32;
}

double machine_peak_speed(const machine_speed_t *speed, machine_peak_t peak)
{
    return peak == MACHINE_PEAK_INT8 ? speed->int8 : peak == MACHINE_PEAK_BF16 ? speed->bf16 : speed->f32;
}

const char *machine_peak_name(machine_peak_t peak)
{
    static const char *const NAMES[] = {
        [MACHINE_PEAK_F32] = "f32", [MACHINE_PEAK_BF16] = "bf16", [MACHINE_PEAK_INT8] = "int8"};
    return NAMES[peak];
}

void machine_speed_print(const machine_speed_t *speed)
{
    printf("machine: %.1f GB/s", speed->read_all * 1e-9);
    if (speed->f32 > 0) printf(", f32 %.0f GFLOP/s", speed->f32 * 1e-9);
    if (speed->bf16 > 0) printf(", bf16 dot %.0f GFLOP/s", speed->bf16 * 1e-9);
    if (speed->int8 > 0) printf(", int8 dot %.0f GOP/s", speed->int8 * 1e-9);
    if (speed->threads) printf(", %u thread%s", speed->threads, speed->threads == 1 ? "" : "s");
    printf("\n");
}

json_t *machine_speed_json(const machine_speed_t *speed)
{
    return json_pack("{s:i, s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "threads", (int)speed->threads, "buffer_bytes",
                     (json_int_t)speed->buffer_bytes, "read", speed->read_all, "read_one", speed->read_one, "f32",
                     speed->f32, "f32_one", speed->f32_one, "bf16", speed->bf16, "int8", speed->int8);
}
