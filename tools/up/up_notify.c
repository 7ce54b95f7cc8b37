/* What is this?      sd_notify messages: text and ancillary descriptors.
 * State owned:       none; the socket is the caller's.
 * Must never:        trust what is sent; block; leak a descriptor.
 * Read next:         up_store.c; sd_notify(3). */
#include "tools/up/up_notify.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/paths.h"

static bool is_value(const char *line, size_t length, const char *key, const char **ret_value, size_t *ret_length)
{
    size_t key_length = strlen(key);
    if (length <= key_length || memcmp(line, key, key_length) != 0 || line[key_length] != '=') return false;
    *ret_value = line + key_length + 1;
    *ret_length = length - key_length - 1;
    return true;
}

static bool is_one(const char *line, size_t length, const char *key)
{
    const char *value;
    size_t value_length;
    return is_value(line, length, key, &value, &value_length) && value_length == 1 && value[0] == '1';
}

static void copy_text(char *to, size_t capacity, const char *text, size_t length)
{
    if (length >= capacity) length = capacity - 1;
    for (size_t i = 0; i < length; i++)
        to[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? '?' : text[i];
    to[length] = '\0';
}

static void parse_line(const char *line, size_t length, up_notice_t *notice)
{
    const char *value;
    size_t value_length;
    if (is_one(line, length, "READY"))
        notice->ready = true;
    else if (is_one(line, length, "STOPPING"))
        notice->stopping = true;
    else if (is_one(line, length, "WATCHDOG"))
        notice->alive = true;
    else if (is_one(line, length, "FDSTORE"))
        notice->fd_store = true;
    else if (is_one(line, length, "FDSTOREREMOVE"))
        notice->fd_store_remove = true;
    else if (is_value(line, length, "STATUS", &value, &value_length)) {
        notice->has_status = true;
        copy_text(notice->status, sizeof notice->status, value, value_length);
    } else if (is_value(line, length, "FDNAME", &value, &value_length) && value_length < UP_FD_NAME_MAX) {
        memcpy(notice->fd_name, value, value_length);
        notice->fd_name[value_length] = '\0';
        if (!up_store_name_is_valid(notice->fd_name)) notice->fd_name[0] = '\0';
    }
}

void up_notice_parse(const char *text, size_t length, up_notice_t *ret_notice)
{
    memset(ret_notice, 0, sizeof *ret_notice);
    const char *end = text + length;
    while (text < end) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        size_t line = (size_t)((newline ? newline : end) - text);
        parse_line(text, line, ret_notice);
        text += line + 1;
    }
}

qn_err_t up_notify_open(const char *path, int *ret_fd)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        return qn_fail(QN_ERR_LIMIT,
                       "run_dir is too long: %s has %zu bytes and a socket's path may have %zu; choose "
                       "another with --run-dir",
                       path, strlen(path), sizeof address.sun_path - 1);
    }
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return qn_fail(QN_ERR_IO, "cannot make a socket: %s", strerror(errno));
    unlink(path);
    if (bind(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        qn_err_t err = qn_fail(QN_ERR_IO, "cannot bind %s: %s", path, strerror(errno));
        close(fd);
        return err;
    }
    qn_err_t err = qn_paths_make_private(path);
    if (err) {
        close(fd);
        return err;
    }
    *ret_fd = fd;
    return QN_OK;
}

/* Collects the descriptors of all SCM_RIGHTS parts; closes those beyond the capacity. */
static size_t collect_fds(struct msghdr *message, int fds[UP_STORE_FDS_MAX])
{
    size_t count = 0;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        size_t part_count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < part_count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (count < UP_STORE_FDS_MAX)
                fds[count++] = fd;
            else
                close(fd);
        }
    }
    return count;
}

bool up_notify_take(int fd, up_notice_t *ret_notice, int ret_fds[UP_STORE_FDS_MAX], size_t *ret_fd_count)
{
    char text[UP_NOTICE_BYTES_MAX];
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * UP_STORE_FDS_MAX)];
    struct iovec part = {text, sizeof text};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    ssize_t length;
    do {
        length = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    } while (length < 0 && errno == EINTR);
    if (length < 0) return false;
    *ret_fd_count = collect_fds(&message, ret_fds);
    up_notice_parse(text, (message.msg_flags & MSG_TRUNC) ? 0 : (size_t)length, ret_notice);
    if (ret_notice->fd_store) return true;
    for (size_t i = 0; i < *ret_fd_count; i++)
        close(ret_fds[i]);
    *ret_fd_count = 0;
    return true;
}
