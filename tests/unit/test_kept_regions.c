/* Regions in the service manager's store: what is sent, and what comes back after a restart. The test plays the
 * manager. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "services/memory/kept_regions.h"

static char socket_path[64];
static int manager = -1;

static int setup(void **state)
{
    (void)state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(socket_path, sizeof socket_path, "/tmp/qn-kept-%d", (int)getpid());
    strcpy(address.sun_path, socket_path);
    unlink(socket_path);
    manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (bind(manager, (struct sockaddr *)&address, sizeof address) < 0) return -1;
    return setenv("NOTIFY_SOCKET", socket_path, 1);
}

static int teardown(void **state)
{
    (void)state;
    unsetenv("NOTIFY_SOCKET");
    close(manager);
    return unlink(socket_path);
}

/* The next message to the manager ("" when there is none) and the descriptor that came with it, or -1. */
static int receive(char *ret_text, size_t size)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * 4)];
        struct cmsghdr align;
    } control;
    struct iovec data = {.iov_base = ret_text, .iov_len = size - 1};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got = recvmsg(manager, &message, MSG_CMSG_CLOEXEC);
    int fd = -1;
    ret_text[got > 0 ? got : 0] = '\0';
    struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    for (; header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_type == SCM_RIGHTS) memcpy(&fd, CMSG_DATA(header), sizeof fd);
    }
    return fd;
}

static qn_mapping_t *make_region(const char *name, uint8_t content)
{
    static uint64_t next_id = 1;
    qn_mapping_t *region;
    qn_region_spec_t spec = {.id = next_id++,
                             .kind = QN_REGION_KIND_STATE,
                             .share = QN_SHARE_MEMFD,
                             .device = -1,
                             .bytes = 100,
                             .epoch = 3,
                             .name = name};
    assert_int_equal(qn_region_create(&spec, &region), QN_OK);
    memset(qn_region_pointer(region), content, 100);
    return region;
}

static void test_kept_regions_put_replaces_under_its_name(void **state)
{
    (void)state;
    char text[256];
    qn_mapping_t *region = make_region("slots", 9), *kept;
    kept_regions_put(region);
    assert_int_equal(receive(text, sizeof text), -1);
    assert_string_equal(text, "FDSTOREREMOVE=1\nFDNAME=region.slots");
    int fd = receive(text, sizeof text);
    assert_string_equal(text, "FDSTORE=1\nFDNAME=region.slots");
    assert_true(fd >= 0);
    qn_region_close(&region);
    assert_int_equal(qn_region_adopt(fd, "", &kept), QN_OK); /* the descriptor alone is enough */
    assert_int_equal(((uint8_t *)qn_region_pointer(kept))[99], 9);
    qn_region_close(&kept);
    region = make_region("slots", 0);
    kept_regions_drop(region);
    qn_region_close(&region);
    assert_int_equal(receive(text, sizeof text), -1);
    assert_string_equal(text, "FDSTOREREMOVE=1\nFDNAME=region.slots");
}

static void test_kept_regions_without_a_manager_nothing_is_sent(void **state)
{
    (void)state;
    char text[256];
    qn_mapping_t *region = make_region("slots", 9), *none[4];
    unsetenv("NOTIFY_SOCKET");
    kept_regions_put(region);
    kept_regions_drop(region);
    assert_int_equal(kept_regions_take(QN_SHARE_MEMFD, -1, "", none, 4), 0);
    assert_int_equal(receive(text, sizeof text), -1);
    assert_string_equal(text, "");
    qn_region_close(&region);
}

/* A child with LISTEN_FDS as the manager sets it; it says by its exit status what it found. */
static int child_takes(const int *fds, int count, const char *names, qn_share_t share)
{
    char number[16];
    qn_mapping_t *regions[4];
    for (int i = 0; i < count; i++) {
        if (dup2(fds[i], 3 + i) < 0) return 100; /* callers keep fds above 3 + count */
    }
    snprintf(number, sizeof number, "%d", (int)getpid());
    setenv("LISTEN_PID", number, 1);
    snprintf(number, sizeof number, "%d", count);
    setenv("LISTEN_FDS", number, 1);
    setenv("LISTEN_FDNAMES", names, 1);
    size_t taken = kept_regions_take(share, share == QN_SHARE_MEMFD ? -1 : 0, "/run/x", regions, 4);
    int sum = 0;
    for (size_t i = 0; i < taken; i++)
        sum += ((uint8_t *)qn_region_pointer(regions[i]))[0];
    return (int)taken * 10 + sum;
}

