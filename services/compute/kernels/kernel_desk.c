/* What is this?      The layers of the choice of kernels, loaded objects, and what is under way about them.
 * State owned:       kernel_desk_t; through it <run_dir>/live/compute.kernels.
 * Must never:        map an object that was not checked by this build; touch the stream: the worker owns it.
 * Read next:         live_kernels.h (the file), methods_kernels.c (who asks), object_child.h, bench_job.h. */
#include "services/compute/kernels/kernel_desk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/build.h"
#include "common/clock.h"
#include "common/daemon/crash.h"
#include "common/paths.h"
#include "common/watch/log.h"
#include "kernels/loaded.h"
#include "services/compute/handlers.h"

static const char *configured(const compute_service_t *service) { return service->config->compute.kernels; }

/* ---- objects ---- */

static void note_object(const object_file_t *file, size_t first, size_t count, live_object_t *ret_object)
{
    size_t all;
    const qn_kernel_t *rows = qn_kernels_loaded(&all);
    *ret_object = (live_object_t){.fingerprint = file->fingerprint};
    snprintf(ret_object->path, sizeof ret_object->path, "%s", file->path);
    for (size_t i = first; i < first + count && ret_object->kernel_count < QN_PLUGIN_KERNELS_MAX; i++)
        snprintf(ret_object->kernels[ret_object->kernel_count++], QN_NAME_MAX, "%s=%s", qn_op_name(rows[i].op),
                 rows[i].name);
}

qn_err_t kernel_desk_load(compute_service_t *service, const object_file_t *file, size_t *ret_first, size_t *ret_count)
{
    kernel_desk_t *desk = service->desk;
    live_object_t object;
    const char *slash = strrchr(file->path, '/');
    /* On the disk before its code runs: a crash in it must find its name there. */
    object = (live_object_t){.fingerprint = file->fingerprint};
    snprintf(object.path, sizeof object.path, "%s", file->path);
    desk->live.epoch = qn_daemon_epoch(service->daemon);
    qn_err_t err = live_kernels_add_object(&desk->live, &object);
    if (!err) err = live_kernels_write(qn_daemon_run_dir(service->daemon), &desk->live);
    if (!err) err = qn_kernels_load(file->fd, slash ? slash + 1 : file->path, file->fingerprint, ret_first, ret_count);
    if (err) return err;
    note_object(file, *ret_first, *ret_count, &object);
    err = live_kernels_add_object(&desk->live, &object);
    if (!err) err = live_kernels_write(qn_daemon_run_dir(service->daemon), &desk->live);
    if (!err) compute_tell_kernels(service); /* its code is here now */
    return err;
}

/* An object of the configuration or of a former life. `known`: it was checked by this build already. */
static qn_err_t load_at_start(compute_service_t *service, const char *dirs, const char *name,
                              const live_kernels_t *former)
{
    object_file_t file = {.fd = -1};
    object_child_t child;
    size_t first, count;
    qn_err_t err = object_file_open(dirs, name, &file);
    if (err) return err;
    if (live_kernels_withdrawn(&service->desk->live, file.fingerprint)) {
        qn_log_error("%s is withdrawn: compute crashed with it; mend it, then load it again", file.path);
        object_file_close(&file);
        return QN_OK;
    }
    bool checked = false;
    for (unsigned i = 0; i < former->object_count; i++)
        checked |= former->objects[i].fingerprint == file.fingerprint && strcmp(former->build, qn_build_id()) == 0;
    if (!checked) err = object_child_run(&file, NULL, OBJECT_CHILD_SECONDS, &child);
    if (!err) err = kernel_desk_load(service, &file, &first, &count);
    if (!err) qn_log_info("loaded %zu kernels of %s", count, file.path);
    object_file_close(&file);
    return err;
}

static qn_err_t load_configured(compute_service_t *service, const char *dirs, const live_kernels_t *former)
{
    const char *list = service->config->compute.kernel_objects;
    char name[QN_PATH_MAX];
    for (const char *at = list; *at;) {
        size_t bytes = strcspn(at, ",");
        if (bytes >= sizeof name) return qn_fail(QN_ERR_CONFIG, "compute.kernel_objects: a name is too long");
        memcpy(name, at, bytes);
        name[bytes] = '\0';
        qn_err_t err = bytes ? load_at_start(service, dirs, name, former) : QN_OK;
        if (err) return qn_fail(QN_ERR_CONFIG, "compute.kernel_objects: %s: %.400s", name, qn_err_text());
        at += bytes + (at[bytes] == ',');
    }
    return QN_OK;
}

