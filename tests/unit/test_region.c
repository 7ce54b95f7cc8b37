/* Regions: shared between processes, read-only where promised, refused when anything does not match. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/region/fd_socket.h"
#include "common/region/region.h"

static char directory[64], socket_path[96];

static int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/qn-region-XXXXXX");
    if (!mkdtemp(directory)) return -1;
    snprintf(socket_path, sizeof socket_path, "%s/memory.fds", directory);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(socket_path);
    return rmdir(directory);
}

static qn_region_spec_t make_spec(qn_region_kind_t kind, uint64_t bytes)
{
    return (qn_region_spec_t){.id = 5,
                              .kind = kind,
                              .share = QN_SHARE_MEMFD,
                              .device = -1,
                              .bytes = bytes,
                              .epoch = 9,
                              .name = "test",
                              .fd_socket = socket_path};
}

static qn_mapping_t *make_region(qn_region_kind_t kind, uint64_t bytes)
{
    qn_mapping_t *region = NULL;
    qn_region_spec_t spec = make_spec(kind, bytes);
    assert_int_equal(qn_region_create(&spec, &region), QN_OK);
    return region;
}

static int find_region(void *state, uint64_t id, uint32_t epoch)
{
    const qn_mapping_t *region = state;
    return qn_region_id(region) == id && qn_region_epoch(region) == epoch ? qn_region_fd(region) : -1;
}

/* Runs `child(wire)` in a child process while this one serves its descriptors; returns the exit status, or -signal. */
static int run_importer(qn_mapping_t *region, int (*child)(const qn_region_t *wire), const qn_region_t *wire)
{
    qn_fd_server_t *server;
    assert_int_equal(qn_fd_server_create(socket_path, find_region, region, &server), QN_OK);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL); /* not the sanitizer's report: the test wants the signal */
        signal(SIGBUS, SIG_DFL);
        _exit(child(wire));
    }
    int status;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        poll(&(struct pollfd){.fd = qn_fd_server_fd(server), .events = POLLIN}, 1, 10);
        qn_fd_server_serve(server);
    }
    qn_fd_server_destroy(&server);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* ---- between processes ---- */

static int child_adds_one(const qn_region_t *wire)
{
    qn_mapping_t *mapping;
    if (qn_region_import(wire, true, &mapping)) return 1;
    unsigned char *bytes = qn_region_pointer(mapping);
    for (uint64_t i = 0; i < wire->bytes; i++) {
        if (bytes[i] != (unsigned char)i) return 2;
        bytes[i]++;
    }
    qn_region_close(&mapping);
    return 0;
}

static void test_region_bytes_are_shared_with_another_process(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {1, 4095, 4096, 4097, (2 << 20) - 1, 2 << 20, (6 << 20) + 17};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        qn_mapping_t *region = make_region(QN_REGION_KIND_ACTIVATIONS, sizes[i]);
        unsigned char *bytes = qn_region_pointer(region);
        assert_int_equal((uintptr_t)bytes % 4096, 0);
        assert_int_equal(bytes[0], 0); /* zeroed */
        for (uint64_t j = 0; j < sizes[i]; j++)
            bytes[j] = (unsigned char)j;
        qn_region_t wire;
        qn_region_describe(region, &wire);
        assert_int_equal(run_importer(region, child_adds_one, &wire), 0);
        assert_int_equal(bytes[0], 1);
        assert_int_equal(bytes[sizes[i] - 1], (unsigned char)sizes[i]);
        qn_region_close(&region);
    }
}

static int child_writes_read_only(const qn_region_t *wire)
{
    qn_mapping_t *mapping;
    if (qn_region_import(wire, false, &mapping)) return 1;
    volatile unsigned char *bytes = qn_region_pointer(mapping);
    if (bytes[3] != 42) return 2;
    bytes[3] = 43;
    return 3;
}

static void test_region_read_only_import_faults_on_write(void **state)
{
    (void)state;
    qn_mapping_t *region = make_region(QN_REGION_KIND_KV, 8192);
    ((unsigned char *)qn_region_pointer(region))[3] = 42;
    qn_region_t wire;
    qn_region_describe(region, &wire);
    assert_int_equal(run_importer(region, child_writes_read_only, &wire), -SIGSEGV);
    assert_int_equal(((unsigned char *)qn_region_pointer(region))[3], 42);
    qn_region_close(&region);
}

