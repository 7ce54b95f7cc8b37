/* What is this?      The table of all configuration keys, and what is printed from it.
 * State owned:       none; the table is constant.
 * Must never:        read a file or know where a value comes from.
 * Read next:         config.c, which loads values into the struct. */
#include <ctype.h>
#include <string.h>

#include "common/config/config_internal.h"
#include "common/config/suggest.h"

#define AT(field) offsetof(qn_config_values_t, field)
#define TEXT(key, field, value, choice, words) {key, QN_CONFIG_STRING, AT(field), value, choice, 0, 0, words}
#define COUNT(key, field, value, low, high, words) {key, QN_CONFIG_COUNT, AT(field), value, NULL, low, high, words}
#define BYTES(key, field, value, low, high, words) {key, QN_CONFIG_BYTES, AT(field), value, NULL, low, high, words}
#define BOOL(key, field, value, words) {key, QN_CONFIG_BOOL, AT(field), value, "true|false", 0, 0, words}
#define OTHER(key, kind, field, value, words) {key, kind, AT(field), value, NULL, 0, 0, words}

static const qn_config_key_t keys[] = {
    TEXT("run_dir", run_dir, "", NULL,
         "Directory of sockets, locks, statistics; \"\" is $XDG_RUNTIME_DIR/quintet, or /run/quintet for root."),

    TEXT("model.path", model.path, "", NULL, "Hugging Face model directory; \"\" is the bundled model."),
    TEXT("model.id", model.id, "", NULL, "Name in the HTTP API; \"\" is the last component of model.path."),
    TEXT("model.load_format", model.load_format, "auto", "auto|safetensors|dummy",
         "Where weights come from; dummy fills them with random numbers from model.seed."),
    COUNT("model.seed", model.seed, "0", 0, INT64_MAX, "Seed of dummy weights."),
    TEXT("model.layout", model.layout, "auto", "auto|rows|panels",
         "How weights lie in memory: rows as in the checkpoint, panels packed for the CPU; auto: panels on the CPU."),
    TEXT("model.quantize", model.quantize, "none", "none|int8|int4",
         "Number format of the matrices, converted while they load; embedding and head are int8 in both (CPU only)."),
    TEXT("model.quantize_group", model.quantize_group, "32", "32|64", "int4: inputs that share a scale."),
    COUNT("model.max_model_len", model.max_model_len, "0", 0, QN_PROMPT_TOKENS_MAX,
          "Most tokens of prompt and answer together; 0 is what the model says."),

    OTHER("frontend.listen", QN_CONFIG_LISTEN, frontend.listen, "127.0.0.1:8000",
          "Address of the HTTP API: host:port, [v6]:port, :port (all addresses) or unix:PATH."),
    TEXT("frontend.mode", frontend.mode, "production", "production|research",
         "research adds metadata (execution time, hops, epochs) to replies."),
    COUNT("frontend.max_connections", frontend.max_connections, "1024", 1, 65536, "Open client connections."),
    BYTES("frontend.max_body_bytes", frontend.max_body_bytes, "8MiB", 1024, QN_TEXT_BYTES_MAX,
          "Most bytes of one HTTP request body."),
    COUNT("frontend.max_inline_values", frontend.max_inline_values, "65536", 1, 1048576,
          "Most numbers of a tensor in one reply; of more there is a summary, and pages of them or a handle."),
    COUNT("frontend.queue_limit", frontend.queue_limit, "1024", 1, QN_REQUESTS_MAX,
          "Requests in flight before the API answers 429."),
    COUNT("frontend.default_max_tokens", frontend.default_max_tokens, "0", 0, QN_PROMPT_TOKENS_MAX,
          "Tokens generated when a request names no limit; 0 is the default of the model, or else of the API."),
    TEXT(
        "frontend.sampling_defaults", frontend.sampling_defaults, "model", "model|openai",
        "Sampling parameters that a request leaves out: model takes generation_config.json, openai OpenAI's (temperature 1)."),
    BOOL("frontend.strict_fields", frontend.strict_fields, "false",
         "Refuse request fields that are not known (400), instead of a warning header and a line in the log."),
    OTHER("frontend.admin_listen", QN_CONFIG_LISTEN, frontend.admin_listen, "",
          "Address of what shows or changes how the server works; empty: frontend.listen, for clients on this host."),
    TEXT("frontend.api_keys_file", frontend.api_keys_file, "", NULL,
         "File of API keys, NAME user|admin KEY in each line, read again on SIGHUP; empty: no key is asked for."),

    TEXT("tokenizer.path", tokenizer.path, "", NULL, "tokenizer.json or the directory with it; \"\" is model.path."),
    OTHER("tokenizer.endpoint", QN_CONFIG_ENDPOINT, tokenizer.endpoint, "ipc",
          "Where the tokenizer is reached: ipc (a socket in run_dir) or tcp://host:port."),

    OTHER("scheduler.endpoint", QN_CONFIG_ENDPOINT, scheduler.endpoint, "ipc",
          "Where the scheduler is reached: ipc or tcp://host:port."),
    TEXT(
        "scheduler.policy", scheduler.policy, "fcfs", NULL,
        "Scheduling policy: fcfs, priority, shortest_job, prefix, fair, or a shared object, NAME.so in policies.dirs."),
    TEXT("scheduler.batching", scheduler.batching, "fixed", NULL,
         "Step size: fixed, pressure (smaller pieces of prompts when blocks are few), or a shared object."),
    TEXT("scheduler.admission", scheduler.admission, "queue", NULL,
         "Who is accepted: queue, user_share (equal parts of a queue that is half full), or a shared object."),
    COUNT("scheduler.max_sequences", scheduler.max_sequences, "64", 1, QN_SLOTS_MAX,
          "Sequences running at once; each has a slot in compute's tables."),
    COUNT("scheduler.max_step_tokens", scheduler.max_step_tokens, "512", 1, QN_STEP_TOKENS_MAX,
          "Token budget of one step, prefill and decode together."),
    COUNT("scheduler.prefill_chunk_tokens", scheduler.prefill_chunk_tokens, "256", 1, QN_STEP_TOKENS_MAX,
          "Most tokens of one prompt in one step."),
    COUNT("scheduler.lookahead", scheduler.lookahead, "1", 0, 1,
          "Steps planned before the tokens of the last one are known."),
    COUNT("scheduler.queue_limit", scheduler.queue_limit, "1024", 1, QN_REQUESTS_MAX,
          "Requests in the ledger, running and waiting."),

    OTHER("memory.endpoint", QN_CONFIG_ENDPOINT, memory.endpoint, "ipc",
          "Where memory is reached: ipc or tcp://host:port."),
    TEXT("memory.share", memory.share, "auto", "auto|memfd|cuda_ipc|cuda_vmm",
         "How regions reach compute; auto is memfd for the CPU and cuda_ipc for CUDA."),
    TEXT("memory.kv_dtype", memory.kv_dtype, "auto", "auto|f32|bf16",
         "Number format of the KV cache; auto is f32 for the CPU and bf16 for CUDA."),
    BYTES("memory.kv_bytes", memory.kv_bytes, "0", 0, 1ull << 46,
          "Size of the KV cache; 0 is enough for max_sequences at max_model_len, at most a quarter of a host's free "
          "memory, or what a GPU has left."),
    COUNT("memory.block_tokens", memory.block_tokens, "16", 1, 1024, "Tokens of one KV block."),
    BOOL("memory.prefix_cache", memory.prefix_cache, "true", "Share the KV blocks of equal prompt beginnings."),
    TEXT("memory.huge_pages", memory.huge_pages, "auto", "auto|all|off",
         "Huge pages on the CPU. auto: weights and activations; all: the KV cache too, allocated at start."),
    TEXT("memory.eviction", memory.eviction, "lru", NULL,
         "Which unreferenced block goes first: lru, lfu, fifo, cost, or a shared object."),
    COUNT("memory.pin_percent", memory.pin_percent, "50", 1, 100,
          "Most KV blocks that pins may hold, in percent of all."),
    TEXT("memory.cache_dir", memory.cache_dir, "", NULL,
         "Directory of prefixes that were saved; \"\" is saved in run_dir, which does not outlive a reboot."),
    BYTES("memory.cache_dir_bytes", memory.cache_dir_bytes, "16GiB", 0, 1ull << 46,
          "Most bytes of all saved prefixes; 0: none can be saved."),
    BYTES("memory.workspace_bytes", memory.workspace_bytes, "64MiB", 0, 1ull << 40,
          "Host memory for tensors that leave compute (taps, attention scores), taken as it is used; 0: none can "
          "leave. At least 64KiB."),

    OTHER("compute.endpoint", QN_CONFIG_ENDPOINT, compute.endpoint, "ipc",
          "Where compute is reached: ipc or tcp://host:port."),
    TEXT("compute.backend", compute.backend, "cpu", "cpu|cuda", "What runs the model."),
    COUNT("compute.device", compute.device, "0", 0, 63, "Number of the GPU."),
    COUNT("compute.threads", compute.threads, "0", 0, 1024, "Threads of the CPU backend; 0 is one per core."),
    TEXT(
        "compute.activations", compute.activations, "auto", "auto|f32|bf16",
        "Number format between the layers; auto: f32 for the CPU, for CUDA that of the weights. CPU: bf16 is for products only."),
    TEXT(
        "compute.spin", compute.spin, "auto", "auto|on|off",
        "Compute and scheduler poll for messages for 1 ms before they sleep (busy waiting); auto: with CUDA on eight cores or more."),
    BOOL("compute.deterministic", compute.deterministic, "false",
         "CUDA: the same bits alone, in any batch and computed again after a kill, at a price; the CPU always does."),
    TEXT("compute.kernels", compute.kernels, "", NULL,
         "Implementations by operation, \"op=name,op=name\"; \"reference\" is the plain ones, \"\" the fastest."),
    BYTES("compute.tensor_bytes", compute.tensor_bytes, "256MiB", 0, 1ull << 40,
          "Most host memory of the tensors that people keep in compute (/parallel); 0: none."),
    COUNT(
        "compute.probe_tokens", compute.probe_tokens, "2048", 0, QN_MASK_POSITIONS_MAX,
        "Tokens that a call of compute.forward and the like may have, in a KV cache of its own that the first one takes; 0: "
        "there are no such calls."),

    TEXT(
        "policies.dirs", policies.dirs, "", NULL,
        "Directories that policies are loaded from, separated by colons; \"\": policies beside the executable, and the "
        "installed ones."),

    TEXT("log.level", log.level, "info", "error|warning|notice|info|debug", "Lines above this level are dropped."),

    OTHER("up.composed", QN_CONFIG_SERVICES, up.composed, "",
          "Services that run as threads of quintet up: \"\" is none, all, or names separated by commas."),
    COUNT("up.watchdog_seconds", up.watchdog_seconds, "30", 0, 3600,
          "A service that shows no sign of life for so long is killed and started again. 0: never."),
    COUNT("up.stop_seconds", up.stop_seconds, "5", 1, 600, "Seconds to drain on stop before SIGKILL."),
};

