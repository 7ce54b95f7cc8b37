/* A confused or hostile peer of the same user: speaks the link protocol and sends damaged and absurd messages.
 *
 *   forge RUN_DIR SEED FRAMES
 *
 * As a second instance of each service it greets every daemon that takes that service's calls, and sends FRAMES frames in all, of
 * every type: a third are an example with bits flipped, the rest pass the verifier but hold what no peer would say (values at
 * and between their limits, arrays that do not belong together, ids nobody gave out). It reads nothing but what keeps the
 * connection going. The daemons must live and stay right: tests/process/test_forged_peer.py asks them afterwards. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/wire/wire.h"
#include "tests/unit/wire_examples.h"

#define INSTANCE 200
#define SESSION_FRAMES 400 /* below QN_LINK_WINDOW: a session needs no credit */
#define ELEMENTS_MAX 64

static const struct {
    qn_service_t as;
    const char *to;
} SESSIONS[] = {
    {QN_SERVICE_FRONTEND, "tokenizer"}, {QN_SERVICE_FRONTEND, "scheduler"},  {QN_SERVICE_FRONTEND, "memory"},
    {QN_SERVICE_FRONTEND, "compute"},   {QN_SERVICE_TOKENIZER, "scheduler"}, {QN_SERVICE_SCHEDULER, "memory"},
    {QN_SERVICE_SCHEDULER, "compute"},  {QN_SERVICE_COMPUTE, "memory"},      {QN_SERVICE_TOOL, "scheduler"},
};
#define SESSION_COUNT (sizeof SESSIONS / sizeof *SESSIONS)

static uint64_t state;

/* splitmix64: the seed alone decides what is sent. */
static uint64_t draw(uint64_t below)
{
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (z ^ z >> 31) % below;
}

/* ---- values ---- */

static uint64_t edge_u64(uint64_t low, uint64_t high)
{
    switch (draw(6)) {
    case 0: return low;
    case 1: return high;
    case 2: return high - low > 1 ? low + 1 : low;
    case 3: return high - low > 1 ? high - 1 : high;
    case 4: return low + draw(high - low < 16 ? high - low + 1 : 16);
    default: return high - low == UINT64_MAX ? draw(UINT64_MAX) : low + draw(high - low + 1);
    }
}

static uint64_t widest(uint8_t kind)
{
    switch (kind) {
    case QN_WIRE_BOOL: return 1;
    case QN_WIRE_ENUM:
    case QN_WIRE_U8: return UINT8_MAX;
    case QN_WIRE_U16: return UINT16_MAX;
    case QN_WIRE_U32: return UINT32_MAX;
    default: return UINT64_MAX;
    }
}

static void draw_number(const qn_wire_field_t *field, void *place)
{
    if (field->kind == QN_WIRE_F32) {
        static const float WILD[] = {0, -0.0f, 1, -1, 1e30f, -1e30f, 1e-40f};
        double low = field->limited ? field->min.f : -1e9, high = field->limited ? field->max.f : 1e9;
        float value =
            field->limited || draw(2) ? (float)(low + (high - low) * (double)draw(1001) / 1000) : WILD[draw(7)];
        memcpy(place, &value, sizeof value);
    } else if (field->kind == QN_WIRE_I32) {
        int32_t low = field->limited ? (int32_t)field->min.i : INT32_MIN;
        int32_t high = field->limited ? (int32_t)field->max.i : INT32_MAX;
        int32_t value = (int32_t)(low + (int64_t)edge_u64(0, (uint64_t)((int64_t)high - low)));
        memcpy(place, &value, sizeof value);
    } else {
        uint64_t value = field->limited ? edge_u64(field->min.u, field->max.u) : edge_u64(0, widest(field->kind));
        memcpy(place, &value, field->bytes); /* little-endian */
    }
}

/* Random bytes, then every limited member inside its limits and the padding zero, as a frame needs them. */
static void draw_record(const qn_wire_struct_t *record, uint8_t *place)
{
    for (size_t i = 0; i < record->bytes; i++)
        place[i] = draw(3) ? 0 : (uint8_t)draw(256);
    for (size_t i = 0; i < record->limit_count; i++)
        draw_number(&record->limits[i], place + record->limits[i].offset);
    for (size_t i = 0; i < record->gap_count; i++)
        memset(place + record->gaps[i].offset, 0, record->gaps[i].bytes);
}

