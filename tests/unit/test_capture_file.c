/* What is this?      Tests of capture files: what is written is read again, and nothing else.
 * State owned:       a temporary file per test.
 * Must never:        leave the file behind.
 * Read next:         common/capture/capture_file.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/capture/capture_file.h"

#define CLOCK_NS 1700000000000000000ull
#define FILE_HEADER_BYTES 32
#define RECORD_BYTES(frame) (8 + 72 + (frame))

static const struct {
    const char *service;
    const char *frame;
    size_t bytes;
    uint64_t missed;
} records[] = {
    {"scheduler", "\x08\0\0\0QSPLabcdefgh", 16, 0},
    {"compute", "", 0, 17},
    {"memory", "x", 1, 0},
};
#define RECORD_COUNT (sizeof records / sizeof *records)

static int make_path(void **state)
{
    char *path = strdup("/tmp/quintet-capture-XXXXXX");
    *state = path;
    int fd = path ? mkstemp(path) : -1;
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state)
{
    int failed = unlink(*state);
    free(*state);
    return failed;
}

static void write_records(const char *path)
{
    qn_capture_t *capture = NULL;
    assert_int_equal(qn_capture_create(path, CLOCK_NS, &capture), QN_OK);
    for (size_t i = 0; i < RECORD_COUNT; i++) {
        qn_tap_header_t header = {.version = QN_TAP_VERSION,
                                  .direction = QN_TAP_DROPPED,
                                  .pid = 5,
                                  .boot_ns = 6,
                                  .number = i + 1,
                                  .now_ns = 1000 + i,
                                  .frame_bytes = (uint32_t)records[i].bytes};
        strcpy(header.service, records[i].service);
        qn_capture_message_t *message =
            qn_capture_message_new(&header, records[i].frame, records[i].bytes, records[i].missed);
        assert_int_equal(qn_capture_write(capture, message), QN_OK);
        free(message);
    }
    assert_int_equal(qn_capture_close(&capture), QN_OK);
    assert_null(capture);
}

/* Returns owned the bytes of the file. */
static char *slurp(const char *path, size_t *ret_bytes)
{
    FILE *file = fopen(path, "rb");
    char *bytes = malloc(4096);
    *ret_bytes = fread(bytes, 1, 4096, file);
    fclose(file);
    return bytes;
}

static void spit(const char *path, const char *bytes, size_t count)
{
    FILE *file = fopen(path, "wb");
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    fclose(file);
}

/* Reads to the end; returns how it ended and how many messages there were, each checked. */
static qn_capture_outcome_t read_all(qn_capture_t *capture, size_t *ret_count)
{
    qn_capture_message_t *message = NULL;
    qn_capture_outcome_t outcome;
    *ret_count = 0;
    while ((outcome = qn_capture_read(capture, &message)) == QN_CAPTURE_MESSAGE) {
        size_t i = (*ret_count)++;
        assert_true(i < RECORD_COUNT);
        assert_string_equal(message->header.service, records[i].service);
        assert_int_equal(message->header.direction, QN_TAP_DROPPED);
        assert_int_equal(message->header.number, i + 1);
        assert_int_equal(message->missed, records[i].missed);
        assert_int_equal(message->time_ns, 1000 + i);
        assert_int_equal(message->bytes, records[i].bytes);
        assert_memory_equal(message->frame, records[i].frame, records[i].bytes);
        free(message);
    }
    return outcome;
}

static void test_capture_written_messages_are_read_again(void **state)
{
    write_records(*state);
    qn_capture_t *capture = NULL;
    assert_int_equal(qn_capture_open(*state, &capture), QN_OK);
    assert_true(qn_capture_clock_ns(capture) == CLOCK_NS);
    size_t count;
    assert_int_equal(read_all(capture, &count), QN_CAPTURE_END);
    assert_int_equal(count, RECORD_COUNT);
    qn_capture_close(&capture);
}

