/* What is this?      A caller of methods that speaks the link protocol as far as one call needs it: Hello, heartbeats
 *                    while it waits, Bye.
 * State owned:       one DEALER socket.
 * Must never:        take what is not for it for its answer.
 * Read next:         common/daemon/links/links.h (the protocol), common/daemon/calls.h (the other end). */
#include "tools/client/direct_call.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "common/assert.h"
#include "common/build.h"
#include "common/clock.h"
#include "common/daemon/links/endpoint.h"
#include "common/daemon/links/links.h"
#include "common/limits.h"
#include "common/paths.h"
#include "common/wire/wire.h"

#define HELLO_NS 3000000000ull /* a daemon that lives answers in a millisecond */

struct direct_caller {
    void *context, *socket;
    qn_service_t service;
    char endpoint[QN_ENDPOINT_MAX];
    uint32_t epoch;    /* this caller's life */
    uint64_t sequence; /* of the last request on the link; its id as well */
    uint64_t beat_ns;  /* of the last heartbeat; 0: not greeted */
};

static bool send_message(direct_caller_t *caller, qn_message_type_t type, void *message, uint64_t sequence,
                         qn_arena_t *arena)
{
    qn_head_t *head = message;
    const uint8_t *frame;
    size_t bytes;
    head->src = QN_SERVICE_TOOL;
    head->dst = caller->service;
    head->epoch = caller->epoch;
    head->sequence = sequence;
    head->sent_ns = qn_clock_now_ns();
    if (qn_wire_encode(qn_wire_type(type), message, arena, &frame, &bytes)) return false;
    return zmq_send(caller->socket, frame, bytes, ZMQ_DONTWAIT) >= 0;
}

static bool say_hello(direct_caller_t *caller, qn_arena_t *arena)
{
    char host[QN_NAME_MAX];
    qn_links_host(host);
    qn_hello_t hello = {.protocol = QN_PROTOCOL,
                        .protocol_lowest = QN_PROTOCOL_LOWEST,
                        .service = QN_SERVICE_TOOL,
                        .state = QN_STATE_READY,
                        .pid = (uint32_t)getpid(),
                        .window = QN_LINK_WINDOW,
                        .host = qn_text(host),
                        .build = qn_text(qn_build_id())};
    return send_message(caller, QN_MESSAGE_HELLO, &hello, 0, arena);
}

/* The next message that comes before `until_ns`, in the arena; NULL: none did. Beats meanwhile. */
static void *receive(direct_caller_t *caller, uint64_t until_ns, qn_arena_t *arena, qn_message_type_t *ret_type)
{
    for (uint64_t now_ns; (now_ns = qn_clock_now_ns()) < until_ns;) {
        if (caller->beat_ns && now_ns - caller->beat_ns >= QN_HEARTBEAT_NS) {
            qn_heartbeat_t beat = {.state = QN_STATE_READY, .limit = caller->sequence + QN_LINK_WINDOW};
            send_message(caller, QN_MESSAGE_HEARTBEAT, &beat, 0, arena);
            caller->beat_ns = now_ns;
        }
        zmq_pollitem_t item = {.socket = caller->socket, .events = ZMQ_POLLIN};
        uint64_t wait_ns = until_ns - now_ns < QN_HEARTBEAT_NS ? until_ns - now_ns : QN_HEARTBEAT_NS;
        if (zmq_poll(&item, 1, (long)(wait_ns / 1000000) + 1) <= 0) continue;
        zmq_msg_t part;
        zmq_msg_init(&part);
        if (zmq_msg_recv(&part, caller->socket, ZMQ_DONTWAIT) < 0) continue;
        size_t bytes = zmq_msg_size(&part);
        void *frame = memcpy(qn_arena_alloc(arena, bytes + 1, 8), zmq_msg_data(&part), bytes);
        zmq_msg_close(&part);
        *ret_type = qn_message_type_of(frame, bytes);
        const qn_wire_type_t *type = qn_wire_type(*ret_type);
        if (!type) continue;
        void *message = qn_arena_alloc(arena, type->struct_bytes, 16);
        if (qn_wire_decode(type, frame, bytes, arena, message) == QN_OK) return message;
    }
    return NULL;
}