/* The child has the descriptor itself and tries every way to change the bytes. */
static int child_attacks_weights(const qn_region_t *wire)
{
    int fd;
    qn_mapping_t *mapping;
    if (qn_region_import(wire, true, &mapping) != QN_ERR_INVALID) return 1;
    if (qn_region_import(wire, false, &mapping)) return 2;
    if (((unsigned char *)qn_region_pointer(mapping))[3] != 42) return 3;
    if (qn_fd_request(socket_path, wire->id, wire->epoch, 2000, &fd)) return 4;
    if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED) return 5;
    if (pwrite(fd, "x", 1, 0) >= 0) return 6;
    if (ftruncate(fd, 4096) == 0) return 7;
    if (mprotect(qn_region_pointer(mapping), 4096, PROT_READ | PROT_WRITE) == 0) return 8;
    return 0;
}

static void test_region_sealed_weights_cannot_be_changed_by_anybody(void **state)
{
    (void)state;
    qn_mapping_t *region = make_region(QN_REGION_KIND_WEIGHTS, 8192);
    ((unsigned char *)qn_region_pointer(region))[3] = 42;
    assert_int_equal(qn_region_seal(region, 0xfeed), QN_OK);
    assert_true(qn_region_sealed(region));
    qn_region_t wire;
    qn_region_describe(region, &wire);
    assert_int_equal(wire.fingerprint, 0xfeed);
    assert_int_equal(run_importer(region, child_attacks_weights, &wire), 0);
    qn_region_close(&region);
}

/* ---- refusals ---- */

static char expected_text[32];
static qn_err_t expected_err;

static int child_is_refused(const qn_region_t *wire)
{
    qn_mapping_t *mapping = NULL;
    if (qn_region_import(wire, false, &mapping) != expected_err || mapping) return 1;
    return strstr(qn_err_text(), expected_text) ? 0 : 2;
}

static void expect_refusal(qn_mapping_t *region, const qn_region_t *wire, qn_err_t err, const char *text)
{
    expected_err = err;
    strcpy(expected_text, text);
    int status = run_importer(region, child_is_refused, wire);
    if (status) fail_msg("expected %d \"%s\": child says %d", err, text, status);
}

static void test_region_every_wrong_description_is_refused(void **state)
{
    (void)state;
    qn_mapping_t *region = make_region(QN_REGION_KIND_KV, 8192);
    qn_region_t right, wrong;
    qn_region_describe(region, &right);
    wrong = right, wrong.epoch++;
    expect_refusal(region, &wrong, QN_ERR_NOT_FOUND, "not known");
    wrong = right, wrong.id++;
    expect_refusal(region, &wrong, QN_ERR_NOT_FOUND, "not known");
    wrong = right, wrong.bytes++;
    expect_refusal(region, &wrong, QN_ERR_INVALID, "bytes in all");
    wrong = right, wrong.bytes--;
    expect_refusal(region, &wrong, QN_ERR_INVALID, "byte count");
    wrong = right, wrong.bytes = 0;
    expect_refusal(region, &wrong, QN_ERR_LIMIT, "2^46");
    wrong = right, wrong.bytes = UINT64_MAX;
    expect_refusal(region, &wrong, QN_ERR_LIMIT, "2^46");
    wrong = right, wrong.layout++;
    expect_refusal(region, &wrong, QN_ERR_INVALID, "layout");
    wrong = right, wrong.kind = QN_REGION_KIND_TAP, wrong.layout = QN_LAYOUT_TAP;
    expect_refusal(region, &wrong, QN_ERR_INVALID, "kind");
    wrong = right, wrong.fingerprint = 1;
    expect_refusal(region, &wrong, QN_ERR_INVALID, "fingerprint");
    wrong = right, wrong.device = 0;
    expect_refusal(region, &wrong, QN_ERR_INVALID, "device");
    wrong = right, wrong.fd_socket = qn_text("");
    expect_refusal(region, &wrong, QN_ERR_INVALID, "no usable fd socket");
    wrong = right, wrong.fd_socket = qn_text("/nonexistent/socket");
    expect_refusal(region, &wrong, QN_ERR_PEER, "cannot connect");
    qn_region_close(&region);
}