/* How many whole records are in the first `bytes` bytes of the file; *ret_exact: nothing is left over. */
static size_t whole_records(size_t bytes, bool *ret_exact)
{
    size_t count = 0;
    for (bytes -= FILE_HEADER_BYTES; count < RECORD_COUNT && bytes >= RECORD_BYTES(records[count].bytes); count++)
        bytes -= RECORD_BYTES(records[count].bytes);
    *ret_exact = bytes == 0;
    return count;
}

static void test_capture_cut_anywhere_gives_the_whole_records_before_the_cut(void **state)
{
    write_records(*state);
    size_t total;
    char *bytes = slurp(*state, &total);
    assert_int_equal(total, FILE_HEADER_BYTES + RECORD_BYTES(16) + RECORD_BYTES(0) + RECORD_BYTES(1));
    for (size_t cut = 0; cut <= total; cut++) {
        spit(*state, bytes, cut);
        qn_capture_t *capture = NULL;
        qn_err_t err = qn_capture_open(*state, &capture);
        assert_int_equal(err, cut < FILE_HEADER_BYTES ? QN_ERR_INVALID : QN_OK);
        if (err) continue;
        bool exact;
        size_t expected = whole_records(cut, &exact), count;
        qn_capture_outcome_t outcome = read_all(capture, &count);
        assert_int_equal(count, expected);
        assert_int_equal(outcome, exact ? QN_CAPTURE_END : QN_CAPTURE_TORN);
        qn_capture_close(&capture);
    }
    free(bytes);
}

static void test_capture_flipped_bit_in_a_record_is_never_shown(void **state)
{
    write_records(*state);
    size_t total;
    char *bytes = slurp(*state, &total);
    for (size_t bit = FILE_HEADER_BYTES * 8; bit < total * 8; bit++) {
        bytes[bit / 8] ^= (char)(1 << bit % 8);
        spit(*state, bytes, total);
        bytes[bit / 8] ^= (char)(1 << bit % 8);
        qn_capture_t *capture = NULL;
        assert_int_equal(qn_capture_open(*state, &capture), QN_OK);
        size_t count;
        /* read_all checks that what comes is what was written. */
        assert_int_equal(read_all(capture, &count), QN_CAPTURE_TORN);
        assert_true(count < RECORD_COUNT);
        qn_capture_close(&capture);
    }
    free(bytes);
}

static void test_capture_foreign_files_are_refused(void **state)
{
    write_records(*state);
    size_t total;
    char *bytes = slurp(*state, &total);
    qn_capture_t *capture = NULL;
    bytes[8]++;
    spit(*state, bytes, total);
    assert_int_equal(qn_capture_open(*state, &capture), QN_ERR_UNSUPPORTED);
    bytes[0] = 'q';
    spit(*state, bytes, total);
    assert_int_equal(qn_capture_open(*state, &capture), QN_ERR_INVALID);
    free(bytes);
    assert_int_equal(qn_capture_open("/tmp/there/is/no/such/file", &capture), QN_ERR_NOT_FOUND);
    assert_int_equal(qn_capture_open("/tmp", &capture), QN_ERR_INVALID);
    assert_int_equal(qn_capture_create("/tmp/there/is/no/such/file", 0, &capture), QN_ERR_NOT_FOUND);
    assert_null(capture);
}

static void test_capture_full_disk_is_reported(void **state)
{
    (void)state;
    qn_capture_t *capture = NULL;
    if (access("/dev/full", W_OK)) skip();
    assert_int_equal(qn_capture_create("/dev/full", 0, &capture), QN_OK);
    assert_int_equal(qn_capture_flush(capture), QN_ERR_IO);
    assert_non_null(strstr(qn_err_text(), "No space left"));
    qn_capture_close(&capture);
}

int main(void)
{
#define WITH_FILE(test) cmocka_unit_test_setup_teardown(test, make_path, remove_path)
    const struct CMUnitTest tests[] = {
        WITH_FILE(test_capture_written_messages_are_read_again),
        WITH_FILE(test_capture_cut_anywhere_gives_the_whole_records_before_the_cut),
        WITH_FILE(test_capture_flipped_bit_in_a_record_is_never_shown),
        WITH_FILE(test_capture_foreign_files_are_refused),
        cmocka_unit_test(test_capture_full_disk_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
