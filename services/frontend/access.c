/* What is this?      The rules of access.
 * State owned:       frontend_t.keys and its SIGHUP.
 * Must never:        log a key, or what was given for one.
 * Read next:         http/router.c (what each route needs), http/api_keys.h. */
#include "services/frontend/access.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/watch/log.h"

/* ---- keys ---- */

/* The process has blocked SIGHUP in all its threads; where it has not, it means what it always meant. */
static int open_hangup(void)
{
    sigset_t blocked, hangup;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    if (!sigismember(&blocked, SIGHUP)) return -1;
    sigemptyset(&hangup);
    sigaddset(&hangup, SIGHUP);
    return signalfd(-1, &hangup, SFD_CLOEXEC | SFD_NONBLOCK);
}

qn_err_t access_open(frontend_t *frontend)
{
    const char *path = frontend->config->frontend.api_keys_file;
    qn_err_t err = path[0] ? api_keys_read(path, &frontend->keys) : QN_OK;
    if (err) return err;
    if (frontend->keys) qn_log_notice("%zu API keys are in force", api_keys_count(frontend->keys));
    frontend->hangup_fd = open_hangup();
    return frontend->hangup_fd >= 0 ? qn_daemon_watch(frontend->daemon, frontend->hangup_fd) : QN_OK;
}

void access_close(frontend_t *frontend)
{
    if (frontend->hangup_fd > 0) {
        qn_daemon_unwatch(frontend->daemon, frontend->hangup_fd);
        close(frontend->hangup_fd);
    }
    frontend->hangup_fd = -1;
    api_keys_destroy(&frontend->keys);
}

void access_turn(frontend_t *frontend)
{
    struct signalfd_siginfo info;
    api_keys_t *keys = NULL;
    const char *path = frontend->config->frontend.api_keys_file;
    if (frontend->hangup_fd <= 0 || read(frontend->hangup_fd, &info, sizeof info) != (ssize_t)sizeof info) return;
    if (!path[0]) {
        qn_log_notice("SIGHUP: there is no frontend.api_keys_file to read again");
        return;
    }
    if (api_keys_read(path, &keys) != QN_OK) {
        qn_log_error("SIGHUP: the old API keys stay in force: %s", qn_err_text());
        return;
    }
    api_keys_destroy(&frontend->keys);
    frontend->keys = keys;
    qn_log_notice("SIGHUP: %zu API keys are in force", api_keys_count(keys));
}

/* ---- requests ---- */

static bool check_key(const frontend_t *frontend, const http_request_t *request, access_t needed,
                      http_error_t *ret_error)
{
    const char *given = http_request_header(request, "authorization");
    access_t scope = api_keys_scope(frontend->keys, given);
    if (scope == ACCESS_ADMIN || scope == needed) return true;
    if (scope == ACCESS_PUBLIC)
        http_error_set(ret_error, 401, "authorization",
                       given ? "The API key is none of this server's; send \"Authorization: Bearer KEY\"."
                             : "An API key is needed; send \"Authorization: Bearer KEY\".");
    else
        http_error_set(ret_error, 403, "authorization",
                       "This needs an API key of scope admin; the one given has user.");
    return false;
}

bool access_allows(const frontend_t *frontend, const http_request_t *request, access_t needed, http_error_t *ret_error)
{
    bool is_admins = frontend->admin && http_request_server(request) == frontend->admin;
    if (needed == ACCESS_ADMIN && frontend->admin && !is_admins) {
        http_error_set(ret_error, 404, NULL, "There is no %.128s here.", http_request_path(request));
        return false;
    }
    if (needed == ACCESS_PUBLIC) return true;
    if (frontend->keys) return check_key(frontend, request, needed, ret_error);
    if (needed != ACCESS_ADMIN || is_admins || http_request_is_local(request)) return true;
    http_error_set(ret_error, 403, NULL,
                   "This shows or changes how the server works, and answers only to clients on its own host. Set "
                   "frontend.api_keys_file, or frontend.admin_listen.");
    return false;
}

void access_refuse(frontend_t *frontend, http_request_t *request, route_t route, const http_error_t *error)
{
    if (error->status == 401)
        http_request_add_header(request, "WWW-Authenticate",
                                http_request_header(request, "authorization")
                                    ? "Bearer realm=\"quintet\", error=\"invalid_token\""
                                    : "Bearer realm=\"quintet\"");
    if (error->status == 403 && frontend->keys)
        http_request_add_header(request, "WWW-Authenticate",
                                "Bearer realm=\"quintet\", error=\"insufficient_scope\", scope=\"admin\"");
    frontend_reply_error(frontend, request, route, error);
}
