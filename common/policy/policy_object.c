/* What is this?      Policies by name: the built-in ones, and those in shared objects.
 * State owned:       the handle and the private copy of a shared object, the policy's state and metrics.
 * Must never:        run code from outside the configured directories, or of another ABI.
 * Read next:         common/policy.h for the contract, policy_seat.c for who decides. */
#include "common/policy/policy_object.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checksum.h"

#define FILE_BYTES_MAX (16u << 20)
#define METRIC_NAME_MAX 23

struct qn_policy_object {
    const qn_policy_head_t *head;
    char choice[QN_POLICY_NAME_MAX];
    void *library; /* NULL: built in */
    int copy;      /* its bytes; open as long as it is loaded, so that its name is nobody else's */
    uint64_t fingerprint;
    qn_policy_memory_t memory;
};

const char *qn_policy_kind_name(qn_policy_kind_t kind)
{
    static const char *const names[] = {[QN_POLICY_SCHEDULING] = "scheduling",
                                        [QN_POLICY_BATCHING] = "batching",
                                        [QN_POLICY_ADMISSION] = "admission",
                                        [QN_POLICY_EVICTION] = "eviction"};
    return names[kind];
}

const char *qn_policy_kind_key(qn_policy_kind_t kind)
{
    static const char *const keys[] = {[QN_POLICY_SCHEDULING] = "scheduler.policy",
                                       [QN_POLICY_BATCHING] = "scheduler.batching",
                                       [QN_POLICY_ADMISSION] = "scheduler.admission",
                                       [QN_POLICY_EVICTION] = "memory.eviction"};
    return keys[kind];
}

/* ---- the table ---- */

static bool is_metric_name(const char *name)
{
    size_t length = name != NULL ? strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") : 0;
    return length > 0 && length <= METRIC_NAME_MAX && name[length] == '\0' && name[0] >= 'a' && name[0] <= 'z';
}

static bool has_functions(const qn_policy_head_t *head)
{
    switch (head->kind) {
    case QN_POLICY_SCHEDULING: {
        const qn_policy_t *policy = (const void *)head;
        return policy->admit != NULL && policy->share != NULL && policy->preempt != NULL;
    }
    case QN_POLICY_BATCHING: return ((const qn_batching_policy_t *)(const void *)head)->size != NULL;
    case QN_POLICY_ADMISSION: return ((const qn_admission_policy_t *)(const void *)head)->judge != NULL;
    case QN_POLICY_EVICTION: return ((const qn_eviction_policy_t *)(const void *)head)->score != NULL;
    default: return false;
    }
}

static qn_err_t refuse(qn_policy_kind_t kind, const char *from, const char *why)
{
    return qn_fail(QN_ERR_CONFIG, "%s policy %s: %s", qn_policy_kind_name(kind), from, why);
}

static qn_err_t check_head(qn_policy_kind_t kind, const qn_policy_head_t *head, const char *from)
{
    char why[160];
    if (head == NULL) return refuse(kind, from, QN_POLICY_SYMBOL "() returned nothing");
    if (head->version != QN_POLICY_ABI_VERSION) {
        snprintf(why, sizeof why,
                 "made for policy ABI %u, this build has %d; compile it again with its common/policy.h", head->version,
                 QN_POLICY_ABI_VERSION);
        return refuse(kind, from, why);
    }
    if (head->kind != (uint32_t)kind) {
        bool known = head->kind >= QN_POLICY_SCHEDULING && head->kind <= QN_POLICY_EVICTION;
        snprintf(why, sizeof why, "it is of kind %s", known ? qn_policy_kind_name(head->kind) : "unknown");
        return refuse(kind, from, why);
    }
    if (head->name == NULL || head->name[0] == '\0' || strlen(head->name) >= QN_NAME_MAX ||
        strpbrk(head->name, "\"\\{}\n") != NULL)
        return refuse(kind, from,
                      "its name is missing, longer than 63 bytes, or has quotes, braces or a line's end in it");
    if (!has_functions(head)) return refuse(kind, from, "a function is missing from its table");
    if (head->state_bytes > (kind == QN_POLICY_EVICTION ? 0 : QN_POLICY_STATE_MAX))
        return refuse(kind, from, "it wants more state than 4096 bytes (eviction: none)");
    if (head->metric_count > QN_POLICY_METRICS_MAX || (head->metric_count > 0 && head->metric_names == NULL))
        return refuse(kind, from, "it has more than 8 metrics, or no names for them");
    for (uint32_t i = 0; i < head->metric_count; i++)
        if (!is_metric_name(head->metric_names[i]))
            return refuse(kind, from, "a metric's name is not 1 to 23 letters of a-z, 0-9 and _, a letter first");
    return QN_OK;
}

