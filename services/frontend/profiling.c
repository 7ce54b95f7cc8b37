/* What is this?      The recorder's thread in the frontend.
 * State owned:       the thread, what it has come to, two eventfds.
 * Must never:        hold up the loop; leave a thread behind.
 * Read next:         common/capture/recorder.h, common/capture/trace.h, methods/profile.c (who asks). */
#include "services/frontend/profiling.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

struct profiling {
    const char *run_dir;
    pthread_t thread;
    bool has_thread;      /* to be joined */
    atomic_bool leaving;  /* nobody will ask for the timeline */
    int stop_fd, news_fd; /* eventfds */
    pthread_mutex_t lock; /* guards `view` */
    profiling_view_t view;
};

static void signal_fd(int fd)
{
    uint64_t one = 1;
    ssize_t written = write(fd, &one, sizeof one);
    (void)written; /* it is readable already */
}

static void quiet_fd(int fd)
{
    uint64_t count;
    ssize_t got = read(fd, &count, sizeof count);
    (void)got;
}

/* ---- life ---- */

qn_err_t profiling_create(const char *run_dir, profiling_t **ret_profiling)
{
    profiling_t *self = calloc(1, sizeof *self);
    if (!self) return qn_fail(QN_ERR_NO_MEMORY, "no memory for recordings");
    self->run_dir = run_dir;
    pthread_mutex_init(&self->lock, NULL);
    self->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    self->news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    *ret_profiling = self;
    if (self->stop_fd >= 0 && self->news_fd >= 0) return QN_OK;
    profiling_destroy(ret_profiling);
    return qn_fail(QN_ERR_IO, "eventfd: %s; raise the limit of open files", strerror(errno));
}

static void join(profiling_t *self)
{
    if (self->has_thread) pthread_join(self->thread, NULL);
    self->has_thread = false;
}

void profiling_destroy(profiling_t **profiling)
{
    profiling_t *self = *profiling;
    if (!self) return;
    atomic_store(&self->leaving, true);
    profiling_stop(self);
    join(self);
    if (self->stop_fd >= 0) close(self->stop_fd);
    if (self->news_fd >= 0) close(self->news_fd);
    pthread_mutex_destroy(&self->lock);
    free(self);
    *profiling = NULL;
}

int profiling_fd(const profiling_t *profiling) { return profiling->news_fd; }

/* ---- the thread ---- */

static void listening(void *context, unsigned services)
{
    profiling_t *self = context;
    pthread_mutex_lock(&self->lock);
    self->view.state = PROFILING_RUNNING;
    self->view.services = services;
    pthread_mutex_unlock(&self->lock);
    signal_fd(self->news_fd);
}

static qn_err_t write_trace(const char *capture_path, const char *trace_path, qn_trace_figures_t *ret_figures)
{
    int fd = open(trace_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    FILE *out = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (!out) {
        if (fd >= 0) close(fd);
        return qn_fail(QN_ERR_IO, "cannot write %s: %s", trace_path, strerror(errno));
    }
    qn_err_t err = qn_trace_write(capture_path, out, ret_figures);
    if (fclose(out) && !err) err = qn_fail(QN_ERR_IO, "cannot write %s: %s", trace_path, strerror(errno));
    return err;
}

static void *record(void *context)
{
    profiling_t *self = context;
    qn_recorder_figures_t recorded = {0};
    qn_trace_figures_t traced = {0};
    qn_recorder_spec_t spec = {.run_dir = self->run_dir,
                               .path = self->view.capture_path,
                               .time_ns = self->view.seconds * 1000000000ull,
                               .bytes_max = QN_RECORDER_BYTES_MAX,
                               .stop_fd = self->stop_fd,
                               .listening = listening,
                               .context = self};
    qn_err_t err = qn_recorder_run(&spec, &recorded);
    if (!err && !atomic_load(&self->leaving))
        err = write_trace(self->view.capture_path, self->view.trace_path, &traced);
    pthread_mutex_lock(&self->lock);
    self->view.recorded = recorded;
    self->view.traced = traced;
    snprintf(self->view.error, sizeof self->view.error, "%s", err ? qn_err_text() : "");
    self->view.state = PROFILING_ENDED;
    pthread_mutex_unlock(&self->lock);
    signal_fd(self->news_fd);
    return NULL;
}

/* ---- files that are kept ---- */

static bool is_capture(const struct dirent *entry)
{
    size_t length = strlen(entry->d_name), suffix = strlen(QN_RECORDER_CAPTURE_SUFFIX);
    return length > suffix && strcmp(entry->d_name + length - suffix, QN_RECORDER_CAPTURE_SUFFIX) == 0;
}

/* Counts captures; *ret_oldest is the name of the oldest one, without its suffix. */
static unsigned count_captures(const char *folder, char ret_oldest[NAME_MAX + 1])
{
    unsigned count = 0;
    struct timespec oldest = {0};
    DIR *directory = opendir(folder);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        struct stat found;
        if (!is_capture(entry) || fstatat(dirfd(directory), entry->d_name, &found, AT_SYMLINK_NOFOLLOW)) continue;
        bool older = found.st_mtim.tv_sec < oldest.tv_sec ||
                     (found.st_mtim.tv_sec == oldest.tv_sec && found.st_mtim.tv_nsec < oldest.tv_nsec);
        if (count++ && !older) continue;
        oldest = found.st_mtim;
        snprintf(ret_oldest, NAME_MAX + 1, "%.*s", (int)(strlen(entry->d_name) - strlen(QN_RECORDER_CAPTURE_SUFFIX)),
                 entry->d_name);
    }
    if (directory) closedir(directory);
    return count;
}

