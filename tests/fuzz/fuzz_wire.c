/* libFuzzer target: any bytes as a frame of any type, or as JSON when they begin with "{".
 * The type is that of the file identifier; when it is none of ours, the first byte picks one.
 * Seeds: tests/fuzz/make_seeds_wire.sh turns the examples of schemas/ into frames. */
#include "tests/unit/wire_walk.h"

static void fuzz_frame(const uint8_t *data, size_t bytes, qn_arena_t *arena)
{
    /* Exactly as long as the input, so that AddressSanitizer sees the first byte read behind it; malloc aligns it. */
    uint8_t *frame = malloc(bytes);
    QN_ASSERT(frame || bytes == 0);
    memcpy(frame, data, bytes);
    qn_message_type_t type = qn_message_type_of(frame, bytes);
    if (type == QN_MESSAGE_NONE && bytes >= 8) {
        type = (qn_message_type_t)(1 + frame[0] % (QN_MESSAGE_COUNT - 1));
        memcpy(frame + 4, qn_wire_type(type)->identifier, 4);
    }
    if (type != QN_MESSAGE_NONE) wire_survive(qn_wire_type(type), frame, bytes, arena);
    free(frame);
}

/* As every type: all but the right ones are refused at the first member they do not have. */
static void fuzz_json(const uint8_t *data, size_t bytes, qn_arena_t *arena)
{
    json_t *json = json_loadb((const char *)data, bytes, JSON_ALLOW_NUL, NULL);
    for (int type = 1; json && type < QN_MESSAGE_COUNT; type++) {
        const uint8_t *frame;
        size_t frame_bytes;
        if (qn_wire_from_json(qn_wire_type((qn_message_type_t)type), json, arena, &frame, &frame_bytes)) continue;
        QN_ASSERT(wire_survive(qn_wire_type((qn_message_type_t)type), frame, frame_bytes, arena));
    }
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    qn_arena_t arena;
    qn_arena_init(&arena, 4096);
    if (bytes && data[0] == '{')
        fuzz_json(data, bytes, &arena);
    else
        fuzz_frame(data, bytes, &arena);
    qn_arena_fini(&arena);
    return 0;
}