/* What the child said to the manager, but for barriers: those end when the manager closes their descriptor. */
static char heard[256];

static bool listen_to_child(void)
{
    char text[256];
    int fd = receive(text, sizeof text);
    if (fd >= 0) close(fd);
    if (text[0] && strcmp(text, "BARRIER=1") != 0) strcpy(heard, text);
    return text[0] != '\0';
}

static int run_child_of(const int *fds, int count, const char *names, qn_share_t share)
{
    int status;
    heard[0] = '\0';
    pid_t pid = fork();
    if (pid == 0) _exit(child_takes(fds, count, names, share));
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd watched[] = {{.fd = manager, .events = POLLIN}, {.fd = pidfd, .events = POLLIN}};
    do {
        assert_true(poll(watched, 2, 10000) > 0);
        listen_to_child();
    } while (!(watched[1].revents & POLLIN));
    while (listen_to_child())
        continue;
    close(pidfd);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int run_child(const int *fds, int count, const char *names)
{
    return run_child_of(fds, count, names, QN_SHARE_MEMFD);
}

static void test_kept_regions_take_only_what_is_right(void **state)
{
    (void)state;
    qn_mapping_t *slots = make_region("slots", 1), *scratch = make_region("scratch", 2);
    int junk = memfd_create("junk", MFD_CLOEXEC);
    assert_int_equal(ftruncate(junk, 8192), 0);
    int fds[3] = {fcntl(qn_region_fd(slots), F_DUPFD_CLOEXEC, 50), fcntl(qn_region_fd(scratch), F_DUPFD_CLOEXEC, 50),
                  fcntl(junk, F_DUPFD_CLOEXEC, 50)};
    assert_int_equal(run_child(fds, 2, "region.slots:region.scratch"), 23);
    assert_int_equal(run_child(fds, 2, "ledger:region.scratch"), 12); /* another service's: left alone */
    assert_string_equal(heard, "");
    assert_int_equal(run_child(fds, 3, "region.slots:region.scratch:region.junk"), 23);
    assert_string_equal(heard, "FDSTOREREMOVE=1\nFDNAME=region.junk");
    assert_int_equal(run_child(fds, 2, "region.slots:region.other"), 11); /* under a name that is not its own */
    assert_string_equal(heard, "FDSTOREREMOVE=1\nFDNAME=region.other");
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    close(junk);
    qn_region_close(&slots);
    qn_region_close(&scratch);
}

/* What has a size in its name is a device's; whatever cannot be used leaves the store under the name it has there. */
static void test_kept_regions_of_another_share_are_dropped(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        qn_share_t share;
    } cases[] = {
        {"region.slots@100", QN_SHARE_MEMFD},
        {"region.slots@0", QN_SHARE_CUDA_VMM},
        {"region.slots@", QN_SHARE_CUDA_VMM},
        {"region.slots@12x", QN_SHARE_CUDA_VMM},
        {"region.slots@1234567890123456789", QN_SHARE_CUDA_VMM},
        {"region.slots", QN_SHARE_CUDA_VMM},
        {"region.slots", QN_SHARE_CUDA_IPC},
        {"region.slots@100", QN_SHARE_CUDA_IPC},
    };
    char wanted[128];
    qn_mapping_t *slots = make_region("slots", 1);
    int fd = fcntl(qn_region_fd(slots), F_DUPFD_CLOEXEC, 50);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (run_child_of(&fd, 1, cases[i].name, cases[i].share) != 0) fail_msg("%s was taken", cases[i].name);
        snprintf(wanted, sizeof wanted, "FDSTOREREMOVE=1\nFDNAME=%s", cases[i].name);
        assert_string_equal(heard, wanted);
    }
    assert_int_equal(run_child(&fd, 1, "region.slots"), 11);
    close(fd);
    qn_region_close(&slots);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_kept_regions_put_replaces_under_its_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kept_regions_without_a_manager_nothing_is_sent, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kept_regions_take_only_what_is_right, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kept_regions_of_another_share_are_dropped, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
