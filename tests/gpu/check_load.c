/* What is this?      Invented weights against the host's algorithm, and the loader: more sends than buffers, by several
 *                    threads.
 * State owned:       none.
 * Must never:        share the algorithm's code with the device.
 * Read next:         services/memory/weights/weights_bring.c, kernels/cuda/load.h. */
#include <pthread.h>

#include "kernels/cuda/load.h"
#include "tests/gpu/check.h"

#define PIECE ((size_t)1 << 20)
#define PIECES 40
#define THREADS 4

static uint64_t mix(uint64_t value)
{
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

static uint16_t dummy_bf16(uint64_t key, uint64_t element)
{
    uint64_t bits = mix(key + element / 4) >> 16 * (element % 4) & 0xffff;
    return qn_f32_to_bf16(((float)(int32_t)bits - 32767.5f) * 0x1p-15f * 0.034641016f);
}

static void check_invented(check_t *check, qn_cuda_loader_t *loader, size_t count)
{
    snprintf(check->label, sizeof check->label, "%zu elements", count);
    uint16_t *device = check_poison(check, (count + 4) * 2), *got = hold(&check->held, (count + 4) * 2);
    uint16_t *ones = check_poison(check, (count + 4) * 2), *got_ones = hold(&check->held, (count + 4) * 2);
    must_ok(qn_cuda_loader_invent(loader, device, count, 12345));
    must_ok(qn_cuda_loader_repeat(loader, ones, count, 0x3f80));
    must_ok(qn_cuda_loader_finish(loader));
    pull(got, device, (count + 4) * 2);
    pull(got_ones, ones, (count + 4) * 2);
    check->cases++;
    for (size_t i = 0; i < count + 4; i++) {
        uint16_t want = i < count ? dummy_bf16(12345, i) : 0xffff, one = i < count ? 0x3f80 : 0xffff;
        if (got[i] == want && got_ones[i] == one) continue;
        check_failed(check, "dummy weights are not the host's");
        break;
    }
    check_next(check);
}

typedef struct {
    qn_cuda_loader_t *loader;
    uint8_t *to;
    unsigned first;
} sender_t;

static void *send_pieces(void *argument)
{
    const sender_t *sender = argument;
    for (unsigned i = sender->first; i < PIECES; i += THREADS) {
        void *buffer;
        must_ok(qn_cuda_loader_take(sender->loader, &buffer));
        memset(buffer, (int)i + 1, PIECE);
        must_ok(qn_cuda_loader_send(sender->loader, buffer, sender->to + i * PIECE, PIECE - i));
    }
    return NULL;
}

static void check_sends(check_t *check, qn_cuda_loader_t *loader)
{
    uint8_t *device = check_poison(check, PIECES * PIECE), *got = hold(&check->held, PIECES * PIECE);
    pthread_t threads[THREADS];
    sender_t senders[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        senders[i] = (sender_t){loader, device, i};
        if (pthread_create(&threads[i], NULL, send_pieces, &senders[i])) exit(70);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    must_ok(qn_cuda_loader_finish(loader));
    pull(got, device, PIECES * PIECE);
    check->cases++;
    for (size_t i = 0; i < PIECES * PIECE; i++) {
        size_t piece = i / PIECE;
        if (got[i] == (i % PIECE < PIECE - piece ? piece + 1 : 0xff)) continue;
        check_failed(check, "a piece did not arrive as it was sent");
        break;
    }
    check_next(check);
}

unsigned check_fill(void)
{
    check_t check = check_begin("load, fill", QN_SCALAR_BF16, false);
    qn_cuda_loader_t *loader;
    must_ok(qn_cuda_loader_create(0, 3, PIECE, &loader));
    static const size_t COUNTS[] = {1, 2, 3, 4, 5, 1023, 1024, 100003, 9000001};
    for (unsigned i = 0; i < 9; i++)
        check_invented(&check, loader, COUNTS[i]);
    check_sends(&check, loader);
    qn_cuda_loader_destroy(&loader);
    return check_end(&check);
}