/* What a former life had loaded by itself. One that is not there or wrong now is no reason not to serve. */
static void load_former(compute_service_t *service, const char *dirs, const live_kernels_t *former)
{
    for (unsigned i = 0; i < former->object_count; i++) {
        bool loaded = false;
        for (unsigned j = 0; j < service->desk->live.object_count; j++)
            loaded |= strcmp(service->desk->live.objects[j].path, former->objects[i].path) == 0;
        if (!loaded && load_at_start(service, dirs, former->objects[i].path, former))
            qn_log_error("%s was loaded before compute restarted and is not now: %s", former->objects[i].path,
                         qn_err_text());
    }
}

/* ---- start ---- */

static void withdraw_crashed(compute_service_t *service)
{
    kernel_desk_t *desk = service->desk;
    qn_crash_t crash;
    char how[64];
    if (desk->live.object_count == 0 ||
        !qn_crash_read(qn_daemon_run_dir(service->daemon), "compute", desk->live.epoch, &crash))
        return;
    for (unsigned i = 0; i < desk->live.object_count; i++)
        qn_log_error("compute crashed (%s) with %s: its kernels are withdrawn until the file changes",
                     qn_crash_describe(&crash, how, sizeof how), desk->live.objects[i].path);
    const char *slash = strrchr(desk->live.objects[0].path, '/');
    snprintf(desk->withdrawn_text, sizeof desk->withdrawn_text, "%.100s withdrawn: compute crashed with it",
             slash ? slash + 1 : desk->live.objects[0].path);
    live_kernels_withdraw(&desk->live);
}

static void take_configuration(compute_service_t *service)
{
    live_kernels_t *live = &service->desk->live;
    char list[LIVE_CHOICE_MAX];
    live_kernels_list(live, list);
    if (list[0] && strcmp(live->configured, configured(service)) != 0) {
        qn_log_notice("compute.kernels has changed: what was set live (%s) is taken back", list);
        memset(live->chosen, 0, sizeof live->chosen);
    }
    snprintf(live->configured, sizeof live->configured, "%s", configured(service));
}

static qn_err_t load_objects(compute_service_t *service)
{
    kernel_desk_t *desk = service->desk;
    char dirs[QN_PATH_MAX];
    bool any = service->config->compute.kernel_objects[0] || desk->live.object_count > 0;
    if (!any) return QN_OK;
    if (!service->backend->synchronous && service->config->compute.kernel_objects[0])
        return qn_fail(QN_ERR_CONFIG, "compute.kernel_objects: objects are for compute.backend cpu; leave them out");
    qn_err_t err = qn_paths_kernels(service->config, dirs, sizeof dirs);
    live_kernels_t *former = malloc(sizeof *former);
    if (!err && !former) err = qn_fail(QN_ERR_NO_MEMORY, "no memory for the kernels of a former life");
    if (!err) {
        *former = desk->live;
        desk->live.object_count = 0;
        err = load_configured(service, dirs, former);
        if (!err && service->backend->synchronous) load_former(service, dirs, former);
    }
    free(former);
    return err;
}

qn_err_t kernel_desk_open(compute_service_t *service, kernel_desk_t **ret_desk)
{
    kernel_desk_t *desk = calloc(1, sizeof *desk);
    if (!desk) return qn_fail(QN_ERR_NO_MEMORY, "no memory for compute's kernels");
    *ret_desk = service->desk = desk;
    desk->file.fd = -1;
    desk->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    qn_err_t err = desk->wake_fd < 0 ? qn_fail(QN_ERR_IO, "eventfd: %s", strerror(errno))
                                     : qn_daemon_watch(service->daemon, desk->wake_fd);
    if (!err && live_kernels_read(qn_daemon_run_dir(service->daemon), &desk->live))
        qn_log_error("what was set live of kernels is not used: %s", qn_err_text());
    if (err) return err;
    withdraw_crashed(service);
    take_configuration(service);
    err = load_objects(service);
    desk->live.epoch = qn_daemon_epoch(service->daemon);
    bool worth = desk->live.object_count + desk->live.withdrawn_count > 0;
    if (!err && worth) err = live_kernels_write(qn_daemon_run_dir(service->daemon), &desk->live);
    return err;
}

void kernel_desk_close(compute_service_t *service, kernel_desk_t **desk)
{
    kernel_desk_t *self = *desk;
    if (!self) return;
    kernel_desk_leave_model(service);
    if (self->loading) qn_daemon_unwatch(service->daemon, self->child.out);
    object_child_kill(&self->child);
    object_file_close(&self->file);
    if (self->wake_fd >= 0) {
        qn_daemon_unwatch(service->daemon, self->wake_fd);
        close(self->wake_fd);
    }
    free(self);
    *desk = NULL;
}

