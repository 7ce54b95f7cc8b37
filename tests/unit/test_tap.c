/* What is this?      Tests of common/watch/tap: a daemon's mirror of its frames, seen from both ends.
 * State owned:       a temporary run directory per test.
 * Must never:        sleep; it waits for events with a deadline.
 * Read next:         common/watch/tap.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <czmq.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/limits.h"
#include "common/watch/tap.h"

#define DEADLINE_MS 60000
#define SCHEDULER 3
#define COMPUTE 5
#define FRAME "\x08\x00\x00\x00QSPLsomething"

static int make_run_dir(void **state)
{
    char *run_dir = strdup("/tmp/quintet-tap-XXXXXX");
    *state = run_dir;
    return run_dir && mkdtemp(run_dir) ? 0 : -1;
}

static int remove_run_dir(void **state)
{
    /* Fails when a closed tap left its socket behind. */
    int failed = rmdir(*state);
    free(*state);
    return failed;
}

/* Polls `socket` for input; fails the test after the deadline. `other` (may be NULL) is a ZeroMQ socket of this thread
 * that must get the chance to do its own work, such as to subscribe again on a new connection. */
static void wait_for_either(void *socket, void *other)
{
    zmq_pollitem_t items[] = {{.socket = socket, .events = ZMQ_POLLIN}, {.socket = other, .events = ZMQ_POLLIN}};
    assert_true(zmq_poll(items, other ? 2 : 1, DEADLINE_MS) > 0);
}

static void wait_for(void *socket) { wait_for_either(socket, NULL); }

static void wait_for_listener(qn_tap_t *tap, void *listener)
{
    while (!qn_tap_listening(tap)) {
        wait_for_either(qn_tap_socket(tap), listener);
        qn_tap_turn(tap);
    }
}

static void take_one(qn_tap_reader_t *reader, qn_tap_message_t *message)
{
    while (!qn_tap_reader_take(reader, message))
        wait_for(qn_tap_reader_socket(reader));
}

static qn_tap_t *open_tap(const char *run_dir, const char *service)
{
    qn_tap_t *tap = NULL;
    assert_int_equal(qn_tap_open(run_dir, service, strcmp(service, "compute") ? SCHEDULER : COMPUTE, &tap), QN_OK);
    return tap;
}

static qn_tap_reader_t *connect_reader(const char *run_dir)
{
    static const char *const services[] = {"scheduler", "compute"};
    qn_tap_reader_t *reader = NULL;
    assert_int_equal(qn_tap_reader_open(run_dir, services, 2, &reader), QN_OK);
    return reader;
}

static qn_tap_reader_t *open_reader(const char *run_dir)
{
    qn_tap_reader_t *reader = connect_reader(run_dir);
    qn_tap_reader_want_all(reader);
    return reader;
}

static void test_tap_without_listener_numbers_nothing(void **state)
{
    qn_tap_t *tap = open_tap(*state, "scheduler");
    qn_tap_turn(tap);
    assert_false(qn_tap_listening(tap));
    qn_tap_frame(tap, QN_TAP_SENT, FRAME, sizeof FRAME);
    assert_int_equal(tap->type_count, 0);
    qn_tap_close(&tap);
    assert_null(tap);
}

static void test_tap_with_listener_mirrors_header_and_frame(void **state)
{
    qn_tap_t *tap = open_tap(*state, "scheduler");
    qn_tap_reader_t *reader = open_reader(*state);
    wait_for_listener(tap, qn_tap_reader_socket(reader));
    uint64_t before_ns = qn_clock_now_ns();
    qn_tap_frame(tap, QN_TAP_SENT, FRAME, sizeof FRAME);
    qn_tap_frame(tap, QN_TAP_DROPPED, "abc", 3);
    qn_tap_frame(tap, QN_TAP_DROPPED, "", 0);

    qn_tap_message_t message;
    take_one(reader, &message);
    assert_memory_equal(message.header->type, "QSPL", 4);
    assert_string_equal(message.header->service, "scheduler");
    assert_int_equal(message.header->direction, QN_TAP_SENT);
    assert_int_equal(message.header->pid, getpid());
    assert_int_equal(message.header->number, 1);
    assert_in_range(message.header->now_ns, before_ns, qn_clock_now_ns());
    assert_int_equal(message.bytes, sizeof FRAME);
    assert_memory_equal(message.frame, FRAME, sizeof FRAME);
    assert_int_equal((uintptr_t)message.frame % 16, 0);
    assert_int_equal(message.missed, 0);
    assert_false(message.new_boot);

    take_one(reader, &message);
    assert_int_equal(message.header->direction, QN_TAP_DROPPED);
    assert_memory_equal(message.header->type, "\0\0\0\0", 4);
    assert_int_equal(message.bytes, 3);
    take_one(reader, &message);
    assert_int_equal(message.bytes, 0);
    assert_int_equal(message.missed, 0);
    qn_tap_reader_close(&reader);
    qn_tap_close(&tap);
}