static qn_err_t greet(direct_caller_t *caller, qn_arena_t *arena)
{
    qn_message_type_t type;
    void *message;
    uint64_t until_ns = qn_clock_now_ns() + HELLO_NS;
    bool said = false;
    while (!said && qn_clock_now_ns() < until_ns) /* the connection is being made */
        if (!(said = say_hello(caller, arena))) usleep(1000);
    while (said && (message = receive(caller, until_ns, arena, &type))) {
        if (type == QN_MESSAGE_BYE) {
            const qn_bye_t *bye = message;
            return qn_fail(QN_ERR_PEER, "%s: %.*s", caller->endpoint, (int)bye->reason.bytes, bye->reason.data);
        }
        if (type != QN_MESSAGE_HELLO) continue;
        caller->beat_ns = qn_clock_now_ns();
        return QN_OK;
    }
    return qn_fail(QN_ERR_NOT_FOUND, "%s of %s does not answer; is it running? (quintet status)", caller->endpoint,
                   qn_service_name(caller->service));
}

static bool is_missing(const char *endpoint)
{
    return strncmp(endpoint, "ipc://", 6) == 0 && access(endpoint + 6, F_OK) != 0;
}

static qn_err_t dial(direct_caller_t *caller, const qn_config_values_t *values)
{
    char run_dir[QN_PATH_MAX];
    int linger_ms = 200;
    qn_err_t err = qn_paths_run_dir(values, run_dir, sizeof run_dir);
    if (!err) err = qn_endpoint_outer(values, run_dir, caller->service, caller->endpoint);
    if (err) return err;
    if (is_missing(caller->endpoint))
        return qn_fail(QN_ERR_NOT_FOUND, "there is no %s; start quintet up, or give its --run-dir",
                       caller->endpoint + 6);
    caller->context = zmq_ctx_new();
    caller->socket = zmq_socket(caller->context, ZMQ_DEALER);
    zmq_setsockopt(caller->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    if (zmq_connect(caller->socket, caller->endpoint) != 0)
        return qn_fail(QN_ERR_IO, "cannot dial %s: %s", caller->endpoint, zmq_strerror(zmq_errno()));
    return QN_OK;
}

qn_err_t direct_open(const qn_config_values_t *values, qn_service_t service, direct_caller_t **ret_caller)
{
    qn_arena_t arena;
    direct_caller_t *caller = calloc(1, sizeof *caller);
    QN_ASSERT(caller != NULL);
    caller->service = service;
    caller->epoch = ((uint32_t)getpid() * 2654435761u ^ (uint32_t)qn_clock_now_ns()) | 1;
    qn_arena_init(&arena, 0);
    qn_err_t err = dial(caller, values);
    if (!err) err = greet(caller, &arena);
    qn_arena_fini(&arena);
    if (err)
        direct_close(&caller);
    else
        *ret_caller = caller;
    return err;
}

void direct_close(direct_caller_t **caller_ref)
{
    direct_caller_t *caller = *caller_ref;
    qn_bye_t bye = {.reason = qn_text("done")};
    qn_arena_t arena;
    if (!caller) return;
    qn_arena_init(&arena, 0);
    if (caller->beat_ns) send_message(caller, QN_MESSAGE_BYE, &bye, 0, &arena);
    qn_arena_fini(&arena);
    if (caller->socket) zmq_close(caller->socket);
    if (caller->context) zmq_ctx_term(caller->context);
    free(caller);
    *caller_ref = NULL;
}

qn_err_t direct_call(direct_caller_t *caller, const qn_method_t *method, void *request, qn_arena_t *arena,
                     direct_reply_t *ret_reply)
{
    qn_message_type_t type;
    void *message;
    *ret_reply = (direct_reply_t){0};
    ((qn_head_t *)request)->request = ++caller->sequence;
    if (!send_message(caller, method->request, request, caller->sequence, arena))
        return qn_fail(QN_ERR_INVALID, "the request cannot be sent: %.400s", qn_err_text());
    uint64_t until_ns = qn_clock_now_ns() + method->seconds * 1000000000ull;
    while ((message = receive(caller, until_ns, arena, &type))) {
        if (((const qn_head_t *)message)->request != caller->sequence) continue;
        if (type == method->reply) {
            ret_reply->reply = message;
            return QN_OK;
        }
        if (type != QN_MESSAGE_REFUSAL) continue;
        const qn_refusal_t *refusal = message;
        ret_reply->status = refusal->status;
        ret_reply->param = refusal->param;
        ret_reply->text = refusal->text;
        return QN_OK;
    }
    return qn_fail(QN_ERR_TIMEOUT, "%s did not answer within %u s", method->name, method->seconds);
}