static void draw_text(uint32_t most, qn_arena_t *arena, qn_text_t *ret_text)
{
    uint32_t bytes = (uint32_t)edge_u64(0, most < 300 ? most : 300);
    char *data = qn_arena_alloc(arena, bytes + 1u, 1);
    for (uint32_t i = 0; i < bytes; i++)
        data[i] = (char)(draw(4) ? 'a' + draw(26) : draw(256));
    data[bytes] = '\0';
    *ret_text = (qn_text_t){data, bytes};
}

static void draw_element(const qn_wire_field_t *field, qn_arena_t *arena, uint8_t *place)
{
    if (field->kind == QN_WIRE_STRING)
        draw_text(field->vector ? field->max_bytes : field->max_len, arena, (qn_text_t *)(void *)place);
    else if (field->kind == QN_WIRE_STRUCT)
        draw_record(field->record, place);
    else if (field->kind != QN_WIRE_TABLE)
        draw_number(field, place);
}

static void draw_vector(const qn_wire_field_t *field, qn_arena_t *arena, uint8_t *message)
{
    if (field->kind == QN_WIRE_TABLE) return;
    uint32_t count = (uint32_t)edge_u64(0, field->max_len < ELEMENTS_MAX ? field->max_len : ELEMENTS_MAX);
    size_t bytes = field->kind == QN_WIRE_STRING ? sizeof(qn_text_t) : field->bytes;
    uint8_t *elements = qn_arena_zalloc(arena, count + 1u, bytes);
    for (uint32_t i = 0; i < count; i++)
        draw_element(field, arena, elements + i * bytes);
    memcpy(message + field->offset, &elements, sizeof elements);
    memcpy(message + field->count_offset, &count, sizeof count);
}

/* Some fields of a decoded example get other values; the head stays. */
static void distort(const qn_wire_type_t *type, qn_arena_t *arena, uint8_t *message)
{
    for (uint16_t i = 1; i < type->field_count; i++) {
        const qn_wire_field_t *field = &type->fields[i];
        if (draw(3)) continue;
        if (field->vector)
            draw_vector(field, arena, message);
        else
            draw_element(field, arena, message + field->offset);
    }
}

/* ---- frames ---- */

typedef struct {
    uint8_t *bytes;
    size_t length;
} example_t;

static example_t examples[QN_MESSAGE_COUNT];

static void read_examples(void)
{
    qn_arena_t arena;
    qn_arena_init(&arena, 0);
    for (int type = 1; type < QN_MESSAGE_COUNT; type++) {
        char path[256];
        example_path(qn_wire_type((qn_message_type_t)type), path, sizeof path);
        json_t *json = json_load_file(path, JSON_ALLOW_NUL, NULL);
        const uint8_t *frame;
        size_t bytes;
        if (!json || qn_wire_from_json(qn_wire_type((qn_message_type_t)type), json, &arena, &frame, &bytes)) {
            fprintf(stderr, "no example of %s in %s\n", qn_message_name((qn_message_type_t)type), path);
            exit(EX_NOINPUT);
        }
        json_decref(json);
        examples[type] = (example_t){malloc(bytes), bytes};
        memcpy(examples[type].bytes, frame, bytes);
        qn_arena_reset(&arena);
    }
    qn_arena_fini(&arena);
}

static qn_head_t head_of(qn_service_t as, uint32_t epoch, uint64_t number)
{
    return (qn_head_t){.schema = QN_PROTOCOL,
                       .src = as,
                       .epoch = epoch,
                       .request = draw(3) ? draw(40) : draw(UINT64_MAX),
                       .sequence = number,
                       .sent_ns = qn_clock_now_ns()};
}

