/* What is this?      Lookup of character classes, and UTF-8 checks.
 * State owned:       the expanded two-stage table of one unicode_classes_t.
 * Must never:        ask the C library's locale or another library's Unicode version.
 * Read next:         unicode_runs.py (where the runs come from), scanner.h (who asks). */
#include "services/tokenizer/split/unicode_classes.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

#define BLOCK_SIZE (1u << UNICODE_BLOCK_BITS)
#define BLOCK_COUNT (UNICODE_CODE_POINTS >> UNICODE_BLOCK_BITS)

/* Position in the runs while walking up the code points. */
typedef struct {
    size_t run;
} run_cursor_t;

static uint32_t run_end(const run_cursor_t *cursor)
{
    return cursor->run + 1 < unicode_run_count ? unicode_runs[cursor->run + 1] >> 11 : UNICODE_CODE_POINTS;
}

static void fill_block(run_cursor_t *cursor, uint32_t first, uint16_t *masks)
{
    for (uint32_t i = 0; i < BLOCK_SIZE; i++) {
        while (run_end(cursor) <= first + i)
            cursor->run++;
        masks[i] = unicode_runs[cursor->run] & 0x7FF;
    }
}

void unicode_classes_init(unicode_classes_t *classes)
{
    /* A block inside one run is shared by all blocks of that mask; others get their own. */
    uint16_t uniform[1 << 11];
    memset(uniform, 0xFF, sizeof uniform);
    size_t capacity = 512, count = 0;
    uint16_t *masks = malloc(capacity * BLOCK_SIZE * sizeof *masks);
    QN_ASSERT(masks != NULL);
    run_cursor_t cursor = {0};
    for (uint32_t block = 0; block < BLOCK_COUNT; block++) {
        uint32_t first = block << UNICODE_BLOCK_BITS;
        while (run_end(&cursor) <= first)
            cursor.run++;
        uint16_t mask = unicode_runs[cursor.run] & 0x7FF;
        bool is_uniform = run_end(&cursor) >= first + BLOCK_SIZE;
        if (is_uniform && uniform[mask] != 0xFFFF) {
            classes->index[block] = uniform[mask];
            continue;
        }
        QN_ASSERT(count < capacity); /* the runs are constant data: 512 blocks are enough */
        fill_block(&cursor, first, masks + count * BLOCK_SIZE);
        if (is_uniform) uniform[mask] = (uint16_t)count;
        classes->index[block] = (uint16_t)count++;
    }
    classes->masks = masks;
    for (uint32_t byte = 0; byte < 256; byte++)
        classes->bytes[byte] = byte < 0x80 ? (uint16_t)unicode_class(classes, byte) : UNICODE_NOT_ASCII;
}

void unicode_classes_fini(unicode_classes_t *classes)
{
    free(classes->masks);
    classes->masks = NULL;
}

unsigned unicode_encode(uint32_t code, uint8_t ret_bytes[4])
{
    if (code < 0x80) {
        ret_bytes[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        ret_bytes[0] = (uint8_t)(0xC0 | code >> 6);
        ret_bytes[1] = (uint8_t)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        ret_bytes[0] = (uint8_t)(0xE0 | code >> 12);
        ret_bytes[1] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
        ret_bytes[2] = (uint8_t)(0x80 | (code & 0x3F));
        return 3;
    }
    ret_bytes[0] = (uint8_t)(0xF0 | code >> 18);
    ret_bytes[1] = (uint8_t)(0x80 | (code >> 12 & 0x3F));
    ret_bytes[2] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
    ret_bytes[3] = (uint8_t)(0x80 | (code & 0x3F));
    return 4;
}

/* Unicode table 3-7: the second byte's range depends on the lead. */
static bool second_is_valid(uint8_t lead, uint8_t second)
{
    switch (lead) {
    case 0xE0: return second >= 0xA0 && second <= 0xBF;
    case 0xED: return second >= 0x80 && second <= 0x9F;
    case 0xF0: return second >= 0x90 && second <= 0xBF;
    case 0xF4: return second >= 0x80 && second <= 0x8F;
    default: return (second & 0xC0) == 0x80;
    }
}

unsigned unicode_check(const uint8_t *at, size_t length, unsigned *ret_bad)
{
    uint8_t lead = at[0];
    *ret_bad = 0;
    if (lead < 0x80) return 1;
    if (lead < 0xC2 || lead > 0xF4) {
        *ret_bad = 1;
        return 0;
    }
    unsigned need = unicode_lead_bytes(lead);
    for (unsigned i = 1; i < need; i++) {
        if (i >= length) return 0;
        if (i == 1 ? !second_is_valid(lead, at[1]) : (at[i] & 0xC0) != 0x80) {
            *ret_bad = i;
            return 0;
        }
    }
    return need;
}

/* Bytes of the characters of two and three bytes at the start that are surely valid: nearly all there are. */
static size_t common_prefix(const uint8_t *text, size_t length)
{
    size_t at = 0;
    while (length - at >= 3) {
        uint8_t lead = text[at], second = text[at + 1];
        bool is_tail = (second & 0xC0) == 0x80;
        if (lead >= 0xC2 && lead < 0xE0 && is_tail)
            at += 2;
        else if (lead > 0xE0 && lead < 0xED && is_tail && (text[at + 2] & 0xC0) == 0x80)
            at += 3;
        else
            break;
    }
    return at;
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "eight bytes are read as an integer, the first lowest");

size_t unicode_valid_prefix(const uint8_t *text, size_t length)
{
    size_t at = 0;
    while (at < length) {
        uint64_t word;
        while (length - at >= sizeof word) {
            memcpy(&word, text + at, sizeof word);
            uint64_t tops = word & 0x8080808080808080ull;
            at += tops ? (size_t)__builtin_ctzll(tops) / 8 : sizeof word;
            if (tops) break;
        }
        at += common_prefix(text + at, length - at);
        if (at == length) break;
        unsigned bad;
        unsigned bytes = unicode_check(text + at, length - at, &bad);
        if (bytes == 0) break;
        at += bytes;
    }
    return at;
}
