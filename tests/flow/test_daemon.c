/* The skeleton with two small services, a client that dials and a server that echoes, as threads over inproc and over
 * ipc: greeting, order, credit beyond the window, a restarted peer, a duplicate start, a bad frame. */
#include <czmq.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/daemon/daemon.h"
#include "common/limits.h"
#include "common/wire/wire.h"
#include "tests/flow/runner.h"

#define DEADLINE_NS 20000000000ull

/* What the test and its services share. */
typedef struct {
    atomic_uint peers_up, peers_gone, answers, out_of_order, refusals;
    atomic_uint too_long; /* messages that could not be sent for their size */
    atomic_uint wanted;   /* requests the client shall send */
    atomic_uint server_epoch;
} board_t;

static board_t board;

typedef struct {
    qn_daemon_t *daemon;
    uint64_t sent, expected;
} state_t;

static qn_err_t test_init(qn_daemon_t *daemon, const qn_config_values_t *config, void **ret_state)
{
    (void)config;
    state_t *state = calloc(1, sizeof *state);
    assert_non_null(state);
    state->daemon = daemon;
    state->expected = 1;
    qn_daemon_set_state(daemon, QN_STATE_READY, "test");
    *ret_state = state;
    return QN_OK;
}

static void test_fini(void **state)
{
    free(*state);
    *state = NULL;
}

static uint64_t server_tick(void *state, uint64_t now_ns)
{
    (void)state;
    (void)now_ns;
    return UINT64_MAX;
}

static void server_lease(void *opaque, qn_peer_t from, const void *message)
{
    state_t *state = opaque;
    const qn_lease_t *lease = message;
    uint32_t blocks[3] = {1, 2, 3};
    qn_grant_t grant = {.batch = lease->batch, .blocks = blocks, .blocks_count = lease->ids_count % 4};
    while (qn_daemon_send(state->daemon, from, QN_MESSAGE_GRANT, &grant) == QN_SEND_FULL)
        abort();
}

/* Breaks the schema of a Lease; nothing is sent, and the numbering of the link has no gap. */
static void send_too_long(state_t *state, qn_peer_t server)
{
    static uint32_t ids[QN_LEASE_IDS_MAX + 1];
    qn_lease_t lease = {.batch = 1, .ids = ids, .ids_count = QN_LEASE_IDS_MAX + 1};
    if (qn_daemon_send(state->daemon, server, QN_MESSAGE_LEASE, &lease) == QN_SEND_INVALID)
        atomic_fetch_add(&board.too_long, 1);
}

static uint64_t client_tick(void *opaque, uint64_t now_ns)
{
    state_t *state = opaque;
    qn_peer_t server = qn_daemon_peer(state->daemon, QN_SERVICE_MEMORY);
    uint32_t ids[64] = {0};
    if (server.epoch && atomic_load(&board.wanted) > state->sent) send_too_long(state, server);
    while (server.epoch && state->sent < atomic_load(&board.wanted)) {
        /* Lengths vary, so over ipc the frames land at every alignment. */
        qn_lease_t lease = {.batch = state->sent + 1, .ids = ids, .ids_count = (uint32_t)(state->sent % 61)};
        if (qn_daemon_send(state->daemon, server, QN_MESSAGE_LEASE, &lease) != QN_SEND_OK) break;
        state->sent++;
    }
    return now_ns + 2000000;
}

static void client_grant(void *opaque, qn_peer_t from, const void *message)
{
    (void)from;
    state_t *state = opaque;
    const qn_grant_t *grant = message;
    if (grant->batch != state->expected || grant->blocks_count != ((grant->batch - 1) % 61) % 4)
        atomic_fetch_add(&board.out_of_order, 1);
    state->expected = grant->batch + 1;
    atomic_fetch_add(&board.answers, 1);
}

static void client_refusal(void *opaque, qn_peer_t from, const void *message)
{
    (void)opaque;
    (void)from;
    (void)message;
    atomic_fetch_add(&board.refusals, 1);
}

static void client_peer(void *opaque, qn_peer_t peer, qn_peer_event_t event)
{
    state_t *state = opaque;
    if (event == QN_PEER_UP) {
        atomic_store(&board.server_epoch, peer.epoch);
        atomic_fetch_add(&board.peers_up, 1);
        state->sent = 0; /* a new life knows nothing of what the old one was sent */
        state->expected = 1;
    }
    if (event == QN_PEER_GONE) atomic_fetch_add(&board.peers_gone, 1);
}

static const qn_handler_t server_handlers[] = {{QN_MESSAGE_LEASE, server_lease}, {QN_MESSAGE_NONE, NULL}};
static const qn_handler_t client_handlers[] = {{QN_MESSAGE_GRANT, client_grant},
                                               {QN_MESSAGE_REFUSAL, client_refusal},
                                               {QN_MESSAGE_NONE, NULL}};
