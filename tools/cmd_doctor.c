/* What is this?      `quintet doctor`: can this machine and installation run what is configured?
 * State owned:       the findings.
 * Must never:        change anything, other than making the run directory that quintet up would make.
 * Read next:         common/config/config.h, common/paths.h, doctor_gpu.c. */
#include <czmq.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sysexits.h>
#include <unistd.h>

#include "common/daemon/links/endpoint.h"
#include "common/build.h"
#include "common/config/config.h"
#include "common/paths.h"
#include "tools/cli.h"
#include "tools/doctor_gpu.h"
#include "tools/findings.h"

#define GIB ((double)(1ull << 30))

typedef struct {
    const qn_config_values_t *values;
    char run_dir[QN_PATH_MAX]; /* "" when it could not be made */
    bool running;              /* a quintet up holds the run directory */
    findings_t findings;
} doctor_t;

/* A finding; what the text says follows the remedy (NULL: none). */
#define add(doctor, level, ...) findings_add(&(doctor)->findings, level, QN_OK, __VA_ARGS__)

/* The first line of a small file of /proc or /sys; "" when it cannot be read. */
static void read_line(const char *path, char *buffer, size_t capacity)
{
    buffer[0] = '\0';
    FILE *file = fopen(path, "re");
    if (!file) return;
    if (!fgets(buffer, (int)capacity, file)) buffer[0] = '\0';
    fclose(file);
    buffer[strcspn(buffer, "\n")] = '\0';
}

/* ---- machine ---- */

static void check_cpu(doctor_t *doctor)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    if (!avx2) {
        add(doctor, FINDING_WARN, "cpu", "use a machine with AVX2 (x86-64-v3) for speed",
            "no AVX2: only the plain reference kernels run here");
        return;
    }
    add(doctor, FINDING_OK, "cpu", NULL, "AVX2%s%s%s", avx512 ? ", AVX-512" : "",
        __builtin_cpu_supports("avx512vnni") ? ", VNNI" : "", __builtin_cpu_supports("avx512bf16") ? ", BF16" : "");
#else
    add(doctor, FINDING_WARN, "cpu", "use an x86-64 machine for speed", "not x86-64: only the plain kernels run here");
#endif
}

/* Cores that the control group lets us use; 0 when it sets no bound. */
static double cgroup_cores(void)
{
    char line[128];
    unsigned long long quota, period;
    read_line("/sys/fs/cgroup/cpu.max", line, sizeof line);
    return sscanf(line, "%llu %llu", &quota, &period) == 2 && period > 0 ? (double)quota / (double)period : 0;
}

static void check_cores(doctor_t *doctor)
{
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    double quota = cgroup_cores();
    uint64_t threads = doctor->values->compute.threads;
    if (quota > 0 && quota < cores) {
        add(doctor, FINDING_WARN, "cores", "set compute.threads to the quota: threads beyond it only wait",
            "%d cores, but this control group may use %.1f", cores, quota);
    } else if (threads > (uint64_t)cores) {
        add(doctor, FINDING_WARN, "cores", "set compute.threads to 0 (one per core)",
            "%d cores for compute.threads %llu", cores, (unsigned long long)threads);
    } else {
        add(doctor, FINDING_OK, "cores", NULL, "%d", cores);
    }
}

/* A line "Name:  123 kB" of /proc/meminfo, in bytes. */
static uint64_t meminfo_bytes(const char *name)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *file = fopen("/proc/meminfo", "re");
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, name, strlen(name)) == 0 && sscanf(line + strlen(name), ": %llu", &kib) == 1) break;
    }
    fclose(file);
    return kib * 1024;
}

/* Bytes of the weights in the model directory. */
static uint64_t weights_bytes(const char *path)
{
    uint64_t bytes = 0;
    DIR *directory = opendir(path);
    if (!directory) return 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        size_t length = strlen(entry->d_name);
        struct stat info;
        if (length < 12 || strcmp(entry->d_name + length - 12, ".safetensors") != 0) continue;
        if (fstatat(dirfd(directory), entry->d_name, &info, 0) == 0) bytes += (uint64_t)info.st_size;
    }
    closedir(directory);
    return bytes;
}

