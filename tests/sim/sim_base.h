/* What the parts of the simulator share: a seeded random source, the model that stands in for an LLM, failure. */
#ifndef QN_TESTS_SIM_SIM_BASE_H
#define QN_TESTS_SIM_SIM_BASE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIM_VOCAB 97u
#define SIM_TOKENS_MAX 256u /* of one sequence */

/* The seed of the run under way: every failure names it. */
static uint64_t sim_seed;

#define SIM_CHECK(condition, ...)                                                                              \
    do {                                                                                                       \
        if (!(condition)) {                                                                                    \
            fprintf(stderr, "sim: seed %llu: ", (unsigned long long)sim_seed);                                 \
            fprintf(stderr, __VA_ARGS__);                                                                      \
            fprintf(stderr, "\n  rule: %s (%s:%d)\n  again: SIM_FIRST_SEED=%llu SIM_SEEDS=1 %s\n", #condition, \
                    __FILE__, __LINE__, (unsigned long long)sim_seed, "build/tests/sim/test_sim");             \
            abort();                                                                                           \
        }                                                                                                      \
    } while (0)

static inline uint64_t sim_mix(uint64_t a, uint64_t b)
{
    uint64_t x = (a ^ (b + 0x9e3779b97f4a7c15ull)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

typedef struct {
    uint64_t state;
} sim_random_t;

static inline uint64_t sim_next(sim_random_t *random) { return sim_mix(random->state++, 0x2545f4914f6cdd1dull); }

/* In [low, high]. */
static inline uint32_t sim_between(sim_random_t *random, uint32_t low, uint32_t high)
{
    return low + (uint32_t)(sim_next(random) % (high - low + 1));
}

static inline bool sim_chance(sim_random_t *random, uint32_t percent) { return sim_next(random) % 100 < percent; }

/* Returns owned. */
static inline void *sim_copy(const void *data, size_t count, size_t bytes)
{
    void *copy = malloc(count * bytes + 1);
    SIM_CHECK(copy != NULL, "out of memory");
    if (count > 0) memcpy(copy, data, count * bytes);
    return copy;
}

/* ---- the model ---- */

/* The KV of a token: a hash of the KV of every token before it, as they stand in memory, of its id and its position.
 * One stale or foreign entry anywhere in the prefix changes it, and so every token from then on. */
static inline uint64_t sim_kv(const uint64_t *before, uint32_t position, uint32_t id)
{
    uint64_t hash = sim_mix(position, id);
    for (uint32_t i = 0; i < position; i++)
        hash = sim_mix(hash, before[i]);
    return hash;
}

static inline uint32_t sim_sample(uint64_t kv, uint64_t seed) { return (uint32_t)(sim_mix(kv, seed) % SIM_VOCAB); }

/* Logits of a token as a log-probability of an id. */
static inline float sim_logprob(uint64_t kv, uint32_t id) { return -(float)(sim_mix(kv, id) % 100000) / 10000.0f; }

static inline uint32_t sim_alternative(uint64_t kv, uint32_t rank)
{
    return (uint32_t)(sim_mix(kv, 1000 + rank) % SIM_VOCAB);
}

#endif
