/* What is this?      The default places of models and of the run directory.
 * State owned:       none.
 * Must never:        fall back to a place the user did not mean: a path that was given is taken as it is.
 * Read next:         config.h (model.path, run_dir). */
#include "common/paths.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static qn_err_t format_path(char *ret_path, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

static qn_err_t format_path(char *ret_path, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(ret_path, size, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= size)
        return qn_fail(QN_ERR_LIMIT, "path '%.64s...' is longer than %zu bytes", ret_path, size - 1);
    return QN_OK;
}

static qn_err_t executable_directory(char *ret_path, size_t size)
{
    ssize_t length = readlink("/proc/self/exe", ret_path, size);
    if (length < 0) return qn_fail(QN_ERR_IO, "/proc/self/exe: %s", strerror(errno));
    if ((size_t)length >= size) return qn_fail(QN_ERR_LIMIT, "the path of this executable is too long");
    ret_path[length] = '\0';
    *strrchr(ret_path, '/') = '\0';
    return QN_OK;
}

qn_err_t qn_paths_model(const qn_config_values_t *config, char *ret_path, size_t size)
{
    static const char *const bundled[] = {"../deploy/models/default", "../../deploy/models/default",
                                          "../share/quintet/models/default"};
    char directory[QN_PATH_MAX], candidate[QN_PATH_MAX + 64];
    struct stat info;
    if (config->model.path[0]) return format_path(ret_path, size, "%s", config->model.path);
    qn_err_t err = executable_directory(directory, sizeof directory);
    if (err) return err;
    for (size_t i = 0; i < sizeof bundled / sizeof *bundled; i++) {
        snprintf(candidate, sizeof candidate, "%s/%s", directory, bundled[i]);
        if (stat(candidate, &info) < 0 || !S_ISDIR(info.st_mode)) continue;
        char *real = realpath(candidate, NULL);
        if (!real) return qn_fail(QN_ERR_IO, "%s: %s", candidate, strerror(errno));
        err = format_path(ret_path, size, "%s", real);
        free(real);
        return err;
    }
    return qn_fail(QN_ERR_NOT_FOUND,
                   "the bundled model is neither in %s/../deploy/models/default nor in "
                   "../share/quintet/models/default: set model.path to a Hugging Face directory",
                   directory);
}

qn_err_t qn_paths_policies(const qn_config_values_t *config, char *ret_dirs, size_t size)
{
    char directory[QN_PATH_MAX];
    if (config->policies.dirs[0]) return format_path(ret_dirs, size, "%s", config->policies.dirs);
    qn_err_t err = executable_directory(directory, sizeof directory);
    return err ? err : format_path(ret_dirs, size, "%s/policies:%s/../lib/quintet/policies", directory, directory);
}

qn_err_t qn_paths_kernels(const qn_config_values_t *config, char *ret_dirs, size_t size)
{
    char directory[QN_PATH_MAX];
    if (config->compute.kernel_dirs[0]) return format_path(ret_dirs, size, "%s", config->compute.kernel_dirs);
    qn_err_t err = executable_directory(directory, sizeof directory);
    return err ? err : format_path(ret_dirs, size, "%s/kernels:%s/../lib/quintet/kernels", directory, directory);
}

/* A test's program lies two folders below. */
qn_err_t qn_paths_command(char *ret_path, size_t size)
{
    static const char *const places[] = {"quintet", "../../quintet"};
    char directory[QN_PATH_MAX];
    qn_err_t err = executable_directory(directory, sizeof directory);
    for (size_t i = 0; !err && i < sizeof places / sizeof *places; i++) {
        err = format_path(ret_path, size, "%s/%s", directory, places[i]);
        if (!err && access(ret_path, X_OK) == 0) return QN_OK;
    }
    return err ? err : qn_fail(QN_ERR_NOT_FOUND, "there is no quintet command in %.400s", directory);
}

/* In a default directory only this user may be able to make sockets. */
static qn_err_t check_private(const char *path)
{
    struct stat info;
    if (lstat(path, &info) < 0) return qn_fail(QN_ERR_IO, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(info.st_mode) || info.st_uid != geteuid() || (info.st_mode & 0022))
        return qn_fail(QN_ERR_CONFIG,
                       "run_dir %s is not a directory that only you can write: remove it, or choose "
                       "another with --run-dir",
                       path);
    return QN_OK;
}

qn_err_t qn_paths_run_dir(const qn_config_values_t *config, char *ret_path, size_t size)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    char path[QN_PATH_MAX];
    qn_err_t err;
    if (config->run_dir[0])
        err = format_path(path, sizeof path, "%s", config->run_dir);
    else if (runtime && runtime[0] == '/')
        err = format_path(path, sizeof path, "%s/quintet", runtime);
    else if (geteuid() == 0)
        err = format_path(path, sizeof path, "/run/quintet");
    else
        err = format_path(path, sizeof path, "/tmp/quintet-%u", (unsigned)geteuid());
    if (err) return err;
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return qn_fail(QN_ERR_CONFIG, "run_dir %s cannot be made: %s", path, strerror(errno));
    struct stat info;
    if (stat(path, &info) < 0 || !S_ISDIR(info.st_mode))
        return qn_fail(QN_ERR_CONFIG, "run_dir %s is not a directory", path);
    if (!config->run_dir[0] && (err = check_private(path))) return err;
    return format_path(ret_path, size, "%s", path);
}

qn_err_t qn_paths_make_private(const char *path)
{
    if (chmod(path, 0600) == 0) return QN_OK;
    return qn_fail(QN_ERR_IO, "cannot make %s private: %s", path, strerror(errno));
}