static int plain_fd = -1;
static int find_plain(void *state, uint64_t id, uint32_t epoch)
{
    (void)state, (void)id, (void)epoch;
    return plain_fd;
}

/* A descriptor that is no region: a plain file, an unsealed memfd, a sealed one without header. */
static void test_region_foreign_descriptors_are_refused(void **state)
{
    (void)state;
    qn_mapping_t *region = make_region(QN_REGION_KIND_KV, 4096);
    qn_region_t wire;
    qn_region_describe(region, &wire);
    for (int i = 0; i < 3; i++) {
        qn_fd_server_t *server;
        plain_fd = i == 0 ? open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)
                          : memfd_create("x", MFD_ALLOW_SEALING | MFD_CLOEXEC);
        assert_int_equal(ftruncate(plain_fd, 8192), 0);
        if (i == 2) assert_int_equal(fcntl(plain_fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK), 0);
        strcpy(expected_text, i == 2 ? "magic" : "not a sealed memfd");
        expected_err = QN_ERR_INVALID;
        assert_int_equal(qn_fd_server_create(socket_path, find_plain, NULL, &server), QN_OK);
        pid_t pid = fork();
        if (pid == 0) _exit(child_is_refused(&wire));
        int status;
        while (waitpid(pid, &status, WNOHANG) == 0) {
            poll(&(struct pollfd){.fd = qn_fd_server_fd(server), .events = POLLIN}, 1, 10);
            qn_fd_server_serve(server);
        }
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
        qn_fd_server_destroy(&server);
        close(plain_fd);
    }
    qn_region_close(&region);
}

static void test_region_damaged_header_is_refused(void **state)
{
    (void)state;
    qn_mapping_t *region = make_region(QN_REGION_KIND_KV, 4096), *adopted = NULL;
    int fd = dup(qn_region_fd(region));
    uint8_t header[136];
    assert_int_equal(pread(fd, header, sizeof header, 4096), sizeof header);
    for (size_t i = 0; i < sizeof header; i++) {
        uint8_t flipped = header[i] ^ 0x10;
        assert_int_equal(pwrite(fd, &flipped, 1, (off_t)(4096 + i)), 1);
        assert_int_equal(qn_region_adopt(fd, "", &adopted), QN_ERR_INVALID);
        assert_int_equal(pwrite(fd, &header[i], 1, (off_t)(4096 + i)), 1);
    }
    assert_int_equal(qn_region_adopt(fd, "", &adopted), QN_OK);
    qn_region_close(&adopted);
    qn_region_close(&region);
}

/* ---- the same process ---- */

static void test_region_own_process_gets_the_same_pointer(void **state)
{
    (void)state;
    qn_mapping_t *region = make_region(QN_REGION_KIND_KV, 4096), *first, *second, *none = NULL;
    qn_region_t wire;
    qn_region_describe(region, &wire);
    wire.fd_socket = qn_text(NULL); /* not needed here */
    assert_int_equal(qn_region_import(&wire, true, &first), QN_OK);
    assert_int_equal(qn_region_import(&wire, false, &second), QN_OK);
    assert_ptr_equal(qn_region_pointer(first), qn_region_pointer(region));
    assert_ptr_equal(qn_region_pointer(second), qn_region_pointer(region));
    wire.bytes++;
    assert_int_equal(qn_region_import(&wire, false, &none), QN_ERR_INVALID);
    assert_null(none);
    wire.bytes--;
    unsigned char *bytes = qn_region_pointer(region);
    qn_region_close(&region); /* the owner goes first: the bytes stay for the others */
    bytes[0] = 1;
    qn_region_close(&first);
    bytes[1] = 2;
    qn_region_close(&second);
    assert_int_equal(qn_region_import(&wire, false, &none), QN_ERR_INVALID); /* no longer known here */
}

/* ---- death of the owner ---- */

