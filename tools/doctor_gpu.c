/* What is this?      The part of `quintet doctor` that looks at a GPU.
 * State owned:       none; a child process while it looks.
 * Must never:        fork after the driver was used: a context does not live on in a child.
 * Read next:         common/region/region.h, services/memory/weights/loader.c (which sizes in earnest). */
#include "tools/doctor_gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/region/region.h"
#include "services/compute/backend/backend.h"
#include "services/memory/kv_size.h"
#include "services/memory/weights/model_directory.h"
#include "services/memory/weights/weights.h"
#include "tools/model/model_tool.h"
#ifdef QN_CUDA
#include "kernels/cuda/cuda.h"
#endif

#define TRIAL_BYTES (UINT64_C(2) << 20)
#define TRIAL_NAME "doctor"

/* ---- the device ---- */

static bool check_device(const qn_config_values_t *values, findings_t *findings)
{
    const backend_t *backend;
    qn_err_t err = backend_find(values, &backend);
    if (err) {
        findings_add(findings, FINDING_FAIL, err, "gpu", "do that, or set compute.backend=cpu", "%s", qn_err_text());
        return false;
    }
    char name[64] = "";
#ifdef QN_CUDA
    qn_cuda_device_name((int)values->compute.device, name, sizeof name);
#endif
    findings_add(findings, FINDING_OK, QN_OK, "gpu", NULL,
                 "%s as device %llu; this build has code for it, the driver is new enough", name,
                 (unsigned long long)values->compute.device);
    return true;
}

/* ---- memory ---- */

/* Bytes of the weights as they are loaded, without a look at the files. */
static qn_err_t weights_needed(const qn_config_values_t *values, const qn_model_config_t *config, uint64_t *ret_bytes)
{
    weights_format_t format;
    weights_t *weights = NULL;
    qn_err_t err = weights_format_choose(values, &format);
    if (!err) err = weights_plan_dummy(config, values->model.seed, &format, &weights);
    if (!err) *ret_bytes = weights_bytes(weights);
    weights_destroy(&weights);
    return err;
}

static void check_memory(const qn_config_values_t *values, bool running, findings_t *findings)
{
    model_directory_t *directory = NULL;
    model_kv_t kv = {0};
    uint64_t weights = 0, free_bytes = 0;
    char has[32], needs[32], cache[32], compute[32];
    qn_err_t err = qn_region_free_bytes(QN_SHARE_CUDA_IPC, (int32_t)values->compute.device, &free_bytes);
    if (!err) err = model_directory_read(values, &directory);
    if (!err) err = weights_needed(values, &directory->config, &weights);
    model_tool_bytes_text(free_bytes, has, sizeof has);
    if (!err && running)
        findings_add(findings, FINDING_OK, QN_OK, "gpu memory", NULL, "%s free while quintet up is running", has);
    if (!err && !running) err = model_tool_kv(values, directory, weights, &kv);
    if (err) {
        findings_add(findings, FINDING_FAIL, err, "gpu memory",
                     "choose a smaller model, lower memory.kv_bytes, or "
                     "end what else uses the GPU (nvidia-smi)",
                     "%s", qn_err_text());
    } else if (!running) {
        uint64_t computing = kv_size_compute_bytes(&directory->config, values->scheduler.max_step_tokens,
                                                   values->scheduler.max_sequences);
        findings_add(findings, FINDING_OK, QN_OK, "gpu memory", NULL,
                     "weights %s, KV cache %s, computing %s of %s free",
                     model_tool_bytes_text(weights, needs, sizeof needs),
                     model_tool_bytes_text(kv.size.bytes, cache, sizeof cache),
                     model_tool_bytes_text(computing, compute, sizeof compute), has);
    }
    model_directory_free(&directory);
}

/* ---- sharing ---- */

/* What the child is told, and what it answers; both ends are this build. */
typedef struct {
    uint64_t id, bytes;
    uint32_t epoch, layout, handle_count;
    int32_t device;
    uint8_t handle[256];
} trial_t;

typedef struct {
    qn_err_t err;
    char text[QN_ERR_TEXT_MAX];
} answer_t;