static void check_memory(doctor_t *doctor)
{
    uint64_t available = meminfo_bytes("MemAvailable"), total = meminfo_bytes("MemTotal");
    uint64_t weights = weights_bytes(doctor->values->model.path), kv = doctor->values->memory.kv_bytes;
    bool on_cpu = strcmp(doctor->values->compute.backend, "cpu") == 0;
    if (on_cpu && !doctor->running && weights + kv > available) {
        add(doctor, FINDING_FAIL, "memory", "choose a smaller model or memory.kv_bytes, or free memory",
            "%.1f GiB available, but weights need %.1f GiB and memory.kv_bytes %.1f GiB", (double)available / GIB,
            (double)weights / GIB, (double)kv / GIB);
        return;
    }
    add(doctor, FINDING_OK, "memory", NULL, "%.1f of %.1f GiB available; weights %.2f GiB", (double)available / GIB,
        (double)total / GIB, (double)weights / GIB);
}

static void check_huge_pages(doctor_t *doctor)
{
    char mode[128], shared[128];
    read_line("/sys/kernel/mm/transparent_hugepage/enabled", mode, sizeof mode);
    read_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled", shared, sizeof shared);
    const char *memfds = strstr(shared, "[never]") || strstr(shared, "[deny]") ? "; not for shared memory" : "";
    if (strstr(mode, "[never]")) {
        add(doctor, FINDING_WARN, "huge pages", "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root)",
            "switched off; large models run slower");
    } else {
        add(doctor, FINDING_OK, "huge pages", NULL, "%s%s", mode[0] ? mode : "the kernel does not tell", memfds);
    }
}

static void check_kernel(doctor_t *doctor)
{
    int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (fd < 0) {
        add(doctor, FINDING_FAIL, "kernel", "use Linux 5.3 or newer, and a sandbox that allows pidfd_open",
            "pidfd_open: %s; a peer's death could not be proven", strerror(errno));
        return;
    }
    close(fd);
    struct rlimit files;
    uint64_t needed = doctor->values->frontend.max_connections + 256;
    getrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < needed) {
        add(doctor, FINDING_WARN, "open files", "raise it with ulimit -n, or lower frontend.max_connections",
            "%llu allowed, frontend.max_connections %llu needs %llu", (unsigned long long)files.rlim_cur,
            (unsigned long long)doctor->values->frontend.max_connections, (unsigned long long)needed);
    } else {
        add(doctor, FINDING_OK, "open files", NULL, "%llu allowed", (unsigned long long)files.rlim_cur);
    }
}

static void check_gpu(doctor_t *doctor)
{
    char version[256];
    read_line("/proc/driver/nvidia/version", version, sizeof version);
    bool wanted = strcmp(doctor->values->compute.backend, "cuda") == 0;
    if (!version[0] && !wanted)
        add(doctor, FINDING_OK, "driver", NULL, "no GPU, and compute.backend is cpu");
    else if (!version[0])
        add(doctor, FINDING_WARN, "driver", "install the NVIDIA driver (in a container: pass the GPU in)",
            "/proc/driver/nvidia/version is not there");
    else
        add(doctor, FINDING_OK, "driver", NULL, "%s", version);
    if (wanted) doctor_gpu(doctor->values, doctor->running, &doctor->findings);
}

/* ---- installation ---- */

static void check_libraries(doctor_t *doctor)
{
    int major, minor, patch, czmq_major, czmq_minor, czmq_patch;
    zmq_version(&major, &minor, &patch);
    zsys_version(&czmq_major, &czmq_minor, &czmq_patch);
    bool old = major * 100 + minor < 403 || czmq_major * 100 + czmq_minor < 402;
    add(doctor, old ? FINDING_FAIL : FINDING_OK, "libraries", old ? "install libzmq 4.3 and czmq 4.2 or newer" : NULL,
        "libzmq %d.%d.%d, czmq %d.%d.%d", major, minor, patch, czmq_major, czmq_minor, czmq_patch);
}