static void test_region_mapping_and_descriptor_outlive_a_killed_owner(void **state)
{
    (void)state;
    int ends[2], fd = -1;
    char byte;
    assert_int_equal(pipe(ends), 0);
    pid_t owner = fork();
    if (owner == 0) {
        qn_fd_server_t *server;
        qn_mapping_t *region;
        qn_region_spec_t spec = make_spec(QN_REGION_KIND_WEIGHTS, 8192);
        if (qn_region_create(&spec, &region)) _exit(1);
        memset(qn_region_pointer(region), 77, 8192);
        if (qn_region_seal(region, 0xabc)) _exit(2);
        if (qn_fd_server_create(socket_path, find_region, region, &server)) _exit(3);
        if (write(ends[1], "r", 1) != 1) _exit(4);
        for (;;) {
            poll(&(struct pollfd){.fd = qn_fd_server_fd(server), .events = POLLIN}, 1, 100);
            qn_fd_server_serve(server);
        }
    }
    assert_int_equal(read(ends[0], &byte, 1), 1);
    qn_region_t wire = {.id = 5,
                        .kind = QN_REGION_KIND_WEIGHTS,
                        .share = QN_SHARE_MEMFD,
                        .device = -1,
                        .bytes = 8192,
                        .epoch = 9,
                        .layout = QN_LAYOUT_WEIGHTS,
                        .fingerprint = 0xabc,
                        .fd_socket = qn_text(socket_path),
                        .name = qn_text("test")};
    qn_mapping_t *mapping = NULL, *adopted = NULL;
    assert_int_equal(qn_region_import(&wire, false, &mapping), QN_OK);
    assert_int_equal(qn_fd_request(socket_path, 5, 9, 2000, &fd), QN_OK);
    kill(owner, SIGKILL);
    assert_int_equal(waitpid(owner, NULL, 0), owner);
    assert_int_equal(((unsigned char *)qn_region_pointer(mapping))[8191], 77);
    qn_region_close(&mapping);

    /* Whoever holds the descriptor can be the next owner, under the old identity. */
    assert_int_equal(qn_region_adopt(fd, "/run/new", &adopted), QN_OK);
    assert_int_equal(((unsigned char *)qn_region_pointer(adopted))[0], 77);
    assert_int_equal(qn_region_epoch(adopted), 9);
    assert_int_equal(qn_region_fingerprint(adopted), 0xabc);
    assert_string_equal(qn_region_name(adopted), "test");
    assert_true(qn_region_sealed(adopted));
    qn_region_describe(adopted, &wire);
    assert_string_equal(wire.fd_socket.data, "/run/new");
    assert_int_equal(qn_region_import(&wire, false, &mapping), QN_OK);
    qn_region_close(&mapping);
    qn_region_close(&adopted);
    close(ends[0]);
    close(ends[1]);
}

/* ---- limits ---- */

static void test_region_size_both_sides_of_its_limits(void **state)
{
    (void)state;
    static const struct {
        uint64_t bytes;
        qn_err_t err;
    } sizes[] = {{0, QN_ERR_LIMIT}, {1, QN_OK}, {QN_REGION_BYTES_MAX + 1, QN_ERR_LIMIT}, {UINT64_MAX, QN_ERR_LIMIT}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        qn_mapping_t *region = NULL;
        qn_region_spec_t spec = make_spec(QN_REGION_KIND_KV, sizes[i].bytes);
        assert_int_equal(qn_region_create(&spec, &region), sizes[i].err);
        qn_region_close(&region);
    }
}

static void test_region_host_needs_no_device(void **state)
{
    (void)state;
    uint64_t largest = 0;
    assert_int_equal(qn_region_probe(QN_SHARE_MEMFD, -1), QN_OK);
    assert_int_equal(qn_region_largest_bytes(QN_SHARE_MEMFD, -1, &largest), QN_OK);
    assert_true(largest == QN_REGION_BYTES_MAX);
}

static void test_region_free_bytes_is_plausible(void **state)
{
    (void)state;
    uint64_t free_bytes = 0;
    assert_int_equal(qn_region_free_bytes(QN_SHARE_MEMFD, -1, &free_bytes), QN_OK);
    assert_true(free_bytes > 1 << 20);
    assert_true(free_bytes <= (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE));
}