qn_err_t qn_policy_object_wrap(qn_policy_kind_t kind, const qn_policy_head_t *head, qn_policy_object_t **ret_object)
{
    qn_err_t err = check_head(kind, head, "(built in)");
    if (err < 0) return err;
    qn_policy_object_t *object = calloc(1, sizeof *object);
    if (object == NULL) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a policy");
    object->copy = -1;
    object->head = head;
    snprintf(object->choice, sizeof object->choice, "%s", head->name);
    object->memory.state = head->state_bytes > 0 ? calloc(1, head->state_bytes) : NULL;
    object->memory.metrics = calloc(head->metric_count + 1, sizeof *object->memory.metrics);
    if (object->memory.metrics == NULL || (head->state_bytes > 0 && object->memory.state == NULL)) {
        qn_policy_object_close(&object);
        return qn_fail(QN_ERR_NO_MEMORY, "no memory for the state of policy %s", head->name);
    }
    *ret_object = object;
    return QN_OK;
}

/* ---- shared objects ---- */

/* Whether `path`, which has no links in it, lies in one of the directories. */
static bool is_inside(const char *path, const char *dirs)
{
    bool inside = false;
    char *list = strdup(dirs), *rest = NULL;
    for (char *dir = list != NULL ? strtok_r(list, ":", &rest) : NULL; dir != NULL; dir = strtok_r(NULL, ":", &rest)) {
        char *real = realpath(dir, NULL);
        size_t length = real != NULL ? strlen(real) : 0;
        inside = inside || (length > 0 && strncmp(path, real, length) == 0 && path[length] == '/');
        free(real);
    }
    free(list);
    return inside;
}

/* The file that a choice means, opened for reading; -1: errno. */
static int open_choice(const char *choice, const char *dirs)
{
    if (strchr(choice, '/') != NULL) return open(choice, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    int fd = -1;
    char path[QN_PATH_MAX];
    char *list = strdup(dirs), *rest = NULL;
    errno = ENOENT;
    for (char *dir = list != NULL ? strtok_r(list, ":", &rest) : NULL; dir != NULL && fd < 0;
         dir = strtok_r(NULL, ":", &rest))
        if (snprintf(path, sizeof path, "%s/%s", dir, choice) < (int)sizeof path)
            fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    int failed = errno;
    free(list);
    errno = failed;
    return fd;
}

static qn_err_t check_place(qn_policy_kind_t kind, int fd, const char *choice, const char *dirs)
{
    char link[64], path[QN_PATH_MAX], why[QN_PATH_MAX + 160];
    struct stat info;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0 || fstat(fd, &info) < 0) return refuse(kind, choice, strerror(errno));
    path[length] = '\0';
    if (!S_ISREG(info.st_mode) || info.st_size == 0 || info.st_size > FILE_BYTES_MAX)
        return refuse(kind, choice, "it is no file of 1 byte to 16 MiB");
    if (is_inside(path, dirs)) return QN_OK;
    snprintf(why, sizeof why, "%s is outside the directories of policies.dirs (%s); put it there, or add its directory",
             path, dirs);
    return refuse(kind, choice, why);
}

/* Its bytes in a memfd: what is written to the file from now on changes nothing. */
static qn_err_t copy_file(qn_policy_object_t *object, qn_policy_kind_t kind, int fd)
{
    uint8_t buffer[1 << 14];
    ssize_t count;
    object->copy = memfd_create("quintet-policy", MFD_CLOEXEC);
    if (object->copy < 0) return refuse(kind, object->choice, strerror(errno));
    while ((count = read(fd, buffer, sizeof buffer)) > 0) {
        object->fingerprint = qn_fingerprint(buffer, (size_t)count, object->fingerprint);
        if (write(object->copy, buffer, (size_t)count) != count) return refuse(kind, object->choice, strerror(errno));
    }
    if (object->fingerprint == 0) object->fingerprint = 1;
    return count == 0 ? QN_OK : refuse(kind, object->choice, strerror(errno));
}

static qn_err_t load_library(qn_policy_object_t *object, qn_policy_kind_t kind)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", object->copy);
    object->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (object->library == NULL) return refuse(kind, object->choice, dlerror());
    qn_policy_entry_t entry;
    void *symbol = dlsym(object->library, QN_POLICY_SYMBOL);
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast from object to function pointer */
    if (symbol == NULL) return refuse(kind, object->choice, "it does not export " QN_POLICY_SYMBOL "()");
    object->head = entry();
    return check_head(kind, object->head, object->choice);
}