static const qn_daemon_descriptor_t server_daemon = {
    .service = QN_SERVICE_MEMORY,
    .name = "memory",
    .dials = (const qn_service_t[]){QN_SERVICE_NONE},
    .handlers = server_handlers,
    .init = test_init,
    .tick = server_tick,
    .fini = test_fini,
};
static const qn_daemon_descriptor_t client_daemon = {
    .service = QN_SERVICE_SCHEDULER,
    .name = "scheduler",
    .dials = (const qn_service_t[]){QN_SERVICE_MEMORY, QN_SERVICE_NONE},
    .handlers = client_handlers,
    .init = test_init,
    .peer = client_peer,
    .tick = client_tick,
    .fini = test_fini,
};

static void wait_for(atomic_uint *value, unsigned wanted)
{
    uint64_t until_ns = qn_clock_now_ns() + DEADLINE_NS;
    while (atomic_load(value) < wanted) {
        if (qn_clock_now_ns() > until_ns) fail_msg("%u of %u after 20 s", atomic_load(value), wanted);
        usleep(500);
    }
}

static char run_dir[64];
static qn_config_t *config;

static int setup(void **state)
{
    (void)state;
    memset(&board, 0, sizeof board);
    snprintf(run_dir, sizeof run_dir, "/tmp/qn-flow-XXXXXX");
    assert_non_null(mkdtemp(run_dir));
    assert_int_equal(qn_config_load(NULL, NULL, 0, run_dir, &config), QN_OK);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    qn_config_free(&config);
    snprintf(command, sizeof command, "rm -r '%s'", run_dir);
    return system(command);
}

static const unsigned all = 1u << QN_SERVICE_MEMORY | 1u << QN_SERVICE_SCHEDULER;

/* Three windows' worth: credit must be granted again and again, and nothing may be lost or reordered. */
static void exchange(unsigned composed)
{
    runner_t server, client;
    runner_start(&client, &client_daemon, config, composed); /* the dialling side first: it waits */
    runner_start(&server, &server_daemon, config, composed);
    atomic_store(&board.wanted, 3 * QN_LINK_WINDOW);
    wait_for(&board.answers, 3 * QN_LINK_WINDOW);
    assert_int_equal(atomic_load(&board.out_of_order), 0);
    assert_true(atomic_load(&board.too_long) > 0); /* and none of these was an end, or a gap */
    assert_int_equal(runner_stop(&client), QN_OK);
    assert_int_equal(runner_stop(&server), QN_OK);
}

static void test_daemon_inproc_delivers_all_in_order(void **state)
{
    (void)state;
    exchange(all);
}
static void test_daemon_ipc_delivers_all_in_order(void **state)
{
    (void)state;
    exchange(0);
}

static void restart(unsigned composed)
{
    runner_t server, client;
    runner_start(&server, &server_daemon, config, composed);
    runner_start(&client, &client_daemon, config, composed);
    atomic_store(&board.wanted, 10);
    wait_for(&board.answers, 10);
    assert_int_equal(atomic_load(&board.server_epoch), 1);
    assert_int_equal(runner_stop(&server), QN_OK);
    /* The farewell may be lost with the connection; then the new life says that it does not know the client. */
    runner_start(&server, &server_daemon, config, composed);
    wait_for(&board.answers, 20);
    assert_int_equal(atomic_load(&board.peers_gone), 1);
    assert_int_equal(atomic_load(&board.server_epoch), 2);
    assert_int_equal(atomic_load(&board.out_of_order), 0);
    assert_int_equal(runner_stop(&client), QN_OK);
    assert_int_equal(runner_stop(&server), QN_OK);
}

static void test_daemon_restarted_server_is_another_epoch(void **state)
{
    (void)state;
    restart(0);
}
static void test_daemon_restarted_in_a_composition_is_another_epoch(void **state)
{
    (void)state;
    restart(all);
}

static void test_daemon_second_start_is_refused(void **state)
{
    (void)state;
    runner_t server, client;
    runner_start(&server, &server_daemon, config, 0);
    runner_start(&client, &client_daemon, config, 0);
    wait_for(&board.peers_up, 1);
    assert_int_equal(qn_daemon_run(&server_daemon, config, 0, -1), QN_ERR_EXISTS);
    assert_non_null(strstr(qn_err_text(), "already runs in"));
    atomic_store(&board.wanted, 5); /* and the first one was not disturbed */
    wait_for(&board.answers, 5);
    runner_stop(&client);
    runner_stop(&server);
}

