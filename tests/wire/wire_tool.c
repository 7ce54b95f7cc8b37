/* Frames on the command line, for the conformance test, fuzz seeds and people:
 *   wire_tool encode TYPE < JSON  > frame      (TYPE: StepPlan, ...)
 *   wire_tool decode      < frame > JSON       (the type is read from the frame)
 *   wire_tool recode      < frame > frame      (decode, then encode)
 *   wire_tool types                            (name and file identifier of each message)
 *   wire_tool bench       < frame              (ns per encode and per decode of this message)
 * Exit status: sysexits.h; the reason goes to standard error. */
#include <stdio.h>
#include <stdlib.h>
#include <sysexits.h>

#include "common/clock.h"
#include "common/limits.h"
#include "common/wire/wire.h"

/* Reads all of standard input, at most a frame and a byte. */
static size_t read_input(qn_arena_t *arena, uint8_t **ret_data)
{
    *ret_data = qn_arena_alloc(arena, QN_FRAME_BYTES_MAX + 1, 8);
    return fread(*ret_data, 1, QN_FRAME_BYTES_MAX + 1, stdin);
}

static int encode(qn_arena_t *arena, const char *name)
{
    const qn_wire_type_t *type = qn_wire_type(qn_message_type_by_name(name));
    if (!type) return fprintf(stderr, "no message is called %s\n", name), EX_USAGE;
    json_error_t where;
    json_t *json = json_loadf(stdin, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (!json) return fprintf(stderr, "line %d: %s\n", where.line, where.text), EX_DATAERR;
    const uint8_t *frame;
    size_t bytes;
    qn_err_t err = qn_wire_from_json(type, json, arena, &frame, &bytes);
    json_decref(json);
    if (!err) fwrite(frame, 1, bytes, stdout);
    return qn_err_exit_status(err);
}

static int decode(qn_arena_t *arena)
{
    uint8_t *frame;
    size_t bytes = read_input(arena, &frame);
    const qn_wire_type_t *type = qn_wire_type(qn_message_type_of(frame, bytes));
    if (!type) return fprintf(stderr, "not a frame of Quintet\n"), EX_DATAERR;
    json_t *json = qn_wire_to_json(type, frame, bytes);
    if (!json) return EX_DATAERR;
    json_dumpf(json, stdout, QN_WIRE_JSON_FLAGS | JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
    return EX_OK;
}

static int recode(qn_arena_t *arena)
{
    uint8_t *frame;
    size_t bytes = read_input(arena, &frame);
    const qn_wire_type_t *type = qn_wire_type(qn_message_type_of(frame, bytes));
    if (!type) return fprintf(stderr, "not a frame of Quintet\n"), EX_DATAERR;
    void *message = qn_arena_alloc(arena, type->struct_bytes, 16);
    const uint8_t *again;
    qn_err_t err = qn_wire_decode(type, frame, bytes, arena, message);
    if (!err) err = qn_wire_encode(type, message, arena, &again, &bytes);
    if (!err) fwrite(again, 1, bytes, stdout);
    return qn_err_exit_status(err);
}

/* The best of several rounds: what the code costs when nothing else runs. */
static int bench(qn_arena_t *arena)
{
    enum { ROUNDS = 20, REPEATS = 5000 };
    uint8_t *frame;
    size_t bytes = read_input(arena, &frame), again_bytes;
    const qn_wire_type_t *type = qn_wire_type(qn_message_type_of(frame, bytes));
    void *message = type ? qn_arena_alloc(arena, type->struct_bytes, 16) : NULL;
    void *read = type ? qn_arena_alloc(arena, type->struct_bytes, 16) : NULL;
    if (!type || qn_wire_decode(type, frame, bytes, arena, message)) return EX_DATAERR;
    uint64_t best_encode = UINT64_MAX, best_decode = UINT64_MAX;
    qn_arena_t scratch;
    qn_arena_init(&scratch, 2 * bytes);
    for (int round = 0; round < ROUNDS; round++) {
        const uint8_t *again;
        uint64_t begin = qn_clock_now_ns();
        for (int i = 0; i < REPEATS; i++) {
            qn_arena_reset(&scratch);
            qn_wire_encode(type, message, &scratch, &again, &again_bytes);
        }
        uint64_t middle = qn_clock_now_ns();
        for (int i = 0; i < REPEATS; i++) {
            qn_arena_reset(&scratch);
            qn_wire_decode(type, frame, bytes, &scratch, read);
        }
        uint64_t end = qn_clock_now_ns();
        if (middle - begin < best_encode) best_encode = middle - begin;
        if (end - middle < best_decode) best_decode = end - middle;
    }
    printf("%s, %zu bytes: encode %.0f ns, decode %.0f ns\n", type->name, bytes, (double)best_encode / REPEATS,
           (double)best_decode / REPEATS);
    qn_arena_fini(&scratch);
    return EX_OK;
}

static int list_types(void)
{
    for (int type = 1; type < QN_MESSAGE_COUNT; type++)
        printf("%s %s\n", qn_wire_type(type)->name, qn_wire_type(type)->identifier);
    return EX_OK;
}

int main(int argc, char **argv)
{
    qn_arena_t arena;
    qn_arena_init(&arena, 0);
    int status = EX_USAGE;
    const char *verb = argc > 1 ? argv[1] : "";
    if (strcmp(verb, "encode") == 0 && argc == 3)
        status = encode(&arena, argv[2]);
    else if (strcmp(verb, "decode") == 0 && argc == 2)
        status = decode(&arena);
    else if (strcmp(verb, "recode") == 0 && argc == 2)
        status = recode(&arena);
    else if (strcmp(verb, "types") == 0 && argc == 2)
        status = list_types();
    else if (strcmp(verb, "bench") == 0 && argc == 2)
        status = bench(&arena);
    else
        fprintf(stderr, "usage: wire_tool encode TYPE | decode | recode | types | bench\n");
    if (status != EX_OK && status != EX_USAGE) fprintf(stderr, "%s\n", qn_err_text());
    qn_arena_fini(&arena);
    return status;
}