static void test_tap_listener_leaves_costs_nothing_again(void **state)
{
    qn_tap_t *tap = open_tap(*state, "scheduler");
    qn_tap_reader_t *first = open_reader(*state), *second = open_reader(*state);
    wait_for_listener(tap, qn_tap_reader_socket(first));
    qn_tap_reader_close(&first);
    qn_tap_reader_close(&second);
    while (qn_tap_listening(tap)) {
        wait_for(qn_tap_socket(tap));
        qn_tap_turn(tap);
    }
    qn_tap_frame(tap, QN_TAP_SENT, FRAME, sizeof FRAME);
    assert_int_equal(tap->type_count, 0);
    qn_tap_close(&tap);
}

static void test_tap_slow_listener_misses_frames_and_knows_how_many(void **state)
{
    enum { FRAMES = QN_TAP_QUEUE + 4000, BYTES = 4096 };
    qn_tap_t *tap = open_tap(*state, "scheduler");
    /* A listener with the smallest queue there is that reads nothing until all is sent. */
    zsock_t *slow = zsock_new(ZMQ_SUB);
    zsock_set_rcvhwm(slow, 1);
    zsock_set_subscribe(slow, "");
    assert_int_equal(zsock_connect(slow, "ipc://%s/scheduler.tap", (char *)*state), 0);
    wait_for_listener(tap, zsock_resolve(slow));

    char *frame = calloc(1, BYTES);
    uint64_t slowest_ns = 0, begin_ns = qn_clock_now_ns();
    for (int i = 0; i < FRAMES; i++) {
        uint64_t now_ns = qn_clock_now_ns();
        qn_tap_frame(tap, QN_TAP_SENT, frame, BYTES);
        uint64_t took_ns = qn_clock_now_ns() - now_ns;
        slowest_ns = took_ns > slowest_ns ? took_ns : slowest_ns;
    }
    /* A sender that waited for its listener would never come here; the figures catch one that waits a while. */
    assert_true(qn_clock_now_ns() - begin_ns < DEADLINE_MS * 1000000ull);
    assert_int_equal(tap->types[0].number, FRAMES);

    uint64_t received = 0, last = 0, missed = 0;
    zsock_set_rcvtimeo(slow, 300);
    zmq_msg_t message;
    zmq_msg_init(&message);
    while (zmq_msg_recv(&message, zsock_resolve(slow), 0) >= 0) {
        qn_tap_header_t header;
        memcpy(&header, zmq_msg_data(&message), sizeof header);
        missed += header.number - last - 1;
        last = header.number;
        received++;
    }
    zmq_msg_close(&message);
    missed += FRAMES - last;
    print_message("[ figures  ] sent %d, received %llu, missed %llu, slowest mirror %llu us\n", FRAMES,
                  (unsigned long long)received, (unsigned long long)missed, (unsigned long long)slowest_ns / 1000);
    assert_true(missed > 0);
    assert_int_equal(received + missed, FRAMES);
    free(frame);
    zsock_destroy(&slow);
    qn_tap_close(&tap);
}

static void test_tap_reader_gap_in_numbers_is_reported(void **state)
{
    qn_tap_t *tap = open_tap(*state, "scheduler");
    qn_tap_reader_t *reader = open_reader(*state);
    wait_for_listener(tap, qn_tap_reader_socket(reader));
    qn_tap_message_t message;
    qn_tap_frame(tap, QN_TAP_SENT, FRAME, sizeof FRAME);
    take_one(reader, &message);
    /* As if a full queue had swallowed three. */
    tap->types[0].number += 3;
    qn_tap_frame(tap, QN_TAP_SENT, FRAME, sizeof FRAME);
    qn_tap_frame(tap, QN_TAP_SENT, FRAME, sizeof FRAME);
    take_one(reader, &message);
    assert_int_equal(message.missed, 3);
    take_one(reader, &message);
    assert_int_equal(message.missed, 0);
    qn_tap_reader_close(&reader);
    qn_tap_close(&tap);
}

