/* The configuration: one strict YAML file, overridden by the environment and by --set, the same for
 * all daemons. Precedence, lowest first: built-in default, file, environment (QUINTET_SCHEDULER_POLICY
 * for scheduler.policy), --set key=value, dedicated flags (--run-dir). An unknown key is an error with
 * file, line and the nearest known key. Immutable once loaded; a reload makes a new object. */
#ifndef QN_COMMON_CONFIG_CONFIG_H
#define QN_COMMON_CONFIG_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <stdio.h>

#include "common/err.h"
#include "common/limits.h"

/* Typed values. Strings are owned by the configuration, never NULL. Field names are the YAML keys:
 * scheduler.max_sequences is scheduler.max_sequences here. After qn_config_load, model.path, model.id and
 * tokenizer.path hold what their "" stands for (model.path stays "" only where no bundled model is installed); run_dir
 * keeps "" (paths.h makes and checks the default one). Relative paths are relative to the working directory. */
typedef struct {
    char *run_dir; /* "" = $XDG_RUNTIME_DIR/quintet; /run/quintet for root */
    struct {
        char *path;        /* Hugging Face directory; "" = the bundled model */
        char *id;          /* name in the HTTP API; "" = last component of path */
        char *load_format; /* auto | safetensors | dummy (random weights from `seed`) */
        uint64_t seed;
        char *layout;           /* auto | rows | panels */
        char *quantize;         /* none | int8 | int4 */
        char *quantize_group;   /* 32 | 64 */
        uint64_t max_model_len; /* tokens; 0 = what the model says */
    } model;
    struct {
        char *listen; /* host:port, [v6]:port, :port (all addresses) or unix:PATH */
        char *mode;   /* production | research */
        uint64_t max_connections;
        uint64_t max_body_bytes;
        uint64_t queue_limit;        /* requests in flight before 429 */
        uint64_t default_max_tokens; /* /v1/completions and /generate without max_tokens */
        char *sampling_defaults;     /* model | openai */
        uint64_t max_inline_values;  /* numbers of a reply; more are a handle */
        bool strict_fields;
        char *admin_listen;  /* as listen; "" = the same */
        char *api_keys_file; /* "" = none */
    } frontend;
    struct {
        char *path;     /* tokenizer.json or a directory; "" = model.path */
        char *endpoint; /* see scheduler.endpoint */
    } tokenizer;
    struct {
        char *endpoint; /* "ipc" = a socket in run_dir; or tcp://host:port */
        char *policy;   /* a choice, policy_object.h; and those of the other kinds: */
        char *batching, *admission;
        uint64_t max_sequences;        /* running at once = slots */
        uint64_t max_step_tokens;      /* token budget of one step */
        uint64_t prefill_chunk_tokens; /* at most this much of one prompt per step */
        uint64_t lookahead;            /* 0 or 1 */
        uint64_t queue_limit;          /* requests in the ledger, running and waiting */
    } scheduler;
    struct {
        char *endpoint;
        char *share;       /* auto | memfd | cuda_ipc | cuda_vmm */
        char *kv_dtype;    /* auto | f32 | bf16: qn_config_kv_is_bf16 */
        uint64_t kv_bytes; /* KV region; 0 = for max_sequences at max_model_len, at most ¼ of free memory */
        uint64_t block_tokens;
        bool prefix_cache;
        char *huge_pages; /* auto | all | off */
        char *eviction;   /* a choice, policy_object.h */
        uint64_t pin_percent;
        char *cache_dir;
        uint64_t cache_dir_bytes;
        uint64_t workspace_bytes; /* tensors that leave compute; 0 = none can */
    } memory;
    struct {
        char *endpoint;
        char *backend; /* cpu | cuda */
        uint64_t device;
        uint64_t threads;     /* 0 = one per core */
        char *activations;    /* auto | f32 | bf16 */
        char *spin;           /* auto | on | off */
        bool deterministic;   /* CUDA: a sequence's bits depend on neither batch nor chunks */
        char *kernel_dirs;    /* qn_paths_kernels */
        char *kernel_objects; /* "NAME.so,NAME.so" loaded at start */
        char *autotune_table; /* path; "": none */
        char *kernels;        /* "" or "op=name,op=name" (kernels.h); "reference" = all plain */
        uint64_t tensor_bytes;
        uint64_t probe_tokens; /* of a task beside the steps; 0 = none */
    } compute;
    struct {
        char *dirs; /* qn_paths_policies */
    } policies;
    struct {
        char *level; /* error | warning | notice | info | debug */
    } log;
    struct {
        char *composed;            /* threads of `quintet up`: "" none, "all", or "tokenizer,scheduler" */
        uint64_t watchdog_seconds; /* without a sign of life before SIGABRT; 0: for ever */
        uint64_t stop_seconds;     /* time to drain before SIGKILL */
    } up;
} qn_config_values_t;

