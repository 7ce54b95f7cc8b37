/* Regions in device memory between real processes (CUDA does not survive a fork, so the test starts itself again in the
 * role of an owner or an importer). Skipped in a build without CUDA and on a machine without a device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>

#ifndef QN_CUDA

static void test_region_cuda_needs_a_build_with_cuda(void **state)
{
    (void)state;
    puts("SKIPPED: this build has no CUDA");
    skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_region_cuda_needs_a_build_with_cuda)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/region/fd_socket.h"
#include "common/region/region.h"

#define BYTES ((uint64_t)(5 << 20) + 123)
#define FINGERPRINT 0xf00d

static char directory[64], socket_path[96];

static uint8_t pattern(uint64_t i) { return (uint8_t)(i * 31 + 7); }

/* ---- the owner's process: description on stdout, then it serves until killed ---- */

static int find_region(void *state, uint64_t id, uint32_t epoch)
{
    const qn_mapping_t *region = state;
    return qn_region_id(region) == id && qn_region_epoch(region) == epoch ? qn_region_fd(region) : -1;
}

static int run_owner(qn_share_t share, qn_region_kind_t kind)
{
    qn_mapping_t *region;
    qn_fd_server_t *server;
    qn_region_t wire;
    qn_region_spec_t spec = {.id = 5,
                             .kind = kind,
                             .share = share,
                             .device = 0,
                             .bytes = BYTES,
                             .epoch = 9,
                             .name = "test",
                             .fd_socket = socket_path};
    uint8_t *content = malloc(BYTES);
    for (uint64_t i = 0; i < BYTES; i++)
        content[i] = pattern(i);
    if (qn_region_create(&spec, &region) ||
        cudaMemcpy(qn_region_pointer(region), content, BYTES, cudaMemcpyHostToDevice) != cudaSuccess ||
        (kind == QN_REGION_KIND_WEIGHTS && qn_region_seal(region, FINGERPRINT)) ||
        qn_fd_server_create(socket_path, find_region, region, &server)) {
        fprintf(stderr, "owner: %s\n", qn_err_text());
        return 1;
    }
    qn_region_describe(region, &wire);
    for (uint32_t i = 0; i < 64; i++)
        printf("%02x", wire.handle_count ? wire.handle[i] : 0);
    printf("\n");
    fflush(stdout);
    struct pollfd watched[] = {{.fd = qn_fd_server_fd(server), .events = POLLIN}, {.fd = STDIN_FILENO}};
    while (!(watched[1].revents & POLLHUP)) { /* a test that failed must not leave it behind */
        poll(watched, 2, -1);
        qn_fd_server_serve(server);
    }
    return 1;
}

/* ---- the importer's process: one word says what it does; exit status 0 when that is what happened ---- */

static bool content_is_right(const qn_mapping_t *mapping)
{
    uint8_t *content = malloc(BYTES);
    if (cudaMemcpy(content, qn_region_pointer(mapping), BYTES, cudaMemcpyDeviceToHost) != cudaSuccess) return false;
    for (uint64_t i = 0; i < BYTES; i++) {
        if (content[i] != pattern(i)) return false;
    }
    free(content);
    return true;
}

static int import_and_act(const qn_region_t *wire, const char *action)
{
    qn_mapping_t *mapping = NULL;
    bool writable = strcmp(action, "write") == 0;
    qn_err_t err = qn_region_import(wire, writable, &mapping);
    if (strncmp(action, "refused", 7) == 0) {
        if (!err || mapping) return 10;
        fprintf(stderr, "refused: %s\n", qn_err_text());
        return strstr(qn_err_text(), action + 8) ? 0 : 11;
    }
    if (err) {
        fprintf(stderr, "importer: %s\n", qn_err_text());
        return 1;
    }
    if (strcmp(action, "read") == 0 && !content_is_right(mapping)) return 2;
    if (writable && cudaMemset(qn_region_pointer(mapping), 0x55, 1) != cudaSuccess) return 3;
    if (strcmp(action, "sees-write") == 0) {
        uint8_t byte = 0;
        cudaMemcpy(&byte, qn_region_pointer(mapping), 1, cudaMemcpyDeviceToHost);
        if (byte != 0x55) return 4;
    }
    if (strcmp(action, "cannot-write") == 0 && cudaMemset(qn_region_pointer(mapping), 1, 1) == cudaSuccess &&
        cudaDeviceSynchronize() == cudaSuccess)
        return 5;
    if (strcmp(action, "outlive") == 0) { /* the parent kills the owner now */
        char byte;
        if (write(STDOUT_FILENO, "m", 1) != 1 || read(STDIN_FILENO, &byte, 1) != 1) return 6;
        if (!content_is_right(mapping)) return 7;
    }
    qn_region_close(&mapping);
    return 0;
}