static void test_daemon_bad_frames_disturb_nobody(void **state)
{
    (void)state;
    runner_t server, client;
    runner_start(&server, &server_daemon, config, 0);
    runner_start(&client, &client_daemon, config, 0);
    wait_for(&board.peers_up, 1);
    zsock_t *stranger = zsock_new(ZMQ_DEALER);
    assert_int_equal(zsock_connect(stranger, "ipc://%s/memory.sock", run_dir), 0);
    for (int i = 0; i < 500; i++) {
        uint8_t noise[64];
        for (size_t j = 0; j < sizeof noise; j++)
            noise[j] = (uint8_t)(i * 31 + (int)j * 7);
        memcpy(noise + 4, i % 2 ? "QLEA" : "XXXX", 4);
        assert_true(zmq_send(zsock_resolve(stranger), noise, (size_t)i % sizeof noise, i % 3 ? 0 : ZMQ_SNDMORE) >= 0);
    }
    zmq_send(zsock_resolve(stranger), "", 0, 0);
    atomic_store(&board.wanted, 50);
    wait_for(&board.answers, 50);
    assert_int_equal(atomic_load(&board.out_of_order), 0);
    zsock_destroy(&stranger);
    runner_stop(&client);
    runner_stop(&server);
}

/* A message the server has no handler for: the sender hears of it. */
static void test_daemon_unhandled_message_is_refused(void **state)
{
    (void)state;
    qn_handler_t none[] = {{QN_MESSAGE_NONE, NULL}};
    qn_daemon_descriptor_t deaf = server_daemon;
    deaf.handlers = none;
    runner_t server, client;
    runner_start(&server, &deaf, config, 0);
    runner_start(&client, &client_daemon, config, 0);
    atomic_store(&board.wanted, 3);
    wait_for(&board.refusals, 3);
    runner_stop(&client);
    runner_stop(&server);
}

/* ---- greetings by hand: what a confused or forged peer of the same user can send ---- */

typedef struct {
    zsock_t *socket;
    qn_arena_t arena;
} stranger_t;

static void stranger_open(stranger_t *stranger, const char *identity)
{
    qn_arena_init(&stranger->arena, 0);
    stranger->socket = zsock_new(ZMQ_DEALER);
    zsock_set_identity(stranger->socket, identity);
    zsock_set_rcvtimeo(stranger->socket, 10000);
    assert_int_equal(zsock_connect(stranger->socket, "ipc://%s/memory.sock", run_dir), 0);
}

static void stranger_close(stranger_t *stranger)
{
    zsock_destroy(&stranger->socket);
    qn_arena_fini(&stranger->arena);
}

static void boot_host(char ret_host[QN_NAME_MAX])
{
    char boot[40] = "";
    struct stat space;
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%36s", boot), 1);
    fclose(file);
    assert_int_equal(stat("/proc/self/ns/pid", &space), 0);
    snprintf(ret_host, QN_NAME_MAX, "%s.%lu", boot, (unsigned long)space.st_ino);
}

/* Greets; returns true when it is greeted back, else *ret_reason is that of the Bye. */
static bool greet(stranger_t *stranger, uint32_t epoch, pid_t pid, uint16_t lowest, uint16_t highest,
                  char ret_reason[QN_REASON_MAX])
{
    char host[QN_NAME_MAX];
    boot_host(host);
    qn_hello_t hello = {.head = {.src = QN_SERVICE_SCHEDULER, .dst = QN_SERVICE_MEMORY, .epoch = epoch},
                        .protocol = highest,
                        .protocol_lowest = lowest,
                        .service = QN_SERVICE_SCHEDULER,
                        .pid = (uint32_t)pid,
                        .window = 16,
                        .host = qn_text(host)};
    const uint8_t *frame;
    size_t bytes;
    qn_arena_reset(&stranger->arena);
    assert_int_equal(qn_hello_encode(&hello, &stranger->arena, &frame, &bytes), QN_OK);
    assert_true(zmq_send(zsock_resolve(stranger->socket), frame, bytes, 0) >= 0);
    for (;;) { /* heartbeats of a greeting before are skipped */
        zmq_msg_t part;
        zmq_msg_init(&part);
        if (zmq_msg_recv(&part, zsock_resolve(stranger->socket), 0) < 0) fail_msg("no answer to a greeting");
        size_t answer_bytes = zmq_msg_size(&part);
        void *answer = memcpy(qn_arena_alloc(&stranger->arena, answer_bytes, 8), zmq_msg_data(&part), answer_bytes);
        zmq_msg_close(&part);
        qn_message_type_t type = qn_message_type_of(answer, answer_bytes);
        if (type == QN_MESSAGE_HELLO) return true;
        qn_bye_t bye;
        if (type != QN_MESSAGE_BYE) continue;
        assert_int_equal(qn_bye_decode(answer, answer_bytes, &stranger->arena, &bye), QN_OK);
        snprintf(ret_reason, QN_REASON_MAX, "%.*s", (int)bye.reason.bytes, bye.reason.data);
        return false;
    }
}