/* ---- the choice ---- */

/* Items of the table that this backend does not have, or that do not fit, are passed over. */
static void keep_what_fits(compute_service_t *service, const qn_kernel_case_t *shape, char tuned[LIVE_CHOICE_MAX])
{
    char kept[LIVE_CHOICE_MAX] = "", item[2 * QN_NAME_MAX];
    qn_kernel_set_t set;
    for (const char *at = tuned; *at;) {
        size_t bytes = strcspn(at, ","), used = strlen(kept);
        snprintf(item, sizeof item, "%.*s", (int)bytes, at);
        qn_err_t err = service->backend->choose_kernels(item, service->config->compute.activations, shape,
                                                        (int)service->config->compute.device, &set);
        if (err)
            qn_log_notice("the table of kernels says %s, which is passed over: %s", item, qn_err_text());
        else
            snprintf(kept + used, sizeof kept - used, "%s%s", used ? "," : "", item);
        at += bytes + (at[bytes] == ',');
    }
    memcpy(tuned, kept, sizeof kept);
}

void kernel_desk_meet_model(compute_service_t *service, const qn_kernel_case_t *shape, const char *device,
                            const char *weights)
{
    kernel_desk_t *desk = service->desk;
    size_t count;
    uint32_t isa;
    const char *path = service->config->compute.autotune_table;
    service->backend->kernels((int)service->config->compute.device, &count, &isa);
    tune_table_key(service->backend->name, device, isa, shape, weights, service->config->compute.deterministic,
                   desk->key);
    desk->tuned[0] = '\0';
    if (!path[0]) return;
    if (tune_table_read(path, desk->key, desk->tuned)) qn_log_error("%s", qn_err_text());
    keep_what_fits(service, shape, desk->tuned);
    if (desk->tuned[0]) qn_log_info("kernels of %s: %s", path, desk->tuned);
}

qn_err_t kernel_desk_choice(compute_service_t *service, const qn_kernel_case_t *shape, char ret_choice[LIVE_CHOICE_MAX],
                            qn_kernel_set_t *ret_set)
{
    kernel_desk_t *desk = service->desk;
    static const live_kernels_t NOTHING;
    const char *activations = service->config->compute.activations;
    int device = (int)service->config->compute.device;
    qn_err_t err = live_kernels_compose(&desk->live, configured(service), desk->tuned, ret_choice);
    if (!err) err = service->backend->choose_kernels(ret_choice, activations, shape, device, ret_set);
    for (unsigned op = 0; !err && service->model && op < QN_OP_COUNT; op++)
        if (ret_set->chosen[op]) err = kernel_desk_check_formats(service, ret_set->chosen[op]);
    char list[LIVE_CHOICE_MAX];
    live_kernels_list(&desk->live, list);
    if (!err || !list[0]) return err;
    qn_log_error("what was set live of kernels (%s) is left out: %s", list, qn_err_text());
    live_kernels_t *rest = malloc(sizeof *rest);
    if (!rest) return err;
    *rest = desk->live;
    memcpy(rest->chosen, NOTHING.chosen, sizeof rest->chosen);
    err = live_kernels_compose(rest, configured(service), desk->tuned, ret_choice);
    free(rest);
    return err ? err : service->backend->choose_kernels(ret_choice, activations, shape, device, ret_set);
}

/* ---- formats ---- */

static qn_err_t check_weight(const qn_kernel_t *kernel, const qn_weight_t *weight, bool product)
{
    bool good = qn_kernel_formats(kernel) & 1u << weight->scalar;
    if (!weight->data || (good && (!product || weight->layout == QN_LAYOUT_PANELS))) return QN_OK;
    return qn_fail(QN_ERR_CONFIG, "%s=%s does not take weights of %s in %s, which this model has",
                   qn_op_name(kernel->op), kernel->name, qn_scalar_name(weight->scalar),
                   weight->layout == QN_LAYOUT_PANELS ? "panels" : "rows");
}

