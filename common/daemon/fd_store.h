/* Descriptors that outlive a daemon: the store of the service manager (systemd's, or that of `quintet up`, which speaks
 * the same protocol), and what the manager hands to a new life. See sd_pid_notify_with_fds(3), FileDescriptorStoreMax= in
 * systemd.service(5), sd_listen_fds_with_names(3). Nothing here blocks but qn_fd_store_drop_and_wait. */
#ifndef QN_COMMON_DAEMON_FD_STORE_H
#define QN_COMMON_DAEMON_FD_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QN_FD_NAME_MAX 128

/* Whether there is a manager to give descriptors to. */
bool qn_fd_store_is_there(void);
/* Gives a copy of `fd` under `name`, beside what has this name already. `polls` false: the manager shall not let go of it
 * when it polls as hung up. 1: given; 0: there is no manager; negative: -errno. */
int qn_fd_store_put(const char *name, int fd, bool polls);
/* Asks that all of this name be let go of. */
void qn_fd_store_drop(const char *name);
/* The same, and waits at most `wait_us` until the manager has done so. */
void qn_fd_store_drop_and_wait(const char *name, uint64_t wait_us);

/* The first inherited descriptor of this name, or -1. It stays the process's. */
int qn_fd_store_find(const char *name);
/* Calls `take` for each inherited descriptor whose name begins with `prefix`; `name` is a view. */
void qn_fd_store_each(const char *prefix, void (*take)(void *context, int fd, const char *name), void *context);

#endif
