/* What is this?      Compute's methods that change kernels: another implementation, a shared object.
 * State owned:       none; the service's.
 * Must never:        let a choice through that the registry refuses.
 * Read next:         kernels/kernel_desk.h, schemas/compute/. */
#include <stdio.h>
#include <string.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/paths.h"
#include "common/watch/log.h"
#include "kernels/loaded.h"
#include "services/compute/kernels/kernel_names.h"
#include "services/compute/methods.h"

/* ---- another implementation ---- */

/* Both give a token the same bits where their implementations have one name, so on a backend whose bits do not depend on how a
 * prompt was cut they are chosen together. */
static qn_op_t twin_of(const compute_service_t *service, qn_op_t op)
{
    if (!service->backend->chunks_are_decodes) return QN_OP_COUNT;
    return op == QN_OP_ATTENTION_PREFILL  ? QN_OP_ATTENTION_DECODE
           : op == QN_OP_ATTENTION_DECODE ? QN_OP_ATTENTION_PREFILL
                                          : QN_OP_COUNT;
}

static bool has_implementation(const compute_service_t *service, qn_op_t op, const char *name)
{
    size_t count;
    uint32_t isa;
    const qn_kernel_t *rows = service->backend->kernels((int)service->config->compute.device, &count, &isa);
    for (size_t i = 0; i < count; i++)
        if (rows[i].op == op && strcmp(rows[i].name, name) == 0) return true;
    return service->backend->synchronous && qn_kernels_find_loaded(op, name);
}

static qn_call_outcome_t unknown_implementation(const compute_service_t *service, const qn_call_t *call, qn_op_t op,
                                                const char *name)
{
    size_t count, loaded_count;
    uint32_t isa;
    char names[256] = "auto";
    const qn_kernel_t *rows = service->backend->kernels((int)service->config->compute.device, &count, &isa);
    const qn_kernel_t *loaded = qn_kernels_loaded(&loaded_count);
    if (!service->backend->synchronous) loaded_count = 0;
    for (size_t i = 0; i < count + loaded_count; i++) {
        const qn_kernel_t *row = i < count ? &rows[i] : &loaded[i - count];
        size_t used = strlen(names);
        if (row->op == op) snprintf(names + used, sizeof names - used, ", %s", row->name);
    }
    return qn_call_fail(call, 400, "implementation", "implementation: there is no \"%.40s\" of %s; there are %s", name,
                        qn_op_name(op), names);
}

static void set_live(live_kernels_t *live, qn_op_t op, const char *name)
{
    snprintf(live->chosen[op], sizeof live->chosen[op], "%s", strcmp(name, "auto") == 0 ? "" : name);
}

/* Chooses with what `desk->live` says now, notes it on the disk and sends it to the worker. */
static qn_call_outcome_t choose(compute_service_t *service, qn_call_t *call, qn_op_t op)
{
    kernel_desk_t *desk = service->desk;
    char choice[LIVE_CHOICE_MAX];
    qn_kernel_set_t set;
    qn_kernel_case_t shape = service->runtime->shape;
    uint64_t before = service->kernel_set;
    const char *activations = service->config->compute.activations;
    qn_err_t err = live_kernels_compose(&desk->live, service->config->compute.kernels, desk->tuned, choice);
    if (!err)
        err = service->backend->choose_kernels(choice, activations, &shape, (int)service->config->compute.device, &set);
    for (unsigned i = 0; !err && i < QN_OP_COUNT; i++)
        if (set.chosen[i]) err = kernel_desk_check_formats(service, set.chosen[i]);
    if (err) return qn_call_fail(call, 400, "implementation", "implementation: %.400s", qn_err_text());
    err = live_kernels_write(qn_daemon_run_dir(service->daemon), &desk->live);
    if (!err) err = kernel_desk_apply(service, &set, call);
    if (err) return qn_call_fail(call, 503, NULL, "%.400s; try again", qn_err_text());
    desk->change.op = op;
    desk->change.reruns = service->kernel_set != before;
    return QN_CALL_LATER;
}