/* Only what was asked for leaves the daemon, and only that is numbered: a listener to one type misses none of the others. */
static void test_tap_mirrors_only_the_types_asked_for(void **state)
{
    static const char other[] = "\x08\x00\x00\x00QSRSsomething";
    qn_tap_t *tap = open_tap(*state, "scheduler"), *far = open_tap(*state, "compute");
    qn_tap_reader_t *reader = connect_reader(*state);
    qn_tap_reader_want(reader, SCHEDULER, "QSPL");
    qn_tap_reader_want_dropped(reader);
    while (tap->topics < 2 || far->topics < 2) {
        wait_for_either(qn_tap_socket(tap->topics < 2 ? tap : far), qn_tap_reader_socket(reader));
        qn_tap_turn(tap);
        qn_tap_turn(far);
    }
    qn_tap_message_t message;
    qn_tap_frame(tap, QN_TAP_SENT, other, sizeof other);
    qn_tap_frame(far, QN_TAP_SENT, FRAME, sizeof FRAME);
    for (int i = 0; i < 3; i++) {
        qn_tap_frame(tap, QN_TAP_SENT, FRAME, sizeof FRAME);
        qn_tap_frame(tap, QN_TAP_SENT, other, sizeof other);
        take_one(reader, &message);
        assert_memory_equal(message.header->type, "QSPL", 4);
        assert_int_equal(message.header->number, i + 1);
        assert_int_equal(message.header->source, SCHEDULER);
        assert_int_equal(message.missed, 0);
    }
    qn_tap_frame(far, QN_TAP_DROPPED, other, sizeof other);
    take_one(reader, &message);
    assert_string_equal(message.header->service, "compute");
    assert_int_equal(message.header->direction, QN_TAP_DROPPED);
    assert_false(qn_tap_reader_take(reader, &message));
    for (unsigned i = 0; i < tap->type_count; i++)
        assert_int_equal(tap->types[i].number, memcmp(tap->types[i].topic + 4, "QSPL", 4) ? 0 : 3);
    qn_tap_reader_close(&reader);
    while (qn_tap_listening(tap)) {
        wait_for(qn_tap_socket(tap));
        qn_tap_turn(tap);
    }
    qn_tap_close(&tap);
    qn_tap_close(&far);
}

/* More subscriptions than the tap keeps apart count as one to everything, until they are gone. */
static void test_tap_more_topics_than_kept_mirror_everything(void **state)
{
    qn_tap_t *tap = open_tap(*state, "scheduler");
    qn_tap_reader_t *reader = connect_reader(*state);
    const unsigned count = QN_TAP_TOPICS_MAX + 10;
    for (unsigned i = 0; i < count; i++)
        qn_tap_reader_want(reader, SCHEDULER, (char[4]){'a', 'b', (char)('A' + i % 32), (char)('A' + i / 32)});
    while (tap->topics < count) {
        wait_for_either(qn_tap_socket(tap), qn_tap_reader_socket(reader));
        qn_tap_turn(tap);
    }
    assert_int_equal(tap->unkept, 10);
    qn_tap_frame(tap, QN_TAP_SENT, FRAME, sizeof FRAME);
    assert_int_equal(tap->types[0].number, 1);
    qn_tap_reader_close(&reader);
    while (qn_tap_listening(tap)) {
        wait_for(qn_tap_socket(tap));
        qn_tap_turn(tap);
    }
    assert_int_equal(tap->unkept, 0);
    qn_tap_close(&tap);
}

static void test_tap_daemon_restarts_reader_finds_it_again(void **state)
{
    qn_tap_reader_t *reader = open_reader(*state);
    qn_tap_message_t message;
    for (int boot = 0; boot < 3; boot++) {
        qn_tap_t *tap = open_tap(*state, "compute");
        wait_for_listener(tap, qn_tap_reader_socket(reader));
        qn_tap_frame(tap, QN_TAP_SENT, FRAME, sizeof FRAME);
        take_one(reader, &message);
        assert_int_equal(message.header->number, 1);
        assert_int_equal(message.new_boot, boot > 0);
        assert_int_equal(message.missed, 0);
        qn_tap_close(&tap);
    }
    qn_tap_reader_close(&reader);
}

