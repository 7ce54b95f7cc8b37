/* A daemon in a thread of the test: start it, stop it, learn how it ended. Include after cmocka.h. */
#ifndef QN_TESTS_FLOW_RUNNER_H
#define QN_TESTS_FLOW_RUNNER_H

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/daemon/daemon.h"

typedef struct {
    const qn_daemon_descriptor_t *descriptor;
    const qn_config_t *config;
    unsigned composed; /* as composed_services of qn_daemon_run; 0 = over ipc */
    int stop_fd;
    qn_err_t err;
    pthread_t thread;
} runner_t;

static void *runner_main(void *opaque)
{
    runner_t *runner = opaque;
    runner->err = qn_daemon_run(runner->descriptor, runner->config, runner->composed, runner->stop_fd);
    return NULL;
}

static void runner_start(runner_t *runner, const qn_daemon_descriptor_t *descriptor, const qn_config_t *config,
                         unsigned composed)
{
    *runner = (runner_t){.descriptor = descriptor,
                         .config = config,
                         .composed = composed,
                         .stop_fd = eventfd(0, EFD_CLOEXEC)};
    assert_int_equal(pthread_create(&runner->thread, NULL, runner_main, runner), 0);
}

/* Returns what qn_daemon_run returned. */
static qn_err_t runner_stop(runner_t *runner)
{
    uint64_t one = 1;
    assert_int_equal(write(runner->stop_fd, &one, sizeof one), sizeof one);
    pthread_join(runner->thread, NULL);
    close(runner->stop_fd);
    return runner->err;
}

#endif