static qn_err_t make_trial(qn_share_t share, int32_t device, qn_mapping_t **ret_mapping)
{
    return qn_region_create(&(qn_region_spec_t){.id = 1,
                                                .kind = QN_REGION_KIND_STEP_IO,
                                                .share = share,
                                                .device = device,
                                                .bytes = TRIAL_BYTES,
                                                .epoch = 1,
                                                .name = TRIAL_NAME},
                            ret_mapping);
}

/* In the child: maps what the parent made. */
static void import_trial(int fd)
{
    trial_t trial;
    answer_t answer = {QN_OK, ""};
    if (read(fd, &trial, sizeof trial) != (ssize_t)sizeof trial) _exit(0); /* there is nothing to import */
    qn_region_t wire = {.id = trial.id,
                        .kind = QN_REGION_KIND_STEP_IO,
                        .share = QN_SHARE_CUDA_IPC,
                        .device = trial.device,
                        .bytes = trial.bytes,
                        .epoch = trial.epoch,
                        .layout = trial.layout,
                        .handle = trial.handle,
                        .handle_count = trial.handle_count,
                        .name = {TRIAL_NAME, sizeof TRIAL_NAME - 1}};
    qn_mapping_t *mapping = NULL;
    answer.err = qn_region_import(&wire, true, &mapping);
    if (answer.err) snprintf(answer.text, sizeof answer.text, "%s", qn_err_text());
    qn_region_close(&mapping);
    ssize_t done = write(fd, &answer, sizeof answer);
    _exit(done == (ssize_t)sizeof answer ? 0 : 1);
}

static qn_err_t try_import(int fd, int32_t device)
{
    qn_mapping_t *mapping = NULL;
    qn_err_t err = make_trial(QN_SHARE_CUDA_IPC, device, &mapping);
    if (err) return err;
    qn_region_t wire;
    qn_region_describe(mapping, &wire);
    trial_t trial = {.id = wire.id,
                     .bytes = wire.bytes,
                     .epoch = wire.epoch,
                     .layout = wire.layout,
                     .handle_count = wire.handle_count,
                     .device = wire.device};
    memcpy(trial.handle, wire.handle, wire.handle_count);
    answer_t answer;
    bool answered = write(fd, &trial, sizeof trial) == (ssize_t)sizeof trial &&
                    read(fd, &answer, sizeof answer) == (ssize_t)sizeof answer;
    qn_region_close(&mapping);
    if (!answered) return qn_fail(QN_ERR_DEVICE, "the process that mapped the memory ended without an answer");
    return answer.err ? qn_fail(answer.err, "%s", answer.text) : QN_OK;
}

static void check_ipc(int fd, int32_t device, findings_t *findings)
{
    qn_err_t err = try_import(fd, device);
    if (err)
        findings_add(findings, FINDING_FAIL, err, "cuda_ipc",
                     "in a container: let its processes see each other's ids "
                     "and share IPC; or try memory.share=cuda_vmm",
                     "%s", qn_err_text());
    else
        findings_add(findings, FINDING_OK, QN_OK, "cuda_ipc", NULL, "another process can map memory of the device");
}

/* Needed only where memory.share asks for it. */
static void check_vmm(const qn_config_values_t *values, findings_t *findings)
{
    qn_mapping_t *mapping = NULL;
    bool wanted = strcmp(values->memory.share, "cuda_vmm") == 0;
    qn_err_t err = make_trial(QN_SHARE_CUDA_VMM, (int32_t)values->compute.device, &mapping);
    if (err)
        findings_add(findings, wanted ? FINDING_FAIL : FINDING_WARN, err, "cuda_vmm", "leave memory.share at auto",
                     "%s", qn_err_text());
    else
        findings_add(findings, FINDING_OK, QN_OK, "cuda_vmm", NULL, "memory of the device has descriptors");
    qn_region_close(&mapping);
}

void doctor_gpu(const qn_config_values_t *values, bool running, findings_t *findings)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
        findings_add(findings, FINDING_FAIL, QN_ERR_IO, "gpu", NULL, "no socket pair for a trial: %m");
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        import_trial(ends[1]);
    }
    close(ends[1]);
    if (check_device(values, findings)) {
        check_memory(values, running, findings);
        check_ipc(ends[0], (int32_t)values->compute.device, findings);
        check_vmm(values, findings);
    }
    close(ends[0]);
    if (child > 0) waitpid(child, NULL, 0);
}