#define KEY_COUNT (sizeof keys / sizeof keys[0])

const qn_config_key_t *qn_config_keys(size_t *ret_count)
{
    *ret_count = KEY_COUNT;
    return keys;
}

int qn_config_key_index(const char *name)
{
    for (size_t i = 0; i < KEY_COUNT; i++) {
        if (strcmp(keys[i].key, name) == 0) return (int)i;
    }
    return -1;
}

/* Length of the section part of a key, 0 for a key without one. */
static size_t section_length(const char *key)
{
    const char *dot = strchr(key, '.');
    return dot ? (size_t)(dot - key) : 0;
}

bool qn_config_section_exists(const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < KEY_COUNT; i++) {
        if (length > 0 && section_length(keys[i].key) == length && memcmp(keys[i].key, name, length) == 0) return true;
    }
    return false;
}

/* A word may differ in at most 3 letters, and in fewer than half of its own: "<<" is not like "id". */
static bool is_near(unsigned distance, const char *word)
{
    return distance <= QN_SUGGEST_DISTANCE_MAX && distance * 2 < strlen(word);
}

const char *qn_config_suggest(const char *key)
{
    const char *nearest = NULL;
    const char *given = strrchr(key, '.') ? strrchr(key, '.') + 1 : key;
    unsigned least = 4;
    for (size_t i = 0; i < KEY_COUNT; i++) {
        /* A key written without its section, or under the wrong one, is meant by its last part. */
        const char *last = keys[i].key + section_length(keys[i].key);
        if (*last == '.' && strcmp(last + 1, given) == 0 && !nearest) {
            nearest = keys[i].key;
            least = 3;
        }
        unsigned distance = qn_edit_distance(key, keys[i].key);
        if (distance < least && is_near(distance, given)) {
            nearest = keys[i].key;
            least = distance;
        }
    }
    return nearest;
}