static void check_programs(doctor_t *doctor)
{
    char directory[PATH_MAX], path[PATH_MAX + 32];
    ssize_t length = readlink("/proc/self/exe", directory, sizeof directory - 1);
    directory[length > 0 ? length : 0] = '\0';
    char *slash = strrchr(directory, '/');
    if (slash) *slash = '\0';
    for (size_t i = 0; i < QN_DAEMON_COUNT; i++) {
        snprintf(path, sizeof path, "%s/quintet-%s", directory, qn_daemon_names()[i]);
        if (access(path, X_OK) == 0) continue;
        add(doctor, FINDING_FAIL, "programs", "build or install again; only quintet up --inproc works now",
            "no quintet-%s in %.200s", qn_daemon_names()[i], directory);
        return;
    }
    add(doctor, FINDING_OK, "programs", NULL, "%s, build %s", directory, qn_build_id());
}

static bool is_locked(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return false;
    bool locked = flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    close(fd);
    return locked;
}

static void check_run_dir(doctor_t *doctor)
{
    char path[QN_PATH_MAX + 16];
    struct stat info;
    if (qn_paths_run_dir(doctor->values, doctor->run_dir, sizeof doctor->run_dir) != QN_OK) {
        doctor->run_dir[0] = '\0';
        add(doctor, FINDING_FAIL, "run_dir", "choose another with --run-dir", "%s", qn_err_text());
        return;
    }
    snprintf(path, sizeof path, "%s/up.lock", doctor->run_dir);
    doctor->running = is_locked(path);
    if (access(doctor->run_dir, W_OK | X_OK) != 0) {
        add(doctor, FINDING_FAIL, "run_dir", "choose another with --run-dir, or mend its permissions",
            "%s cannot be written: %s", doctor->run_dir, strerror(errno));
    } else if (stat(doctor->run_dir, &info) == 0 && (info.st_mode & 0022)) {
        add(doctor, FINDING_WARN, "run_dir", "chmod go-w it: who can write there can pose as a service",
            "%s can be written by others (mode %03o)", doctor->run_dir, info.st_mode & 0777u);
    } else {
        add(doctor, FINDING_OK, "run_dir", NULL, "%s%s", doctor->run_dir,
            doctor->running ? "; quintet up is running there" : "");
    }
}

/* Splits "host:port" or "[v6]:port" and binds a socket there for a moment. Returns 0 or an errno. */
static int try_bind(const char *listen_text, const char **ret_problem)
{
    char host[QN_PATH_MAX];
    snprintf(host, sizeof host, "%s", listen_text);
    char *colon = strrchr(host, ':');
    *colon = '\0';
    char *name = host[0] == '[' ? host + 1 : host;
    name[strcspn(name, "]")] = '\0';
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    int problem = getaddrinfo(name[0] ? name : NULL, colon + 1, &hints, &found);
    if (problem) {
        *ret_problem = gai_strerror(problem);
        return EINVAL;
    }
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    int error = fd < 0 ? errno : 0;
    if (!error) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (!error && bind(fd, found->ai_addr, found->ai_addrlen) != 0) error = errno;
    if (!error && listen(fd, 1) != 0) error = errno;
    if (fd >= 0) close(fd);
    freeaddrinfo(found);
    *ret_problem = strerror(error);
    return error;
}

static void check_port(doctor_t *doctor)
{
    const char *address = doctor->values->frontend.listen, *problem = "";
    if (strncmp(address, "unix:", 5) == 0) {
        add(doctor, FINDING_OK, "listen", NULL, "%s", address);
        return;
    }
    int error = try_bind(address, &problem);
    if (error == EADDRINUSE && doctor->running) {
        add(doctor, FINDING_OK, "listen", NULL, "%s, in use while quintet up is running", address);
    } else if (error) {
        add(doctor, FINDING_FAIL, "listen",
            error == EADDRINUSE
                ? "stop what listens there (ss -ltnp), or choose another with --set frontend.listen=HOST:PORT"
                : "set frontend.listen to an address of this machine",
            "%s: %s", address, problem);
    } else {
        add(doctor, FINDING_OK, "listen", NULL, "%s is free", address);
    }
}

