/* Messages as bytes: FlatBuffers frames, their heads, and JSON.
 *
 * The structs, their names and typed wrappers (qn_step_plan_encode, ...) come from schemas/ by way of the generated
 * qn_messages.h; qn_wire_encode and qn_wire_decode are declared in wire_codec.h. schemas/README.md shows the whole by
 * example. Nothing here blocks, keeps state or touches a socket. */
#ifndef QN_COMMON_WIRE_WIRE_H
#define QN_COMMON_WIRE_WIRE_H

#include <jansson.h>

#include "common/wire/wire_codec.h"
#include "qn_messages.h"

/* The head of a frame of any alignment without verifying the rest, for sniffers and logs. All zero (schema 0) when
 * the frame is too broken to have one; a service out of range reads as none. */
qn_head_t qn_wire_head(const void *frame, size_t bytes);

/* Overwrites the head of an encoded frame in place; schema 0 is written as QN_PROTOCOL. QN_ERR_INVALID: no frame. */
qn_err_t qn_wire_set_head(void *frame, size_t bytes, const qn_head_t *head);

/* ---- JSON ---------------------------------------------------------------------------------------------------
 * The JSON that flatc reads and writes: members by schema name, enums by value name, [ubyte] as numbers, members
 * equal to their default left out. Two kinds of value do not fit JSON or jansson and become strings, which flatc
 * accepts for numbers: a ulong above 2^63 - 1 ("18446744073709551615") and floats that are no number ("nan", "inf",
 * "-inf"). Floats are the shortest decimal that gives the same float: print them with QN_WIRE_JSON_FLAGS. */
#define QN_WIRE_JSON_FLAGS JSON_REAL_PRECISION(9)

/* Verifies and converts a frame of any alignment. Returns owned (json_decref), or NULL after a failure as of
 * qn_wire_decode. */
json_t *qn_wire_to_json(const qn_wire_type_t *type, const void *frame, size_t bytes);

/* Converts and encodes. Struct members must all be there (as flatc demands); table members may be left out. Failures:
 * QN_ERR_INVALID or QN_ERR_LIMIT; the text names the place ("StepPlan.runs[3].token_count") and, for an unknown member,
 * the nearest known one. Outputs as of qn_wire_encode. */
qn_err_t qn_wire_from_json(const qn_wire_type_t *type, const json_t *json, qn_arena_t *arena, const uint8_t **ret_frame,
                           size_t *ret_bytes);

/* Converts an object (NULL: an empty one) to the C struct of `type` and checks it, without a frame and without a head,
 * which is zero. Failures as above; their texts begin with the member at fault. */
qn_err_t qn_wire_read_members(const qn_wire_type_t *type, const json_t *json, qn_arena_t *arena, void *ret_message);

/* Where the last QN_ERR_INVALID or QN_ERR_LIMIT of this thread's codec was: "runs[3].token_count", after the name of the
 * message when one is known. Returns view, valid until the next such failure. */
const char *qn_wire_error_place(void);

#endif
