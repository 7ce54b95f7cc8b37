/* The table-driven FlatBuffers codec: what schemas/generate.py emits (descriptors) and what reads and writes frames
 * by it. Knows no message by name. Users include common/wire/wire.h; only generated code includes this alone.
 *
 * One C struct per table serves both ways. Encoding: fill it with designated initialisers; pointers are borrowed for
 * the call. Decoding: its pointers are views of the frame (vectors of scalars and structs, strings) or of the arena
 * (vectors of strings and tables, nested tables), valid while both live.
 * An absent vector, string or nested table is a NULL pointer; an empty one is a pointer with count 0. */
#ifndef QN_COMMON_WIRE_WIRE_CODEC_H
#define QN_COMMON_WIRE_WIRE_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/arena.h"
#include "common/err.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames are read in place: Quintet needs a little-endian machine"
#endif

/* Head.schema of every frame: the highest version of the protocol that this build speaks, and the lowest. Hello agrees
 * on one per link; frames of others are refused, but for Hello and Bye, which say why there is none. */
#define QN_PROTOCOL 1
#define QN_PROTOCOL_LOWEST 1

/* UTF-8 text. `data` NULL: absent. Decoded text is followed by a NUL that `bytes` does not count. */
typedef struct {
    const char *data;
    uint32_t bytes;
} qn_text_t;

/* Returns view of a C string (NULL: absent). */
static inline qn_text_t qn_text(const char *text)
{
    return (qn_text_t){.data = text, .bytes = text ? (uint32_t)strlen(text) : 0};
}

/* ---- descriptors -------------------------------------------------------------------------------------------- */

typedef enum {
    QN_WIRE_BOOL,
    QN_WIRE_ENUM,
    QN_WIRE_U8,
    QN_WIRE_U16,
    QN_WIRE_U32,
    QN_WIRE_I32,
    QN_WIRE_U64,
    QN_WIRE_F32,
    QN_WIRE_STRUCT,
    QN_WIRE_STRING,
    QN_WIRE_TABLE,
} qn_wire_kind_t;

typedef union {
    uint64_t u;
    int64_t i;
    double f;
} qn_wire_number_t;

typedef struct qn_wire_type qn_wire_type_t;
typedef struct qn_wire_struct qn_wire_struct_t;

/* An enum on a ubyte; value i has name names[i]. */
typedef struct {
    const char *name;
    const char *const *names;
    uint8_t count;
} qn_wire_enum_t;

/* A field of a table or a member of a struct. */
typedef struct {
    const char *name;
    uint8_t kind; /* qn_wire_kind_t, of one element when `vector` */
    bool vector, required;
    bool limited;          /* min and max hold for each value; always so for bools and enums */
    uint8_t align;         /* of one element in the frame */
    uint8_t slot;          /* table: place in the vtable, from 0 */
    uint16_t bytes;        /* of one element in the frame; strings and tables: 4, their offset */
    uint16_t offset;       /* in the C struct */
    uint16_t count_offset; /* vector: of the element count in the C struct */
    uint32_t max_len;      /* vector: elements; single string: bytes */
    uint32_t max_bytes;    /* vector of strings: bytes of each */
    qn_wire_number_t min, max;
    qn_wire_number_t fallback; /* the schema's default; .f for floats */
    const qn_wire_enum_t *enumeration;
    const qn_wire_struct_t *record;
    const qn_wire_type_t *table;
} qn_wire_field_t;

typedef struct {
    uint16_t offset, bytes;
} qn_wire_gap_t;

/* A FlatBuffers struct; the C struct has the same layout. */
struct qn_wire_struct {
    const char *name;
    uint16_t bytes, align;
    uint16_t member_count, limit_count, gap_count;
    const qn_wire_field_t *members;
    const qn_wire_field_t *limits; /* limited members, those of inner structs included ("sampling.top_p") */
    const qn_wire_gap_t *gaps;     /* padding, written as zeros */
};

/* Most fields of a table: keeps one vtable on the stack. */
#define QN_WIRE_FIELDS_MAX 120

/* A table; a message when `identifier` is not "". */
struct qn_wire_type {
    const char *name;
    char identifier[5];
    uint16_t struct_bytes; /* of the C struct */
    uint16_t field_count;
    const qn_wire_field_t *fields; /* in schema order */
    const uint8_t *layout;         /* indices of `fields`, largest alignment first: the order in the frame */
};

/* ---- codec -------------------------------------------------------------------------------------------------- */

/* Builds the frame of `message` (the C struct of `type`, which must be a message) in the arena, 8-byte aligned and
 * the same bytes for the same content. Checks all limits that a receiver checks. head.schema 0 is written as
 * QN_PROTOCOL; a required vector that is NULL is written as an empty one. Failures: QN_ERR_INVALID (a value),
 * QN_ERR_LIMIT (a length, or the frame exceeds QN_FRAME_BYTES_MAX); the text names the field. Outputs are written on
 * success only. Allocates from the arena alone, never blocks. */
qn_err_t qn_wire_encode(const qn_wire_type_t *type, const void *message, qn_arena_t *arena, const uint8_t **ret_frame,
                        size_t *ret_bytes);

/* Verifies the whole frame, then fills the C struct of `type` with views. `frame` must be 8-byte aligned (copy it
 * when it is not) and outlive the views. Failures: QN_ERR_INVALID (broken frame, other message type, a value out of
 * range), QN_ERR_LIMIT (a length), QN_ERR_UNSUPPORTED (another protocol version); the text names the field, as in
 * "StepPlan.runs[3].token_count: 0 is below the minimum 1". `ret_message` is undefined after a failure. Fields that
 * this build's schema does not have are ignored. */
qn_err_t qn_wire_decode(const qn_wire_type_t *type, const void *frame, size_t bytes, qn_arena_t *arena,
                        void *ret_message);

#endif