const char *qn_config_section_suggest(const char *name, char *buffer, size_t capacity)
{
    unsigned least = 4;
    for (size_t i = 0; i < KEY_COUNT; i++) {
        char section[CONFIG_KEY_BYTES_MAX];
        size_t length = section_length(keys[i].key);
        if (length == 0 || length >= sizeof section || length >= capacity) continue;
        memcpy(section, keys[i].key, length);
        section[length] = '\0';
        unsigned distance = qn_edit_distance(name, section);
        if (distance >= least || !is_near(distance, name)) continue;
        least = distance;
        memcpy(buffer, section, length + 1);
    }
    return least < 4 ? buffer : NULL;
}

void qn_config_environment_name(const char *key, char *buffer, size_t capacity)
{
    int used = snprintf(buffer, capacity, "QUINTET_%s", key);
    for (int i = 0; i < used && (size_t)i + 1 < capacity; i++) {
        buffer[i] = buffer[i] == '.' ? '_' : (char)toupper((unsigned char)buffer[i]);
    }
}

/* ---- printing ---- */

/* "auto, safetensors or dummy", "1 to 64", "8MiB at most": what the value may be. */
static void print_allowed(FILE *stream, const qn_config_key_t *key)
{
    char low[32], high[32];
    switch (key->kind) {
    case QN_CONFIG_COUNT:
        fprintf(stream, "%llu to %llu", (unsigned long long)key->min, (unsigned long long)key->max);
        return;
    case QN_CONFIG_BYTES:
        qn_config_format_bytes(key->min, low, sizeof low);
        qn_config_format_bytes(key->max, high, sizeof high);
        fprintf(stream, "%s to %s (bytes, KiB, MiB, GiB or TiB)", low, high);
        return;
    default: break;
    }
    for (const char *at = key->choices ? key->choices : "text"; *at; at++) {
        if (*at == '|')
            fputs(", ", stream);
        else
            fputc(*at, stream);
    }
}