static qn_err_t check_layer(const qn_kernel_t *kernel, const model_layer_t *layer)
{
    static const qn_tensor_role_t NORMS[] = {
        QN_TENSOR_ATTENTION_NORM,     QN_TENSOR_Q_NORM,     QN_TENSOR_K_NORM,
        QN_TENSOR_MLP_NORM,           QN_TENSOR_FINAL_NORM, QN_TENSOR_POST_MLP_NORM,
        QN_TENSOR_POST_ATTENTION_NORM};
    static const qn_tensor_role_t PRODUCTS[] = {QN_TENSOR_Q,      QN_TENSOR_K,    QN_TENSOR_V,
                                                QN_TENSOR_OUTPUT, QN_TENSOR_GATE, QN_TENSOR_UP,
                                                QN_TENSOR_DOWN,   QN_TENSOR_HEAD, QN_TENSOR_ROUTER};
    bool product = kernel->op == QN_OP_MATMUL;
    const qn_tensor_role_t *roles = product ? PRODUCTS : NORMS;
    size_t count = product ? sizeof PRODUCTS / sizeof *PRODUCTS : sizeof NORMS / sizeof *NORMS;
    qn_err_t err = QN_OK;
    for (size_t i = 0; !err && i < count; i++)
        err = check_weight(kernel, &layer->weights[roles[i]], product);
    return err;
}

qn_err_t kernel_desk_check_formats(const compute_service_t *service, const qn_kernel_t *kernel)
{
    const model_t *model = service->model;
    if (!qn_kernel_object(kernel)) return QN_OK;
    switch (kernel->op) {
    case QN_OP_ATTENTION_PREFILL:
    case QN_OP_ATTENTION_DECODE:
        if (qn_kernel_formats(kernel) & 1u << service->kv_layout.scalar) return QN_OK;
        return qn_fail(QN_ERR_CONFIG, "%s=%s does not take keys and values of %s, which memory keeps",
                       qn_op_name(kernel->op), kernel->name, qn_scalar_name(service->kv_layout.scalar));
    case QN_OP_RMSNORM:
    case QN_OP_LAYERNORM:
    case QN_OP_MATMUL: break;
    default: return QN_OK;
    }
    qn_err_t err = check_layer(kernel, &model->outer);
    for (uint32_t layer = 0; !err && layer < model->config.layers; layer++)
        err = check_layer(kernel, &model->layers[layer]);
    return err;
}

/* ---- to the worker ---- */

typedef struct {
    qn_kernel_set_t set;
    kernel_desk_t *desk;
} errand_t;

static void apply_set(void *context, struct executor *executor)
{
    errand_t *errand = context;
    uint64_t one = 1;
    if (executor) executor_set_kernels(executor, &errand->set);
    atomic_store(&errand->desk->change.applied, true); /* without an executor: the next one begins with it */
    ssize_t written = write(errand->desk->wake_fd, &one, sizeof one);
    QN_ASSERT(written == sizeof one || errno == EAGAIN);
    free(errand);
}

qn_err_t kernel_desk_apply(compute_service_t *service, const qn_kernel_set_t *set, const qn_call_t *call)
{
    desk_change_t *change = &service->desk->change;
    errand_t *errand = malloc(sizeof *errand);
    QN_ASSERT(!change->under_way && service->runtime);
    if (!errand) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a choice of kernels");
    *errand = (errand_t){.set = *set, .desk = service->desk};
    atomic_store(&change->applied, false);
    if (!step_queue_send(service->runtime->queue, (step_errand_t){apply_set, errand})) {
        free(errand);
        return qn_fail(QN_ERR_LIMIT, "the worker has too much to do; try again");
    }
    change->under_way = true;
    change->has_call = call != NULL;
    if (call) change->call = *call;
    service->runtime->kernels = *set;
    compute_tell_kernels(service); /* from here on, plans for the old kernels are refused */
    return QN_OK;
}

void kernel_desk_leave_model(compute_service_t *service)
{
    kernel_desk_t *desk = service->desk;
    if (!desk || !desk->job) return;
    int fd = bench_job_fd(desk->job);
    qn_daemon_unwatch(service->daemon, fd);
    qn_call_fail(&desk->job_call, 503, NULL, "compute lost its model meanwhile; try again");
    bench_job_stop(&desk->job);
}

/* ---- time ---- */

void kernel_desk_tick(compute_service_t *service, uint64_t now_ns, uint64_t *ret_wake_ns)
{
    kernel_desk_t *desk = service->desk;
    uint64_t count;
    ssize_t got = read(desk->wake_fd, &count, sizeof count);
    (void)got; /* nothing was there */
    if (desk->change.under_way && atomic_load(&desk->change.applied)) kernel_desk_answer_change(service);
    if (desk->loading && object_child_read(&desk->child, now_ns)) kernel_desk_answer_load(service);
    if (desk->loading && desk->child.deadline_ns < *ret_wake_ns) *ret_wake_ns = desk->child.deadline_ns;
    if (desk->job && bench_job_is_done(desk->job)) kernel_desk_answer_job(service);
}