/* ---- the next owner's process: it has nothing but the descriptor ---- */

static int run_heir(qn_share_t share, const char *action)
{
    int fd;
    uint64_t bytes;
    qn_mapping_t *region = NULL;
    if (share != QN_SHARE_CUDA_VMM || sscanf(action, "adopt %d %" SCNu64, &fd, &bytes) != 2) return 30;
    qn_err_t err = qn_region_adopt_device(fd, 0, bytes, "", &region);
    if (bytes != BYTES) return err && !region ? 0 : 31;
    if (err) {
        fprintf(stderr, "heir: %s\n", qn_err_text());
        return 1;
    }
    if (!content_is_right(region) || qn_region_fingerprint(region) != FINGERPRINT) return 32;
    if (qn_region_id(region) != 5 || qn_region_epoch(region) != 9 || qn_region_fd(region) != fd) return 33;
    qn_region_close(&region);
    return fcntl(fd, F_GETFD) < 0 ? 0 : 34; /* the descriptor was the region's */
}

static int run_importer(qn_share_t share, qn_region_kind_t kind, const char *hex, const char *action)
{
    uint8_t handle[64];
    for (int i = 0; i < 64; i++) {
        unsigned byte;
        if (sscanf(hex + 2 * i, "%2x", &byte) != 1) return 20;
        handle[i] = (uint8_t)byte;
    }
    qn_region_t wire = {.id = 5,
                        .kind = kind,
                        .share = share,
                        .device = 0,
                        .bytes = BYTES,
                        .epoch = 9,
                        .layout = qn_region_layout(kind),
                        .fd_socket = qn_text(socket_path),
                        .name = qn_text("test"),
                        .fingerprint = kind == QN_REGION_KIND_WEIGHTS ? FINGERPRINT : 0};
    if (share == QN_SHARE_CUDA_IPC) wire.handle = handle, wire.handle_count = sizeof handle;
    if (strstr(action, "fingerprint")) wire.fingerprint++;
    if (strstr(action, "byte count")) wire.bytes--;
    if (strstr(action, "bytes in all") || strstr(action, "cuMemMap")) wire.bytes += 64 << 20;
    if (strstr(action, "handle has")) wire.handle_count = 63;
    return import_and_act(&wire, action);
}

/* ---- the test's process ---- */

typedef struct {
    pid_t pid;
    int to, from; /* its stdin and stdout */
} child_t;

