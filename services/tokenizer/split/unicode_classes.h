/* What kind of character a code point is, for finding token boundaries; and UTF-8 in and out.
 *
 * The classes are those of Unicode 16.0, fixed in unicode_runs.c: boundaries must not move with the
 * machine's libraries. Pure and immutable after build; any number of threads may read. */
#ifndef QN_TOKENIZER_SPLIT_UNICODE_CLASSES_H
#define QN_TOKENIZER_SPLIT_UNICODE_CLASSES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    UNICODE_UPPER = 1 << 0,         /* Lu, Lt */
    UNICODE_LOWER = 1 << 1,         /* Ll */
    UNICODE_OTHER_LETTER = 1 << 2,  /* Lm, Lo */
    UNICODE_MARK = 1 << 3,          /* M */
    UNICODE_NUMBER = 1 << 4,        /* N */
    UNICODE_SPACE = 1 << 5,         /* White_Space */
    UNICODE_PUNCTUATION = 1 << 6,   /* P, as the Punctuation pre-tokenizer knows it */
    UNICODE_WORD = 1 << 7,          /* Alphabetic, M, Nd, Pc, Join_Control */
    UNICODE_NFC_UNSAFE = 1 << 8,    /* may change, move or combine with what precedes under NFC */
    UNICODE_JOINS_BEFORE = 1 << 9,  /* in some normal form interacts with what precedes */
    UNICODE_UNNORMALIZED = 1 << 10, /* assigned later than the normal forms used here: left alone */
    UNICODE_NOT_ASCII = 1 << 15,    /* only in `bytes` */
    UNICODE_LETTER = UNICODE_UPPER | UNICODE_LOWER | UNICODE_OTHER_LETTER,
};

#define UNICODE_BLOCK_BITS 7
#define UNICODE_CODE_POINTS 0x110000u

extern const uint32_t unicode_runs[];
extern const size_t unicode_run_count;

/* Two-stage table: masks[index[code >> 7] << 7 | code & 127]. */
typedef struct {
    uint16_t index[UNICODE_CODE_POINTS >> UNICODE_BLOCK_BITS];
    uint16_t *masks;     /* owned */
    uint16_t bytes[256]; /* class of an ASCII byte; UNICODE_NOT_ASCII for all others */
} unicode_classes_t;

/* Expands the runs; about 100 µs. */
void unicode_classes_init(unicode_classes_t *classes);
void unicode_classes_fini(unicode_classes_t *classes);

/* `code` < 0x110000. */
static inline unsigned unicode_class(const unicode_classes_t *classes, uint32_t code)
{
    return classes->masks[(uint32_t)classes->index[code >> UNICODE_BLOCK_BITS] << UNICODE_BLOCK_BITS |
                          (code & ((1u << UNICODE_BLOCK_BITS) - 1))];
}

/* Decodes one character of *valid* UTF-8 at `at`; writes its length in bytes (1..4). */
static inline uint32_t unicode_decode(const uint8_t *at, unsigned *ret_bytes)
{
    uint32_t lead = at[0];
    if (lead < 0x80) {
        *ret_bytes = 1;
        return lead;
    }
    if (lead < 0xE0) {
        *ret_bytes = 2;
        return (lead & 0x1F) << 6 | (at[1] & 0x3Fu);
    }
    if (lead < 0xF0) {
        *ret_bytes = 3;
        return (lead & 0x0F) << 12 | (at[1] & 0x3Fu) << 6 | (at[2] & 0x3Fu);
    }
    *ret_bytes = 4;
    return (lead & 0x07) << 18 | (at[1] & 0x3Fu) << 12 | (at[2] & 0x3Fu) << 6 | (at[3] & 0x3Fu);
}

/* Bytes of the character that starts with `lead` in valid UTF-8. */
static inline unsigned unicode_lead_bytes(uint8_t lead)
{
    return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

/* Start of the character before `at` in valid UTF-8; `at` > 0. */
static inline size_t unicode_step_back(const uint8_t *text, size_t at)
{
    do
        at--;
    while (at > 0 && (text[at] & 0xC0) == 0x80);
    return at;
}

/* Writes `code` (a scalar value) as UTF-8, returns the number of bytes (1..4). */
unsigned unicode_encode(uint32_t code, uint8_t ret_bytes[4]);

/* Length of the valid UTF-8 prefix; == length when all of it is valid. */
size_t unicode_valid_prefix(const uint8_t *text, size_t length);

/* What stands at `at` (length > 0 bytes available): returns the bytes of one valid character, or 0 with
 * *ret_bad = bytes of the maximal ill-formed subpart that one U+FFFD replaces (Unicode 3.9, best
 * practice), or 0 with *ret_bad = 0 when the bytes are a proper prefix of a character. */
unsigned unicode_check(const uint8_t *at, size_t length, unsigned *ret_bad);

#endif
