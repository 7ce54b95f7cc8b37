/* A bump arena: many small pieces, freed together. Used per message, per request, per file; the
 * step path resets and reuses one, so it allocates nothing once warm. Not thread-safe. */
#ifndef QN_COMMON_ARENA_H
#define QN_COMMON_ARENA_H

#include <stddef.h>

typedef struct qn_arena_block qn_arena_block_t;

typedef struct {
    qn_arena_block_t *first; /* owned chain */
    qn_arena_block_t *current;
    size_t used_bytes;  /* in `current` */
    size_t block_bytes; /* size of the next block */
} qn_arena_t;

/* `block_bytes`: size of the first block (0: 64 KiB). Allocates nothing yet. */
void qn_arena_init(qn_arena_t *arena, size_t block_bytes);
/* Returns `bytes` bytes aligned to `align` (a power of two ≤ 4096), uninitialised, valid until reset
 * or fini. Ends the process when the host is out of memory: arena users are bounded by limits.h. */
void *qn_arena_alloc(qn_arena_t *arena, size_t bytes, size_t align);
/* The same, zeroed, for `count` items of `bytes`; the product is checked. */
void *qn_arena_zalloc(qn_arena_t *arena, size_t count, size_t bytes);
/* Copies `length` bytes and a terminating NUL. */
char *qn_arena_strndup(qn_arena_t *arena, const char *text, size_t length);
/* Forgets all pieces; keeps the memory. */
void qn_arena_reset(qn_arena_t *arena);
/* Frees everything; accepts a zeroed arena. */
void qn_arena_fini(qn_arena_t *arena);

#endif