qn_call_outcome_t compute_method_choose_kernel(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    compute_service_t *service = state;
    kernel_desk_t *desk = service->desk;
    const qn_compute_choose_kernel_t *asked = message;
    const char *part, *nearest, *name = asked->implementation.data;
    if (!service->runtime) return qn_call_fail(call, 503, NULL, "compute has no model yet; try again");
    if (desk->change.under_way) return qn_call_fail(call, 503, NULL, "another choice is on its way; try again");
    qn_op_t op = kernel_named(asked->operation.data, &part, &nearest);
    if (op == QN_OP_COUNT || part)
        return qn_call_fail(call, 400, "operation", "operation: there is no \"%.40s\"; did you mean \"%s\"?",
                            asked->operation.data, part ? qn_op_name(op) : nearest);
    bool automatic = strcmp(name, "auto") == 0;
    if (!automatic && !has_implementation(service, op, name)) return unknown_implementation(service, call, op, name);
    qn_op_t twin = twin_of(service, op);
    desk->change.twin = twin != QN_OP_COUNT && (automatic || has_implementation(service, twin, name));
    const qn_kernel_t *now = service->runtime->kernels.chosen[op];
    snprintf(desk->change.previous, sizeof desk->change.previous, "%s", now ? now->name : "");
    char kept[2][QN_PLUGIN_NAME_MAX];
    memcpy(kept[0], desk->live.chosen[op], sizeof kept[0]);
    if (desk->change.twin) memcpy(kept[1], desk->live.chosen[twin], sizeof kept[1]);
    set_live(&desk->live, op, name);
    if (desk->change.twin) set_live(&desk->live, twin, name);
    qn_call_outcome_t outcome = choose(service, call, op);
    if (outcome == QN_CALL_LATER) return outcome;
    memcpy(desk->live.chosen[op], kept[0], sizeof kept[0]);
    if (desk->change.twin) memcpy(desk->live.chosen[twin], kept[1], sizeof kept[1]);
    return outcome;
}

void kernel_desk_answer_change(compute_service_t *service)
{
    kernel_desk_t *desk = service->desk;
    desk_change_t *change = &desk->change;
    char list[LIVE_CHOICE_MAX];
    change->under_way = false;
    compute_announce(service);
    if (!change->has_call) return;
    const qn_kernel_t *now = service->runtime ? service->runtime->kernels.chosen[change->op] : NULL;
    live_kernels_list(&desk->live, list);
    qn_text_t also = qn_text(change->twin ? qn_op_name(twin_of(service, change->op)) : "");
    qn_compute_choose_kernel_reply_t reply = {.operation = qn_text(qn_op_name(change->op)),
                                              .implementation = qn_text(now ? now->name : NULL),
                                              .previous = qn_text(change->previous[0] ? change->previous : NULL),
                                              .also = &also,
                                              .also_count = change->twin,
                                              .reruns = change->reruns,
                                              .live = qn_text(list)};
    qn_log_notice("%s is %s now", qn_op_name(change->op), now ? now->name : "its parts");
    qn_call_finish(&change->call, &reply);
}

/* ---- a shared object ---- */

qn_call_outcome_t compute_method_load_kernel(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    compute_service_t *service = state;
    kernel_desk_t *desk = service->desk;
    const qn_compute_load_kernel_t *asked = message;
    char dirs[QN_PATH_MAX];
    if (!service->backend->synchronous)
        return qn_call_fail(call, 501, "path", "path: shared objects are for compute.backend cpu, and this is %s",
                            service->backend->name);
    if (!service->runtime) return qn_call_fail(call, 503, NULL, "compute has no model yet; try again");
    if (desk->loading) return qn_call_fail(call, 503, NULL, "another object is being checked; try again");
    qn_err_t err = qn_paths_kernels(service->config, dirs, sizeof dirs);
    if (!err) err = object_file_open(dirs, asked->path.data, &desk->file);
    if (err) return qn_call_fail(call, err == QN_ERR_NOT_FOUND ? 404 : 400, "path", "path: %.400s", qn_err_text());
    err = object_child_start(&desk->file, &service->runtime->shape, OBJECT_CHILD_SECONDS, qn_clock_now_ns(),
                             &desk->child);
    if (!err) err = qn_daemon_watch(service->daemon, desk->child.out);
    if (err) {
        object_child_kill(&desk->child);
        object_file_close(&desk->file);
        return qn_call_fail(call, 503, NULL, "the check cannot be started: %.300s", qn_err_text());
    }
    desk->loading = true;
    desk->load_call = *call;
    return QN_CALL_LATER;
}