static qn_err_t load(const qn_policy_catalogue_t *catalogue, const char *choice, const qn_policy_approval_t *approval,
                     qn_policy_object_t *object)
{
    int fd = open_choice(choice, catalogue->dirs);
    if (fd < 0) {
        char why[QN_PATH_MAX + 64];
        snprintf(why, sizeof why, "%s (policies.dirs: %s)", strerror(errno), catalogue->dirs);
        return refuse(catalogue->kind, choice, why);
    }
    qn_err_t err = check_place(catalogue->kind, fd, choice, catalogue->dirs);
    if (err == QN_OK) err = copy_file(object, catalogue->kind, fd);
    close(fd);
    if (err == QN_OK && approval != NULL) err = approval->ask(approval->context, choice, object->fingerprint);
    return err == QN_OK ? load_library(object, catalogue->kind) : err;
}

/* ---- by name ---- */

static const qn_policy_head_t *find_builtin(const qn_policy_catalogue_t *catalogue, const char *name)
{
    for (size_t i = 0; i < catalogue->builtin_count; i++)
        if (strcmp(catalogue->builtin[i]->name, name) == 0) return catalogue->builtin[i];
    return NULL;
}

static bool is_file(const char *choice)
{
    size_t length = strlen(choice);
    return strchr(choice, '/') != NULL || (length > 3 && strcmp(choice + length - 3, ".so") == 0);
}

static qn_err_t refuse_name(const qn_policy_catalogue_t *catalogue, const char *choice)
{
    char names[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < catalogue->builtin_count && used < sizeof names; i++)
        used +=
            (size_t)snprintf(names + used, sizeof names - used, "%s%s", i > 0 ? ", " : "", catalogue->builtin[i]->name);
    return qn_fail(
        QN_ERR_CONFIG,
        "%s: there is no %s policy '%.64s'; built in are %s; a shared object is named by its file, NAME.so, in "
        "the directories of policies.dirs",
        qn_policy_kind_key(catalogue->kind), qn_policy_kind_name(catalogue->kind), choice, names);
}

qn_err_t qn_policy_object_open(const qn_policy_catalogue_t *catalogue, const char *choice,
                               const qn_policy_approval_t *approval, qn_policy_object_t **ret_object)
{
    const qn_policy_head_t *builtin = find_builtin(catalogue, choice);
    if (builtin != NULL) return qn_policy_object_wrap(catalogue->kind, builtin, ret_object);
    if (!is_file(choice) || strlen(choice) >= QN_POLICY_NAME_MAX) return refuse_name(catalogue, choice);
    qn_policy_object_t loaded = {.copy = -1}, *object = NULL;
    snprintf(loaded.choice, sizeof loaded.choice, "%s", choice);
    qn_err_t err = load(catalogue, choice, approval, &loaded);
    if (err == QN_OK) err = qn_policy_object_wrap(catalogue->kind, loaded.head, &object);
    if (err < 0) {
        if (loaded.library != NULL) dlclose(loaded.library);
        if (loaded.copy >= 0) close(loaded.copy);
        return err;
    }
    loaded.memory = object->memory;
    *object = loaded;
    *ret_object = object;
    return QN_OK;
}

void qn_policy_object_close(qn_policy_object_t **object)
{
    qn_policy_object_t *self = *object;
    if (self == NULL) return;
    if (self->library != NULL) dlclose(self->library);
    if (self->copy >= 0) close(self->copy);
    free(self->memory.state);
    free(self->memory.metrics);
    free(self);
    *object = NULL;
}

const qn_policy_head_t *qn_policy_object_head(const qn_policy_object_t *object) { return object->head; }

const char *qn_policy_object_choice(const qn_policy_object_t *object) { return object->choice; }

uint64_t qn_policy_object_fingerprint(const qn_policy_object_t *object) { return object->fingerprint; }

const qn_policy_memory_t *qn_policy_object_memory(const qn_policy_object_t *object) { return &object->memory; }

/* ---- the directories ---- */

static bool is_in_earlier(const char *dirs, const char *until, const char *name)
{
    char path[QN_PATH_MAX];
    for (const char *at = dirs; at < until;) {
        size_t length = strcspn(at, ":");
        if (length > 0 && snprintf(path, sizeof path, "%.*s/%s", (int)length, at, name) < (int)sizeof path &&
            access(path, F_OK) == 0)
            return true;
        at += length + (at[length] == ':');
    }
    return false;
}

void qn_policy_object_list(const char *dirs, void (*take)(void *context, const char *name), void *context)
{
    char path[QN_PATH_MAX];
    for (const char *at = dirs; *at != '\0';) {
        size_t length = strcspn(at, ":");
        bool fits = length > 0 && snprintf(path, sizeof path, "%.*s", (int)length, at) < (int)sizeof path;
        DIR *dir = fits ? opendir(path) : NULL;
        for (const struct dirent *one; dir != NULL && (one = readdir(dir)) != NULL;)
            if (is_file(one->d_name) && strlen(one->d_name) < QN_POLICY_NAME_MAX &&
                !is_in_earlier(dirs, at, one->d_name))
                take(context, one->d_name);
        if (dir != NULL) closedir(dir);
        at += length + (at[length] == ':');
    }
}