static bool is_written_bare(const qn_config_key_t *key)
{
    return key->default_text[0] != '\0' && key->kind != QN_CONFIG_LISTEN;
}

static void print_yaml_key(FILE *stream, const qn_config_key_t *key)
{
    size_t section = section_length(key->key);
    const char *indent = section ? "  " : "";
    fprintf(stream, "%s# %s\n", indent, key->help);
    if (key->choices || key->kind == QN_CONFIG_COUNT || key->kind == QN_CONFIG_BYTES) {
        fprintf(stream, "%s# Allowed: ", indent);
        print_allowed(stream, key);
        fputs(".\n", stream);
    }
    const char *quote = is_written_bare(key) ? "" : "\"";
    fprintf(stream, "%s%s: %s%s%s\n", indent, key->key + (section ? section + 1 : 0), quote, key->default_text, quote);
}

void qn_config_print_yaml(FILE *stream)
{
    fputs("# Quintet's configuration, with the built-in value of every key. All services read the same file.\n"
          "# The environment (QUINTET_SCHEDULER_POLICY for scheduler.policy) overrides a value here, and --set\n"
          "# scheduler.policy=... overrides both; `quintet config show --origin` tells what is in force and why.\n"
          "# This text is printed by `quintet config keys --yaml`.\n",
          stream);
    const char *previous = "";
    for (size_t i = 0; i < KEY_COUNT; i++) {
        size_t length = section_length(keys[i].key);
        if (i == 0 || length != section_length(previous) || memcmp(previous, keys[i].key, length) != 0) {
            fputc('\n', stream);
            if (length > 0) fprintf(stream, "%.*s:\n", (int)length, keys[i].key);
        }
        print_yaml_key(stream, &keys[i]);
        previous = keys[i].key;
    }
}

void qn_config_print_markdown(FILE *stream)
{
    fputs("| key | default | allowed | meaning |\n|---|---|---|---|\n", stream);
    for (size_t i = 0; i < KEY_COUNT; i++) {
        const char *value = keys[i].default_text[0] ? keys[i].default_text : "\"\"";
        fprintf(stream, "| `%s` | `%s` | ", keys[i].key, value);
        print_allowed(stream, &keys[i]);
        fprintf(stream, " | %s |\n", keys[i].help);
    }
}

bool qn_config_is_live(const char *key)
{
    static const char *const live[] = {"frontend.mode", "frontend.default_max_tokens", "frontend.sampling_defaults",
                                       "frontend.strict_fields"};
    for (size_t i = 0; i < sizeof live / sizeof live[0]; i++)
        if (strcmp(live[i], key) == 0) return true;
    return false;
}
