/* What is this?      A chained bump allocator.
 * State owned:       its blocks.
 * Must never:        return NULL; free one piece. */
#include "common/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

struct qn_arena_block {
    qn_arena_block_t *next;
    size_t bytes;
    _Alignas(64) unsigned char data[];
};

void qn_arena_init(qn_arena_t *arena, size_t block_bytes)
{
    *arena = (qn_arena_t){.block_bytes = block_bytes ? block_bytes : 64 * 1024};
}

/* Makes `current` a block with at least `bytes` free: the next kept one if it is large enough, else a
 * new one, twice as large as the last so that a growing arena settles in one block. */
static void arena_advance(qn_arena_t *arena, size_t bytes)
{
    qn_arena_block_t *next = arena->current ? arena->current->next : arena->first;
    if (!next || next->bytes < bytes) {
        if (arena->block_bytes == 0) arena->block_bytes = 64 * 1024;
        size_t size = bytes > arena->block_bytes ? bytes : arena->block_bytes;
        QN_ASSERT(size < SIZE_MAX / 4);
        qn_arena_block_t *block = aligned_alloc(64, (sizeof *block + size + 63) & ~(size_t)63);
        QN_ASSERT(block != NULL);
        block->bytes = size;
        block->next = next;
        if (arena->current)
            arena->current->next = block;
        else
            arena->first = block;
        arena->block_bytes = size * 2;
        next = block;
    }
    arena->current = next;
    arena->used_bytes = 0;
}

void *qn_arena_alloc(qn_arena_t *arena, size_t bytes, size_t align)
{
    QN_ASSERT(align && (align & (align - 1)) == 0 && align <= 4096);
    QN_ASSERT(bytes < SIZE_MAX / 4);
    for (;;) {
        if (arena->current) {
            uintptr_t base = (uintptr_t)arena->current->data;
            uintptr_t start = (base + arena->used_bytes + align - 1) & ~(uintptr_t)(align - 1);
            if (start - base + bytes <= arena->current->bytes) {
                arena->used_bytes = start - base + bytes;
                return (void *)start;
            }
        }
        arena_advance(arena, bytes + align);
    }
}

void *qn_arena_zalloc(qn_arena_t *arena, size_t count, size_t bytes)
{
    size_t total;
    QN_ASSERT(!__builtin_mul_overflow(count, bytes, &total));
    return memset(qn_arena_alloc(arena, total, 16), 0, total);
}

char *qn_arena_strndup(qn_arena_t *arena, const char *text, size_t length)
{
    char *copy = qn_arena_alloc(arena, length + 1, 1);
    memcpy(copy, text, length);
    copy[length] = '\0';
    return copy;
}

void qn_arena_reset(qn_arena_t *arena)
{
    arena->current = NULL;
    arena->used_bytes = 0;
}

void qn_arena_fini(qn_arena_t *arena)
{
    for (qn_arena_block_t *block = arena->first, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    *arena = (qn_arena_t){0};
}