static void check_model(doctor_t *doctor)
{
    const qn_config_values_t *values = doctor->values;
    const char *path = values->model.path;
    char file[QN_PATH_MAX + 32];
    if (path[0] == '\0') {
        add(doctor, FINDING_FAIL, "model", "set model.path to a Hugging Face model directory",
            "no model.path, and no bundled model is installed");
        return;
    }
    snprintf(file, sizeof file, "%s/config.json", path);
    if (access(file, R_OK) != 0) {
        add(doctor, FINDING_FAIL, "model", "set model.path to a Hugging Face model directory", "%s: %s", file,
            strerror(errno));
        return;
    }
    if (strcmp(values->model.load_format, "dummy") != 0 && weights_bytes(path) == 0) {
        add(doctor, FINDING_FAIL, "model", "download the .safetensors files, or set model.load_format=dummy",
            "no .safetensors files in %s", path);
        return;
    }
    struct stat info;
    const char *tokenizer = values->tokenizer.path;
    bool is_directory = stat(tokenizer, &info) == 0 && S_ISDIR(info.st_mode);
    snprintf(file, sizeof file, "%s%s", tokenizer, is_directory ? "/tokenizer.json" : "");
    if (access(file, R_OK) != 0) {
        add(doctor, FINDING_WARN, "model", "add tokenizer.json or set tokenizer.path to serve text",
            "%s serves token ids only: %s: %s", path, file, strerror(errno));
    } else {
        add(doctor, FINDING_OK, "model", NULL, "%s (%s)", path, values->model.id);
    }
}

/* ---- report ---- */

static void print_json(const findings_t *findings)
{
    json_t *all = json_pack("{s:s, s:o}", "result", finding_level_name(findings_worst(findings)), "checks",
                            findings_json(findings));
    cli_print_json(all);
    json_decref(all);
}

static void examine(doctor_t *doctor)
{
    check_cpu(doctor);
    check_cores(doctor);
    check_run_dir(doctor); /* first of those that ask whether something runs */
    check_memory(doctor);
    check_huge_pages(doctor);
    check_kernel(doctor);
    check_gpu(doctor);
    check_libraries(doctor);
    check_programs(doctor);
    check_port(doctor);
    check_model(doctor);
}

int cmd_doctor(int argc, char **argv)
{
    bool json = false;
    const cli_option_t options[] = {
        {.name = "json", .letter = 'j', .kind = CLI_FLAG, .value = &json, .help = "answer in JSON"},
    };
    qn_config_arguments_t arguments;
    const cli_command_t command = {
        .name = "doctor",
        .arguments = "[OPTION]...",
        .summary = "Checks whether this machine can run what is configured.",
        .details = "Exit status: 0 when nothing fails (there may be warnings), 69 when something does, 78 for a wrong\n"
                   "configuration.\n",
        .options = options,
        .option_count = sizeof options / sizeof options[0],
        .configuration = &arguments,
    };
    int done = cli_parse(&command, &argc, argv);
    if (done >= 0) return done;
    if (argc > 1) return cli_usage("unexpected argument \"%s\"", argv[1]);
    qn_config_t *config = NULL;
    qn_err_t err = qn_config_load(arguments.path, arguments.sets, arguments.set_count, arguments.run_dir, &config);
    if (err) return cli_fail_err(err);
    doctor_t doctor = {.values = qn_config_values(config)};
    examine(&doctor);
    if (json)
        print_json(&doctor.findings);
    else
        findings_print(&doctor.findings);
    qn_config_free(&config);
    int status = cli_finish_output();
    return status ? status : findings_worst(&doctor.findings) == FINDING_FAIL ? EX_UNAVAILABLE : EX_OK;
}