static child_t start(qn_share_t share, qn_region_kind_t kind, const char *hex, const char *action)
{
    int to[2], from[2];
    char share_text[8], kind_text[8];
    snprintf(share_text, sizeof share_text, "%d", (int)share);
    snprintf(kind_text, sizeof kind_text, "%d", (int)kind);
    assert_int_equal(pipe2(to, O_CLOEXEC) | pipe2(from, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(to[0], STDIN_FILENO);
        dup2(from[1], STDOUT_FILENO);
        execl("/proc/self/exe", "test", share_text, kind_text, directory, hex, action, (char *)NULL);
        _exit(99);
    }
    close(to[0]), close(from[1]);
    return (child_t){.pid = pid, .to = to[1], .from = from[0]};
}

static int finish(child_t *child)
{
    int status;
    waitpid(child->pid, &status, 0);
    close(child->to), close(child->from);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static child_t start_owner(qn_share_t share, qn_region_kind_t kind, char *ret_hex)
{
    child_t owner = start(share, kind, "-", "own");
    for (size_t used = 0; used < 129;) {
        ssize_t got = read(owner.from, ret_hex + used, 129 - used);
        if (got <= 0) fail_msg("the owner ended with %d", finish(&owner));
        used += (size_t)got;
    }
    ret_hex[128] = '\0';
    return owner;
}

static void expect(qn_share_t share, qn_region_kind_t kind, const char *hex, const char *action)
{
    child_t importer = start(share, kind, hex, action);
    int status = finish(&importer);
    if (status) fail_msg("share %d, %s: %d", (int)share, action, status);
}

static int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/qn-cuda-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    unlink(socket_path);
    return rmdir(directory);
}

static void share_between_processes(qn_share_t share)
{
    char hex[130];
    snprintf(socket_path, sizeof socket_path, "%s/memory.fds", directory);
    child_t owner = start_owner(share, QN_REGION_KIND_KV, hex);
    expect(share, QN_REGION_KIND_KV, hex, "read");
    expect(share, QN_REGION_KIND_KV, hex, "write");
    expect(share, QN_REGION_KIND_KV, hex, "sees-write");
    expect(share, QN_REGION_KIND_KV, hex, "refused byte count");
    expect(share, QN_REGION_KIND_KV, hex, "refused fingerprint");
    if (share == QN_SHARE_CUDA_IPC) {
        expect(share, QN_REGION_KIND_KV, hex, "refused bytes in all");
        expect(share, QN_REGION_KIND_KV, hex, "refused handle has");
    } else {
        expect(share, QN_REGION_KIND_KV, hex, "refused cuMemMap");
        expect(share, QN_REGION_KIND_KV, hex, "cannot-write");
    }
    kill(owner.pid, SIGKILL);
    finish(&owner);
}

static void outlive_the_owner(qn_share_t share)
{
    char hex[130], byte;
    snprintf(socket_path, sizeof socket_path, "%s/memory.fds", directory);
    child_t owner = start_owner(share, QN_REGION_KIND_WEIGHTS, hex);
    expect(share, QN_REGION_KIND_WEIGHTS, hex, "read");
    child_t importer = start(share, QN_REGION_KIND_WEIGHTS, hex, "outlive");
    assert_int_equal(read(importer.from, &byte, 1), 1);
    kill(owner.pid, SIGKILL);
    finish(&owner);
    assert_int_equal(write(importer.to, "g", 1), 1);
    assert_int_equal(finish(&importer), 0);
    expect(share, QN_REGION_KIND_WEIGHTS, hex,
           share == QN_SHARE_CUDA_IPC ? "refused cudaIpcOpenMemHandle" : "refused cannot connect");
}

/* What the service manager does: it asks for the descriptor while the owner lives, and hands it to the next one. */
static void adopted_by_the_next_owner(void)
{
    char hex[130], action[64];
    int fd;
    snprintf(socket_path, sizeof socket_path, "%s/memory.fds", directory);
    child_t owner = start_owner(QN_SHARE_CUDA_VMM, QN_REGION_KIND_WEIGHTS, hex);
    assert_int_equal(qn_fd_request(socket_path, 5, 9, 2000, &fd), QN_OK);
    kill(owner.pid, SIGKILL);
    finish(&owner);
    assert_int_equal(fcntl(fd, F_SETFD, 0), 0); /* survives the exec */
    snprintf(action, sizeof action, "adopt %d %" PRIu64, fd, BYTES + (UINT64_C(64) << 20));
    expect(QN_SHARE_CUDA_VMM, QN_REGION_KIND_WEIGHTS, "-", action);
    for (int life = 0; life < 2; life++) { /* and the one after that */
        snprintf(action, sizeof action, "adopt %d %" PRIu64, fd, BYTES);
        expect(QN_SHARE_CUDA_VMM, QN_REGION_KIND_WEIGHTS, "-", action);
    }
    close(fd);
}

static void need_device(void)
{
    child_t probe = start(QN_SHARE_CUDA_IPC, QN_REGION_KIND_KV, "-", "probe"); /* not here: forks must stay possible */
    if (finish(&probe) == 0) return;
    puts("SKIPPED: no CUDA device");
    skip();
}

static void test_region_cuda_ipc_is_shared_and_checked(void **state)
{
    (void)state;
    need_device();
    share_between_processes(QN_SHARE_CUDA_IPC);
}

static void test_region_cuda_vmm_is_shared_and_checked(void **state)
{
    (void)state;
    need_device();
    share_between_processes(QN_SHARE_CUDA_VMM);
}

static void test_region_cuda_ipc_outlives_its_owner_where_mapped(void **state)
{
    (void)state;
    need_device();
    outlive_the_owner(QN_SHARE_CUDA_IPC);
}

static void test_region_cuda_vmm_outlives_its_owner_where_mapped(void **state)
{
    (void)state;
    need_device();
    outlive_the_owner(QN_SHARE_CUDA_VMM);
}

static void test_region_cuda_vmm_is_adopted_by_the_next_owner(void **state)
{
    (void)state;
    need_device();
    adopted_by_the_next_owner();
}

int main(int argc, char **argv)
{
    if (argc == 6) {
        snprintf(socket_path, sizeof socket_path, "%s/memory.fds", argv[3]);
        qn_share_t share = (qn_share_t)atoi(argv[1]);
        qn_region_kind_t kind = (qn_region_kind_t)atoi(argv[2]);
        uint64_t free_bytes;
        if (strcmp(argv[5], "probe") == 0) return qn_region_free_bytes(share, 0, &free_bytes) ? 1 : 0;
        if (strncmp(argv[5], "adopt", 5) == 0) return run_heir(share, argv[5]);
        return strcmp(argv[5], "own") == 0 ? run_owner(share, kind) : run_importer(share, kind, argv[4], argv[5]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_region_cuda_ipc_is_shared_and_checked, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_cuda_vmm_is_shared_and_checked, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_cuda_ipc_outlives_its_owner_where_mapped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_cuda_vmm_outlives_its_owner_where_mapped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_cuda_vmm_is_adopted_by_the_next_owner, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