/* memory.kv_dtype, where auto is bf16 for what computes in bf16. */
static inline bool qn_config_kv_is_bf16(const qn_config_values_t *values)
{
    bool bf16 = strcmp(values->compute.backend, "cuda") == 0 && strcmp(values->compute.activations, "f32") != 0;
    return strcmp(values->memory.kv_dtype, "auto") == 0 ? bf16 : strcmp(values->memory.kv_dtype, "bf16") == 0;
}

typedef struct qn_config qn_config_t;

typedef enum {
    QN_CONFIG_STRING,
    QN_CONFIG_COUNT,
    QN_CONFIG_BYTES,
    QN_CONFIG_BOOL,
    QN_CONFIG_LISTEN,   /* a string: host:port, [v6]:port, :port or unix:PATH */
    QN_CONFIG_ENDPOINT, /* a string: "ipc" or tcp://host:port */
    QN_CONFIG_SERVICES, /* a string: "", "all" or names separated by commas */
} qn_config_kind_t;

/* One row per key: the only list of keys there is. `quintet config`, the README table, config.yaml's
 * comments and the tests are made from it. */
typedef struct {
    const char *key; /* "scheduler.policy" */
    qn_config_kind_t kind;
    size_t offset; /* in qn_config_values_t */
    const char *default_text;
    const char *choices; /* "a|b|c" or NULL */
    uint64_t min, max;   /* counts and bytes */
    const char *help;    /* one sentence, with the unit */
} qn_config_key_t;

/* Returns view of the table. */
const qn_config_key_t *qn_config_keys(size_t *ret_count);

/* Loads `path` (NULL: no file), the environment and `sets` ("key=value", later ones win). `run_dir` NULL or a
 * path that overrides all. BYTES accept 4096, 64KiB, 2GiB. Failure: QN_ERR_CONFIG, nothing returned, the text
 * names file:line or the variable, the key, and the remedy. Returns owned. */
qn_err_t qn_config_load(const char *path, const char *const *sets, size_t set_count, const char *run_dir,
                        qn_config_t **ret_config);
void qn_config_free(qn_config_t **config);
const qn_config_values_t *qn_config_values(const qn_config_t *config);

/* Whether a change of this key takes effect in a frontend that runs; the others are read at start. */
bool qn_config_is_live(const char *key);
/* A copy with these keys changed, each "key=value" of a live one; where they came from is `origin`. Failure: QN_ERR_CONFIG,
 * an unknown key or a bad value; QN_ERR_UNSUPPORTED, a key that is not live; nothing returned, *ret_key is the one at
 * fault. Returns owned. */
qn_err_t qn_config_change(const qn_config_t *config, const char *const *keys, const char *const *values, size_t count,
                          const char *origin, qn_config_t **ret_config, size_t *ret_at_fault);
/* Where the value in force came from: "default", "config.yaml:12", "environment QUINTET_…", "--set". */
const char *qn_config_origin(const qn_config_t *config, const char *key);
/* The value in force as text; NULL for an unknown key. Returns owned (free). */
char *qn_config_get_text(const qn_config_t *config, const char *key);
/* The known key nearest to `key` (edit distance ≤ 3), or NULL. */
const char *qn_config_suggest(const char *key);

/* The command line every daemon understands: --config F (else $QUINTET_CONFIG, else no file), --set K=V, --run-dir D,
 * --help, --version; "--name=value" too. Views of argv and the environment. */
#define QN_CONFIG_SETS_MAX 256
typedef struct {
    const char *path;    /* NULL: no file */
    const char *run_dir; /* NULL: not given */
    const char *sets[QN_CONFIG_SETS_MAX];
    size_t set_count;
} qn_config_arguments_t;

/* Unknown arguments fail with QN_ERR_INVALID. When `keep_rest`, arguments it does not own, --help and --version among
 * them, stay in argv (argc is updated), for the quintet command; "--" and what follows stay too. Otherwise --help and
 * --version print to standard output and exit(0). */
qn_err_t qn_config_parse_arguments(int *argc, char **argv, bool keep_rest, qn_config_arguments_t *ret_arguments);
/* Parses and loads. */
qn_err_t qn_config_from_arguments(int *argc, char **argv, bool keep_rest, qn_config_t **ret_config);

/* The default file, every key with its comment, as config.yaml has it; and the README's table. */
void qn_config_print_yaml(FILE *stream);
void qn_config_print_markdown(FILE *stream);
/* The environment variable of a key: "QUINTET_SCHEDULER_POLICY". Writes at most `capacity` bytes with the NUL. */
void qn_config_environment_name(const char *key, char *buffer, size_t capacity);
/* Is `service` in a value of kind QN_CONFIG_SERVICES? */
bool qn_config_names_service(const char *services, const char *service);

#endif