/* Returns view: a frame in the arena, or NULL when what was drawn cannot be written. */
static const uint8_t *make_frame(qn_arena_t *arena, const qn_head_t *head, size_t *ret_bytes)
{
    int chosen;
    do
        chosen = 1 + (int)draw(QN_MESSAGE_COUNT - 1);
    while (chosen == QN_MESSAGE_BYE || chosen == QN_MESSAGE_HELLO); /* they end the session */
    const example_t *example = &examples[chosen];
    if (draw(3) == 0) {
        uint8_t *copy = qn_arena_alloc(arena, example->length, 8);
        memcpy(copy, example->bytes, example->length);
        qn_wire_set_head(copy, example->length, head);
        for (uint64_t flips = 1 + draw(4); flips > 0; flips--)
            copy[draw(example->length)] ^= (uint8_t)(1u << draw(8));
        *ret_bytes = example->length - (draw(4) ? 0 : draw(example->length));
        return copy;
    }
    const qn_wire_type_t *type = qn_wire_type((qn_message_type_t)chosen);
    uint8_t *message = qn_arena_alloc(arena, type->struct_bytes, 16);
    const uint8_t *frame;
    if (qn_wire_decode(type, example->bytes, example->length, arena, message)) return NULL;
    distort(type, arena, message);
    memcpy(message, head, sizeof *head);
    return qn_wire_encode(type, message, arena, &frame, ret_bytes) ? NULL : frame;
}

/* ---- a session ---- */

static bool greet(void *socket, qn_service_t as, uint32_t epoch, qn_arena_t *arena)
{
    qn_hello_t hello = {.head = head_of(as, epoch, 0),
                        .protocol = QN_PROTOCOL,
                        .service = as,
                        .instance = INSTANCE,
                        .state = QN_STATE_READY,
                        .pid = (uint32_t)getpid(),
                        .window = 1024,
                        .host = qn_text("elsewhere"),
                        .build = qn_text("forged")};
    const uint8_t *frame;
    size_t bytes;
    if (qn_hello_encode(&hello, arena, &frame, &bytes)) return false;
    if (zmq_send(socket, frame, bytes, 0) < 0) return false;
    zmq_msg_t answer;
    zmq_msg_init(&answer);
    bool heard = zmq_msg_recv(&answer, socket, 0) >= 0;
    zmq_msg_close(&answer);
    return heard;
}

/* Returns the frames sent; 0: nobody answers. */
static uint64_t run_session(void *context, const char *run_dir, size_t session, uint32_t epoch, uint64_t frames)
{
    char endpoint[512];
    snprintf(endpoint, sizeof endpoint, "ipc://%s/%s.sock", run_dir, SESSIONS[session].to);
    void *socket = zmq_socket(context, ZMQ_DEALER);
    int wait_ms = 5000, linger_ms = 2000;
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &wait_ms, sizeof wait_ms);
    zmq_setsockopt(socket, ZMQ_SNDTIMEO, &wait_ms, sizeof wait_ms);
    zmq_setsockopt(socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_connect(socket, endpoint);
    qn_arena_t arena;
    qn_arena_init(&arena, 1 << 20);
    uint64_t sent = 0;
    if (greet(socket, SESSIONS[session].as, epoch, &arena)) {
        for (uint64_t number = 1; sent < frames && number < SESSION_FRAMES * 2; number++) {
            qn_arena_reset(&arena);
            qn_head_t head = head_of(SESSIONS[session].as, epoch, sent + 1);
            size_t bytes;
            const uint8_t *frame = make_frame(&arena, &head, &bytes);
            if (!frame) continue;
            if (zmq_send(socket, frame, bytes, 0) < 0) break;
            sent++;
            char ignored[1];
            while (zmq_recv(socket, ignored, sizeof ignored, ZMQ_DONTWAIT) >= 0)
                ;
        }
    }
    qn_arena_fini(&arena);
    zmq_close(socket);
    return sent;
}

int main(int argument_count, char **arguments)
{
    if (argument_count != 4) return fprintf(stderr, "usage: forge RUN_DIR SEED FRAMES\n"), EX_USAGE;
    state = strtoull(arguments[2], NULL, 10);
    uint64_t left = strtoull(arguments[3], NULL, 10), total = 0;
    read_examples();
    void *context = zmq_ctx_new();
    for (uint32_t epoch = 1; left > 0; epoch++) {
        size_t session = draw(SESSION_COUNT);
        uint64_t sent =
            run_session(context, arguments[1], session, epoch, left < SESSION_FRAMES ? left : SESSION_FRAMES);
        if (!sent) return fprintf(stderr, "%s does not answer\n", SESSIONS[session].to), EX_UNAVAILABLE;
        left -= sent < left ? sent : left;
        total += sent;
    }
    zmq_ctx_term(context);
    printf("%llu frames sent\n", (unsigned long long)total);
    return EX_OK;
}
