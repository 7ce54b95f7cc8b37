/* Descriptors between processes: the right one arrives, everybody else is turned away, nobody can block the server. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/region/fd_socket.h"

static char directory[64], socket_path[96];
static int known_fd = -1;

static int find(void *state, uint64_t id, uint32_t epoch)
{
    (void)state;
    return id == 7 && epoch == 3 ? known_fd : -1;
}

static int setup(void **state)
{
    snprintf(directory, sizeof directory, "/tmp/qn-fds-XXXXXX");
    if (!mkdtemp(directory)) return -1;
    snprintf(socket_path, sizeof socket_path, "%s/memory.fds", directory);
    known_fd = memfd_create("test", MFD_CLOEXEC);
    if (known_fd < 0 || pwrite(known_fd, "seven", 5, 0) != 5) return -1;
    return qn_fd_server_create(socket_path, find, NULL, (qn_fd_server_t **)state);
}

static int teardown(void **state)
{
    qn_fd_server_destroy((qn_fd_server_t **)state);
    close(known_fd);
    return rmdir(directory); /* fails when the socket file was left behind */
}

/* Serves in this thread until `stop` is set, as a daemon's loop would. */
typedef struct {
    qn_fd_server_t *server;
    atomic_bool stop;
    unsigned answered;
} loop_t;

static void *loop_main(void *loop_pointer)
{
    loop_t *loop = loop_pointer;
    while (!atomic_load(&loop->stop)) {
        poll(&(struct pollfd){.fd = qn_fd_server_fd(loop->server), .events = POLLIN}, 1, 10);
        loop->answered += qn_fd_server_serve(loop->server);
    }
    return NULL;
}

static qn_err_t request(loop_t *loop, uint64_t id, uint32_t epoch, int *ret_fd)
{
    pthread_t thread;
    atomic_store(&loop->stop, false);
    assert_int_equal(pthread_create(&thread, NULL, loop_main, loop), 0);
    qn_err_t err = qn_fd_request(socket_path, id, epoch, 5000, ret_fd);
    atomic_store(&loop->stop, true);
    pthread_join(thread, NULL);
    return err;
}

static void test_fd_socket_known_region_arrives_close_on_exec(void **state)
{
    loop_t loop = {.server = *state};
    int fd = -1;
    char text[5];
    assert_int_equal(request(&loop, 7, 3, &fd), QN_OK);
    assert_int_not_equal(fd, known_fd);
    assert_int_equal(pread(fd, text, sizeof text, 0), 5);
    assert_memory_equal(text, "seven", 5);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(loop.answered, 1);
    close(fd);
}

static void test_fd_socket_unknown_region_or_epoch_is_refused(void **state)
{
    loop_t loop = {.server = *state};
    static const struct {
        uint64_t id;
        uint32_t epoch;
    } wrong[] = {{8, 3}, {7, 2}, {7, 4}, {0, 0}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int fd = -1;
        assert_int_equal(request(&loop, wrong[i].id, wrong[i].epoch, &fd), QN_ERR_NOT_FOUND);
        assert_int_equal(fd, -1);
    }
}