static uint32_t show_formats(uint32_t formats, qn_text_t ret_names[4])
{
    uint32_t count = 0;
    for (unsigned scalar = QN_SCALAR_F32; scalar <= QN_SCALAR_INT4; scalar++)
        if (formats & 1u << scalar) ret_names[count++] = qn_text(qn_scalar_name((qn_scalar_t)scalar));
    return count;
}

/* The child's count and error of this kernel. */
static void show_check(const object_child_t *child, const qn_kernel_t *kernel, qn_loaded_kernel_t *row)
{
    char name[96];
    snprintf(name, sizeof name, "%s=%s", qn_op_name(kernel->op), kernel->name);
    for (unsigned i = 0; i < child->right_count; i++)
        if (strcmp(child->right[i].kernel, name) == 0) {
            row->cases = child->right[i].cases;
            row->error = (float)child->right[i].worst_error;
        }
}

static void answer_loaded(compute_service_t *service, size_t first, size_t count)
{
    kernel_desk_t *desk = service->desk;
    qn_loaded_kernel_t rows[QN_PLUGIN_KERNELS_MAX] = {0};
    qn_text_t formats[QN_PLUGIN_KERNELS_MAX][4];
    size_t all;
    const qn_kernel_t *loaded = qn_kernels_loaded(&all);
    for (size_t i = 0; i < count; i++) {
        const qn_kernel_t *kernel = &loaded[first + i];
        rows[i] = (qn_loaded_kernel_t){.operation = qn_text(qn_op_name(kernel->op)),
                                       .implementation = qn_text(kernel->name),
                                       .formats = formats[i],
                                       .formats_count = show_formats(qn_kernel_formats(kernel), formats[i])};
        show_check(&desk->child, kernel, &rows[i]);
    }
    qn_compute_load_kernel_reply_t reply = {.path = qn_text(desk->file.path),
                                            .kernels = rows,
                                            .kernels_count = (uint32_t)count};
    qn_log_notice("loaded %zu kernels of %s", count, desk->file.path);
    qn_call_finish(&desk->load_call, &reply);
}

/* A kernel that is loaded anew under a name that is chosen takes its place at once. */
static void choose_anew(compute_service_t *service)
{
    char choice[LIVE_CHOICE_MAX];
    qn_kernel_set_t set;
    if (!service->runtime || service->desk->change.under_way) return;
    qn_err_t err = kernel_desk_choice(service, &service->runtime->shape, choice, &set);
    bool same = !err && memcmp(&set, &service->runtime->kernels, sizeof set) == 0;
    if (!err && !same) err = kernel_desk_apply(service, &set, NULL);
    if (err) qn_log_error("the kernels stay as they were: %s", qn_err_text());
}

void kernel_desk_answer_load(compute_service_t *service)
{
    kernel_desk_t *desk = service->desk;
    size_t first, count;
    desk->loading = false;
    qn_daemon_unwatch(service->daemon, desk->child.out);
    qn_err_t err = object_child_end(&desk->child);
    if (err) {
        qn_log_warning("%s is refused: %s", desk->file.path, qn_err_text());
        qn_call_fail(&desk->load_call, 400, "path", "path: %.450s", qn_err_text());
    } else if ((err = kernel_desk_load(service, &desk->file, &first, &count)) != QN_OK) {
        qn_call_fail(&desk->load_call, err == QN_ERR_LIMIT ? 507 : 400, "path", "path: %.450s", qn_err_text());
    } else {
        answer_loaded(service, first, count);
        choose_anew(service);
    }
    object_file_close(&desk->file);
}