#define HUGE_PAGE (2u << 20)

static int child_reads_huge(const qn_region_t *wire)
{
    qn_mapping_t *mapping;
    if (qn_region_import(wire, false, &mapping)) return 1;
    const unsigned char *bytes = qn_region_pointer(mapping);
    for (uint64_t i = 0; i < wire->bytes; i++) {
        if (bytes[i] != (i % 5000 == 0 ? 7 : 0)) return 2;
    }
    return qn_region_huge_bytes(mapping) % HUGE_PAGE ? 3 : 0;
}

/* What the system allows differs; what the bytes are must not. */
static void test_region_huge_pages_change_no_byte(void **state)
{
    (void)state;
    const uint64_t size = 3 * HUGE_PAGE + 12345;
    for (int wanted = 0; wanted <= 1; wanted++) {
        qn_mapping_t *region = NULL;
        qn_region_spec_t spec = make_spec(QN_REGION_KIND_WEIGHTS, size);
        spec.huge_pages = wanted;
        assert_int_equal(qn_region_create(&spec, &region), QN_OK);
        unsigned char *bytes = qn_region_pointer(region);
        assert_int_equal((uintptr_t)bytes % HUGE_PAGE, 0);
        for (uint64_t i = 0; i < size; i += 5000)
            bytes[i] = 7;
        qn_region_make_huge(region, 0, size);
        qn_region_make_huge(region, 100, HUGE_PAGE); /* holds no whole page */
        qn_region_make_huge(region, size, 0);
        for (uint64_t i = 0; i < size; i++)
            assert_int_equal(bytes[i], i % 5000 == 0 ? 7 : 0);
        uint64_t huge = qn_region_huge_bytes(region);
        assert_int_equal(huge % HUGE_PAGE, 0);
        assert_true(huge <= (wanted ? 3 * HUGE_PAGE : 0));
        assert_int_equal(qn_region_seal(region, 1), QN_OK);
        qn_region_t wire;
        qn_region_describe(region, &wire);
        assert_int_equal(run_importer(region, child_reads_huge, &wire), 0);
        qn_region_close(&region);
    }
}

#ifndef QN_CUDA
static void test_region_cuda_shares_are_refused_without_cuda(void **state)
{
    (void)state;
    for (int share = QN_SHARE_CUDA_IPC; share <= QN_SHARE_CUDA_VMM; share++) {
        qn_mapping_t *region = NULL;
        qn_region_spec_t spec = make_spec(QN_REGION_KIND_KV, 4096);
        spec.share = share;
        assert_int_equal(qn_region_create(&spec, &region), QN_ERR_UNSUPPORTED);
        assert_non_null(strstr(qn_err_text(), "make cuda"));
        assert_null(region);
        uint64_t bytes;
        assert_int_equal(qn_region_probe(share, 0), QN_ERR_UNSUPPORTED);
        assert_non_null(strstr(qn_err_text(), "make cuda"));
        assert_int_equal(qn_region_free_bytes(share, 0, &bytes), QN_ERR_UNSUPPORTED);
        assert_int_equal(qn_region_largest_bytes(share, 0, &bytes), QN_ERR_UNSUPPORTED);
    }
    qn_mapping_t *adopted = NULL;
    assert_int_equal(qn_region_adopt_device(0, 0, 4096, "", &adopted), QN_ERR_UNSUPPORTED);
    assert_null(adopted);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_region_bytes_are_shared_with_another_process, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_read_only_import_faults_on_write, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_sealed_weights_cannot_be_changed_by_anybody, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_every_wrong_description_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_foreign_descriptors_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_damaged_header_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_own_process_gets_the_same_pointer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_mapping_and_descriptor_outlive_a_killed_owner, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_size_both_sides_of_its_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_host_needs_no_device, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_free_bytes_is_plausible, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_huge_pages_change_no_byte, setup, teardown),
#ifndef QN_CUDA
        cmocka_unit_test_setup_teardown(test_region_cuda_shares_are_refused_without_cuda, setup, teardown),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