/* Makes room for one more. */
static void forget_old(const char *run_dir)
{
    char folder[QN_PATH_MAX + 16], path[QN_PATH_MAX + NAME_MAX + 64], oldest[NAME_MAX + 1] = "";
    snprintf(folder, sizeof folder, "%s/recordings", run_dir);
    for (unsigned i = 0; i < 64 && count_captures(folder, oldest) >= PROFILING_KEPT; i++) {
        snprintf(path, sizeof path, "%s/%s%s", folder, oldest, QN_RECORDER_TRACE_SUFFIX);
        unlink(path);
        snprintf(path, sizeof path, "%s/%s%s", folder, oldest, QN_RECORDER_CAPTURE_SUFFIX);
        if (unlink(path)) return;
    }
}

/* ---- start and stop ---- */

static qn_err_t start_thread(profiling_t *self)
{
    sigset_t all, before; /* signals belong to the process's own loop */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = pthread_create(&self->thread, NULL, record, self);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure) return qn_fail(QN_ERR_IO, "cannot start the recorder's thread: %s", strerror(failure));
    self->has_thread = true;
    return QN_OK;
}

qn_err_t profiling_start(profiling_t *self, const char *name, uint32_t seconds)
{
    profiling_view_t view = {.state = PROFILING_STARTING, .seconds = seconds}, now;
    profiling_look(self, &now);
    if (now.state == PROFILING_STARTING || now.state == PROFILING_RUNNING)
        return qn_fail(QN_ERR_LIMIT, "the recording \"%s\" runs; stop it first", now.name);
    qn_err_t err = qn_recorder_path(self->run_dir, name, QN_RECORDER_CAPTURE_SUFFIX, view.capture_path, QN_PATH_MAX);
    if (!err) err = qn_recorder_path(self->run_dir, name, QN_RECORDER_TRACE_SUFFIX, view.trace_path, QN_PATH_MAX);
    if (err) return err;
    snprintf(view.name, sizeof view.name, "%s", name);
    unlink(view.capture_path);
    unlink(view.trace_path);
    forget_old(self->run_dir);
    join(self); /* of the one before: it has ended */
    quiet_fd(self->stop_fd);
    self->view = view;
    err = start_thread(self);
    if (err) self->view.state = PROFILING_NONE;
    return err;
}

void profiling_stop(profiling_t *profiling)
{
    if (profiling->has_thread) signal_fd(profiling->stop_fd);
}

void profiling_look(profiling_t *self, profiling_view_t *ret_view)
{
    quiet_fd(self->news_fd);
    pthread_mutex_lock(&self->lock);
    *ret_view = self->view;
    pthread_mutex_unlock(&self->lock);
}