static void test_fd_socket_file_is_private(void **state)
{
    (void)state;
    struct stat info;
    assert_int_equal(stat(socket_path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
}

static void test_fd_socket_nobody_listening_is_a_peer_failure(void **state)
{
    (void)state;
    int fd = -1;
    char path[128];
    snprintf(path, sizeof path, "%s/none", directory);
    assert_int_equal(qn_fd_request(path, 7, 3, 100, &fd), QN_ERR_PEER);
    assert_int_equal(fd, -1);
}

static void test_fd_socket_silent_server_is_a_timeout(void **state)
{
    (void)state; /* nobody serves */
    int fd = -1;
    assert_int_equal(qn_fd_request(socket_path, 7, 3, 50, &fd), QN_ERR_TIMEOUT);
    assert_int_equal(fd, -1);
}

static int connect_raw(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, socket_path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static bool is_closed_by_server(int fd)
{
    char byte;
    ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);
    return got == 0 || (got < 0 && errno == ECONNRESET);
}

static void test_fd_socket_malformed_requests_end_their_connection(void **state)
{
    qn_fd_server_t *server = *state;
    static const char *const bad[] = {"x", "sixteen bytes .." /* no magic */, "a packet longer than a request"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int fd = connect_raw();
        assert_int_equal(qn_fd_server_serve(server), 0);
        assert_int_equal(send(fd, bad[i], strlen(bad[i]), 0), strlen(bad[i]));
        assert_int_equal(qn_fd_server_serve(server), 0);
        assert_true(is_closed_by_server(fd));
        close(fd);
    }
}

static void test_fd_socket_silent_clients_give_way_oldest_first(void **state)
{
    loop_t loop = {.server = *state};
    int silent[QN_FD_CLIENTS_MAX], fd = -1;
    for (size_t i = 0; i < QN_FD_CLIENTS_MAX; i++) {
        silent[i] = connect_raw();
        qn_fd_server_serve(*state);
    }
    for (size_t i = 0; i < QN_FD_CLIENTS_MAX; i++)
        assert_false(is_closed_by_server(silent[i]));
    assert_int_equal(request(&loop, 7, 3, &fd), QN_OK);
    close(fd);
    assert_true(is_closed_by_server(silent[0]));
    for (size_t i = 1; i < QN_FD_CLIENTS_MAX; i++)
        assert_false(is_closed_by_server(silent[i]));
    for (size_t i = 0; i < QN_FD_CLIENTS_MAX; i++)
        close(silent[i]);
}

static void test_fd_socket_other_users_are_refused(void **state)
{
    if (geteuid() != 0) skip(); /* only root can become another user */
    loop_t loop = {.server = *state};
    pthread_t thread;
    chmod(directory, 0755);
    chmod(socket_path, 0666); /* even if the file's mode would let them in */
    pid_t child = fork();
    if (child == 0) {
        int fd;
        if (setuid(65534) != 0) _exit(2);
        _exit(qn_fd_request(socket_path, 7, 3, 5000, &fd) == QN_OK ? 1 : 0);
    }
    assert_int_equal(pthread_create(&thread, NULL, loop_main, &loop), 0);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    atomic_store(&loop.stop, true);
    pthread_join(thread, NULL);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(loop.answered, 0);
}

static void test_fd_socket_replaces_a_stale_socket_file(void **state)
{
    qn_fd_server_t *second;
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/stale", directory);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    close(fd);
    assert_int_equal(qn_fd_server_create(path, find, NULL, &second), QN_OK);
    qn_fd_server_destroy(&second);
    assert_null(second);
    assert_int_equal(access(path, F_OK), -1);
}

static void test_fd_socket_path_both_sides_of_the_limit(void **state)
{
    (void)state;
    char path[128];
    qn_fd_server_t *server = NULL;
    size_t room = sizeof((struct sockaddr_un *)0)->sun_path - 1;
    for (size_t length = room; length <= room + 1; length++) {
        int used = snprintf(path, sizeof path, "%s/", directory);
        memset(path + used, 'p', sizeof path - (size_t)used);
        path[length] = '\0';
        assert_int_equal(qn_fd_server_create(path, find, NULL, &server), length <= room ? QN_OK : QN_ERR_LIMIT);
        qn_fd_server_destroy(&server);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_fd_socket_known_region_arrives_close_on_exec, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fd_socket_unknown_region_or_epoch_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fd_socket_file_is_private, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fd_socket_nobody_listening_is_a_peer_failure, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fd_socket_silent_server_is_a_timeout, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fd_socket_malformed_requests_end_their_connection, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fd_socket_silent_clients_give_way_oldest_first, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fd_socket_other_users_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fd_socket_replaces_a_stale_socket_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fd_socket_path_both_sides_of_the_limit, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