static void test_daemon_greeting_of_another_protocol_is_refused_naming_both(void **state)
{
    (void)state;
    const struct {
        uint16_t lowest, highest;
        bool accepted;
    } table[] = {
        {QN_PROTOCOL + 1, QN_PROTOCOL + 3, false},
        {QN_PROTOCOL_LOWEST, QN_PROTOCOL + 3, true},
        {0, QN_PROTOCOL, true}, /* a build that names only one */
        {0, QN_PROTOCOL + 1, false},
        {0, 0, false},
        {65535, 65535, false},
        {QN_PROTOCOL + 3, QN_PROTOCOL, false}, /* nonsense */
    };
    runner_t server;
    runner_start(&server, &server_daemon, config, 0);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        stranger_t stranger;
        char name[32], reason[QN_REASON_MAX] = "";
        snprintf(name, sizeof name, "stranger.%zu", i);
        stranger_open(&stranger, name);
        bool accepted = greet(&stranger, 10 + (uint32_t)i, getpid(), table[i].lowest, table[i].highest, reason);
        if (accepted != table[i].accepted) fail_msg("row %zu: %s", i, accepted ? "accepted" : reason);
        char both[64];
        snprintf(both, sizeof both, "this build %u to %u", QN_PROTOCOL_LOWEST, QN_PROTOCOL);
        if (!accepted) assert_non_null(strstr(reason, both));
        stranger_close(&stranger);
    }
    assert_int_equal(runner_stop(&server), QN_OK);
}

static pid_t start_sleeper(void)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        for (;;)
            pause();
    }
    return child;
}

/* A newer epoch is no proof that the first is dead: its process is. */
static void test_daemon_identity_is_not_taken_over_before_its_holder_is_dead(void **state)
{
    (void)state;
    runner_t server;
    stranger_t first, second;
    char reason[QN_REASON_MAX] = "";
    pid_t holder = start_sleeper(), other = start_sleeper();
    runner_start(&server, &server_daemon, config, 0);
    stranger_open(&first, "first");
    stranger_open(&second, "second");
    assert_true(greet(&first, 3, holder, 1, 1, reason));
    assert_false(greet(&second, 4, other, 1, 1, reason)); /* newer */
    assert_non_null(strstr(reason, "not proven dead"));
    assert_false(greet(&second, 3, holder, 1, 1, reason)); /* the same life over another connection */
    assert_false(greet(&first, 9, holder, 1, 1, reason));  /* the same connection, as somebody else */
    assert_true(greet(&first, 3, holder, 1, 1, reason));   /* undisturbed */
    assert_int_equal(kill(holder, SIGKILL), 0);
    assert_int_equal(waitpid(holder, NULL, 0), holder);
    assert_true(greet(&second, 4, other, 1, 1, reason));
    assert_int_equal(kill(other, SIGKILL), 0);
    waitpid(other, NULL, 0);
    stranger_close(&first);
    stranger_close(&second);
    assert_int_equal(runner_stop(&server), QN_OK);
}

/* A real client goes on while somebody else claims to be it. */
static void test_daemon_forged_greeting_disturbs_nobody(void **state)
{
    (void)state;
    runner_t server, client;
    stranger_t stranger;
    char reason[QN_REASON_MAX] = "";
    pid_t other = start_sleeper();
    runner_start(&server, &server_daemon, config, 0);
    runner_start(&client, &client_daemon, config, 0);
    wait_for(&board.peers_up, 1);
    stranger_open(&stranger, "forged");
    for (unsigned i = 1; i <= 20; i++) {
        assert_false(greet(&stranger, 1000 + i, other, 1, 1, reason));
        atomic_store(&board.wanted, 50 * i);
        wait_for(&board.answers, 50 * i);
    }
    assert_int_equal(atomic_load(&board.out_of_order), 0);
    assert_int_equal(atomic_load(&board.peers_gone), 0);
    assert_int_equal(kill(other, SIGKILL), 0);
    waitpid(other, NULL, 0);
    stranger_close(&stranger);
    runner_stop(&client);
    runner_stop(&server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_daemon_inproc_delivers_all_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_daemon_ipc_delivers_all_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_daemon_restarted_server_is_another_epoch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_daemon_restarted_in_a_composition_is_another_epoch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_daemon_second_start_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_daemon_greeting_of_another_protocol_is_refused_naming_both, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_daemon_identity_is_not_taken_over_before_its_holder_is_dead, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_daemon_forged_greeting_disturbs_nobody, setup, teardown),
        cmocka_unit_test_setup_teardown(test_daemon_bad_frames_disturb_nobody, setup, teardown),
        cmocka_unit_test_setup_teardown(test_daemon_unhandled_message_is_refused, setup, teardown),
    };
    return cmocka_run_group_tests_name("daemon", tests, NULL, NULL);
}