static void test_tap_reader_foreign_messages_are_skipped_and_counted(void **state)
{
    qn_tap_header_t good = {.version = QN_TAP_VERSION, .type = "QSPL", .boot_ns = 1, .number = 1, .service = "compute"};
    struct {
        const char *name;
        qn_tap_header_t header;
        size_t bytes;
    } cases[] = {
        {"short", good, sizeof good - 1},        {"version", good, sizeof good}, {"length", good, sizeof good},
        {"name without end", good, sizeof good}, {"good", good, sizeof good},
    };
    cases[1].header.version++;
    cases[2].header.frame_bytes = 1;
    memset(cases[3].header.service, 'x', sizeof cases[3].header.service);

    zsock_t *fake = zsock_new(ZMQ_XPUB);
    assert_int_equal(zsock_bind(fake, "ipc://%s/compute.tap", (char *)*state), 0);
    qn_tap_reader_t *reader = open_reader(*state);
    wait_for(zsock_resolve(fake));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_true(zmq_send(zsock_resolve(fake), &cases[i].header, cases[i].bytes, 0) >= 0);
    qn_tap_message_t message;
    take_one(reader, &message);
    assert_string_equal(message.header->service, "compute");
    assert_int_equal(qn_tap_reader_foreign(reader), 4);
    qn_tap_reader_close(&reader);
    zsock_destroy(&fake);
    char path[128];
    snprintf(path, sizeof path, "%s/compute.tap", (char *)*state);
    assert_int_equal(unlink(path), 0);
}

static void test_tap_path_beyond_a_socket_name_is_refused(void **state)
{
    (void)state;
    char run_dir[QN_PATH_MAX] = {0};
    memset(run_dir, 'x', 300);
    qn_tap_t *tap = NULL;
    assert_int_equal(qn_tap_open(run_dir, "compute", COMPUTE, &tap), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "--run-dir"));
    assert_null(tap);
    assert_int_equal(qn_tap_open("/tmp", "a-service-with-a-very-long-name", COMPUTE, &tap), QN_ERR_INVALID);
    assert_int_equal(qn_tap_open("/tmp/there/is/no/such/directory", "compute", COMPUTE, &tap), QN_ERR_IO);
    assert_null(tap);
}

static void test_tap_spans_are_for_those_who_ask(void **state)
{
    qn_tap_t *tap = open_tap(*state, "scheduler");
    qn_tap_reader_t *reader = connect_reader(*state);
    qn_tap_reader_want(reader, SCHEDULER, "QSPL");
    wait_for_listener(tap, qn_tap_reader_socket(reader));
    assert_false(qn_tap_wants_spans(tap));
    qn_tap_reader_want_spans(reader);
    while (!qn_tap_wants_spans(tap)) {
        wait_for(qn_tap_socket(tap));
        qn_tap_turn(tap);
    }
    qn_tap_span_t span = {.kind = QN_TAP_HANDLED, .type = "QSUB", .sequence = 7, .begin_ns = 10, .end_ns = 20};
    qn_tap_span(tap, &span);
    qn_tap_message_t message;
    take_one(reader, &message);
    assert_int_equal(message.header->direction, QN_TAP_SPAN);
    assert_int_equal(message.bytes, sizeof span);
    assert_memory_equal(message.frame, &span, sizeof span);
    qn_tap_reader_close(&reader);
    while (qn_tap_listening(tap)) {
        wait_for(qn_tap_socket(tap));
        qn_tap_turn(tap);
    }
    assert_false(qn_tap_wants_spans(tap));
    qn_tap_close(&tap);
}

int main(void)
{
    setenv("ZSYS_SIGHANDLER", "false", 1);
#define IN_RUN_DIR(test) cmocka_unit_test_setup_teardown(test, make_run_dir, remove_run_dir)
    const struct CMUnitTest tests[] = {
        IN_RUN_DIR(test_tap_without_listener_numbers_nothing),
        IN_RUN_DIR(test_tap_with_listener_mirrors_header_and_frame),
        IN_RUN_DIR(test_tap_listener_leaves_costs_nothing_again),
        IN_RUN_DIR(test_tap_slow_listener_misses_frames_and_knows_how_many),
        IN_RUN_DIR(test_tap_reader_gap_in_numbers_is_reported),
        IN_RUN_DIR(test_tap_mirrors_only_the_types_asked_for),
        IN_RUN_DIR(test_tap_more_topics_than_kept_mirror_everything),
        IN_RUN_DIR(test_tap_daemon_restarts_reader_finds_it_again),
        IN_RUN_DIR(test_tap_reader_foreign_messages_are_skipped_and_counted),
        cmocka_unit_test(test_tap_path_beyond_a_socket_name_is_refused),
        IN_RUN_DIR(test_tap_spans_are_for_those_who_ask),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
