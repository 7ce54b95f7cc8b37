/* What is this?      The configuration object: layers of default, file, environment and --set over the key table.
 * State owned:       the values and, per key, where each came from.
 * Must never:        accept a key it does not know, or change after qn_config_load.
 * Read next:         config_keys.c (the table), config_value.c (one value), config_yaml.c (the file). */
#include <stdlib.h>
#include <string.h>

#include "common/build.h"
#include "common/config/config_internal.h"
#include "common/paths.h"
#include "common/config/suggest.h"

#define ORIGIN_BYTES_MAX 300
/* sun_path takes 107 bytes and the sockets' names follow the directory. */
#define RUN_DIR_BYTES_MAX 80

extern char **environ;

typedef struct {
    char *origin;       /* owned */
    unsigned file_line; /* 0: not in the file */
} source_t;

struct qn_config {
    qn_config_values_t values;
    const qn_config_key_t *keys;
    size_t key_count;
    source_t *sources; /* [key_count] */
    const char *path;  /* while loading */
};

static qn_err_t set_origin(qn_config_t *config, size_t index, const char *origin)
{
    char *copy = strdup(origin);
    if (!copy) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the configuration");
    free(config->sources[index].origin);
    config->sources[index].origin = copy;
    return QN_OK;
}

static qn_err_t store(qn_config_t *config, size_t index, const char *text, const char *where, const char *origin)
{
    qn_err_t err = qn_config_value_store(&config->values, &config->keys[index], text, where);
    return err ? err : set_origin(config, index, origin);
}

static qn_err_t fail_unknown(const char *where, const char *key)
{
    const char *suggestion = qn_config_suggest(key);
    if (suggestion) {
        return qn_fail(QN_ERR_CONFIG, "%s: unknown key %.100s; did you mean %s?", where, key, suggestion);
    }
    return qn_fail(QN_ERR_CONFIG, "%s: unknown key %.100s; quintet config keys lists them", where, key);
}

/* ---- layers ---- */

static qn_err_t apply_defaults(qn_config_t *config)
{
    for (size_t i = 0; i < config->key_count; i++) {
        qn_err_t err = store(config, i, config->keys[i].default_text, "built-in default", "default");
        if (err) return err;
    }
    return QN_OK;
}

static qn_err_t take_from_file(void *context, const char *key, const char *value, bool quoted, unsigned line)
{
    qn_config_t *config = context;
    char where[ORIGIN_BYTES_MAX];
    snprintf(where, sizeof where, "%s:%u", config->path, line);
    int index = qn_config_key_index(key);
    if (index < 0) return fail_unknown(where, key);
    unsigned *seen = &config->sources[index].file_line;
    if (*seen != 0) {
        return qn_fail(QN_ERR_CONFIG, "%s: %s appears twice (first in line %u)", where, key, *seen);
    }
    *seen = line;
    qn_config_kind_t kind = config->keys[index].kind;
    if (quoted && (kind == QN_CONFIG_COUNT || kind == QN_CONFIG_BOOL)) {
        return qn_fail(QN_ERR_CONFIG, "%s: %s must be %s, not text; write it without quotes", where, key,
                       kind == QN_CONFIG_COUNT ? "a number" : "true or false");
    }
    return store(config, (size_t)index, value, where, where);
}

/* Variables with our prefix that are not keys: other programs of the project read them. */
static bool is_tool_variable(const char *name)
{
    static const char *const names[] = {"QUINTET_URL", "QUINTET_CONFIG", "QUINTET_BIN_DIR", "QUINTET_FAILPOINTS"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(name, names[i]) == 0) return true;
    }
    /* Kubernetes gives every pod QUINTET_FRONTEND_SERVICE_HOST, QUINTET_FRONTEND_PORT_8000_TCP, ... for a
     * Service called quintet-frontend; no key has a part "port" or "service". */
    return strstr(name, "_SERVICE_HOST") || strstr(name, "_SERVICE_PORT") || strstr(name, "_PORT_") ||
           (strlen(name) > 5 && strcmp(name + strlen(name) - 5, "_PORT") == 0);
}

static int index_of_variable(const qn_config_t *config, const char *name)
{
    for (size_t i = 0; i < config->key_count; i++) {
        char variable[CONFIG_KEY_BYTES_MAX * 2];
        qn_config_environment_name(config->keys[i].key, variable, sizeof variable);
        if (strcmp(variable, name) == 0) return (int)i;
    }
    return -1;
}

/* A variable that is no key is an error when it begins like a section or is nearly a key; any other is not ours. */
static qn_err_t judge_unknown_variable(const qn_config_t *config, const char *name)
{
    char nearest[CONFIG_KEY_BYTES_MAX * 2] = "";
    unsigned least = 4;
    bool in_section = false;
    for (size_t i = 0; i < config->key_count; i++) {
        char variable[CONFIG_KEY_BYTES_MAX * 2];
        qn_config_environment_name(config->keys[i].key, variable, sizeof variable);
        const char *dot = strchr(config->keys[i].key, '.');
        size_t section = dot ? strlen("QUINTET_") + (size_t)(dot - config->keys[i].key) + 1 : 0;
        in_section = in_section || (dot && strncmp(name, variable, section) == 0);
        unsigned distance = qn_edit_distance(name, variable);
        if (distance >= least) continue;
        least = distance;
        snprintf(nearest, sizeof nearest, "%s", variable);
    }
    if (nearest[0]) {
        return qn_fail(QN_ERR_CONFIG, "environment %.100s: unknown key; did you mean %s?", name, nearest);
    }
    if (!in_section) return QN_OK;
    return qn_fail(QN_ERR_CONFIG, "environment %.100s: unknown key; unset it, or see quintet config keys", name);
}

static qn_err_t apply_environment(qn_config_t *config)
{
    for (char **entry = environ; *entry; entry++) {
        const char *equals = strchr(*entry, '=');
        if (strncmp(*entry, "QUINTET_", strlen("QUINTET_")) != 0 || !equals) continue;
        char name[CONFIG_KEY_BYTES_MAX * 4], where[ORIGIN_BYTES_MAX];
        snprintf(name, sizeof name, "%.*s", (int)(equals - *entry), *entry);
        if (is_tool_variable(name)) continue;
        int index = index_of_variable(config, name);
        qn_err_t err;
        if (index < 0) {
            err = judge_unknown_variable(config, name);
        } else {
            snprintf(where, sizeof where, "environment %s", name);
            err = store(config, (size_t)index, equals + 1, where, where);
        }
        if (err) return err;
    }
    return QN_OK;
}

static qn_err_t apply_set(qn_config_t *config, const char *set)
{
    const char *equals = strchr(set, '=');
    char key[CONFIG_KEY_BYTES_MAX * 2], where[ORIGIN_BYTES_MAX];
    if (!equals || equals == set || (size_t)(equals - set) >= sizeof key) {
        return qn_fail(QN_ERR_CONFIG, "--set %.100s: expected key=value, as --set scheduler.max_sequences=16", set);
    }
    snprintf(key, sizeof key, "%.*s", (int)(equals - set), set);
    int index = qn_config_key_index(key);
    snprintf(where, sizeof where, "--set %.200s", set);
    if (index < 0) return fail_unknown(where, key);
    return store(config, (size_t)index, equals + 1, where, "--set");
}

/* ---- values that stand for something else when empty ---- */

static qn_err_t check_run_dir(const qn_config_t *config)
{
    size_t length = strlen(config->values.run_dir);
    if (length <= RUN_DIR_BYTES_MAX) return QN_OK;
    return qn_fail(QN_ERR_CONFIG,
                   "%s: run_dir has %zu bytes and may have %d, because the path of a socket is short; "
                   "choose another with --run-dir",
                   qn_config_origin(config, "run_dir"), length, RUN_DIR_BYTES_MAX);
}

static qn_err_t resolve_model(qn_config_t *config)
{
    qn_config_values_t *values = &config->values;
    char path[QN_PATH_MAX];
    if (values->model.path[0] == '\0' && qn_paths_model(values, path, sizeof path) == QN_OK) {
        qn_err_t err =
            store(config, (size_t)qn_config_key_index("model.path"), path, "model.path", "default, the bundled model");
        if (err) return err;
    }
    if (values->model.id[0] == '\0') {
        snprintf(path, sizeof path, "%s", values->model.path);
        size_t length = strlen(path);
        while (length > 1 && path[length - 1] == '/')
            path[--length] = '\0';
        const char *slash = strrchr(path, '/');
        const char *last = slash ? slash + 1 : path;
        qn_err_t err = store(config, (size_t)qn_config_key_index("model.id"), last[0] ? last : "default", "model.id",
                             "default, from model.path");
        if (err) return err;
    }
    if (values->tokenizer.path[0] != '\0') return QN_OK;
    return store(config, (size_t)qn_config_key_index("tokenizer.path"), values->model.path, "tokenizer.path",
                 "default, from model.path");
}

/* ---- life ---- */

static qn_err_t load_layers(qn_config_t *config, const char *path, const char *const *sets, size_t set_count,
                            const char *run_dir)
{
    qn_err_t err = apply_defaults(config);
    if (!err && path) {
        config->path = path;
        err = qn_config_yaml_read(path, take_from_file, config);
        config->path = NULL;
    }
    if (!err) err = apply_environment(config);
    for (size_t i = 0; !err && i < set_count; i++)
        err = apply_set(config, sets[i]);
    if (!err && run_dir) err = store(config, (size_t)qn_config_key_index("run_dir"), run_dir, "--run-dir", "--run-dir");
    if (!err) err = check_run_dir(config);
    if (!err) err = resolve_model(config);
    return err;
}

qn_err_t qn_config_load(const char *path, const char *const *sets, size_t set_count, const char *run_dir,
                        qn_config_t **ret_config)
{
    qn_config_t *config = calloc(1, sizeof *config);
    if (!config) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the configuration");
    config->keys = qn_config_keys(&config->key_count);
    config->sources = calloc(config->key_count, sizeof *config->sources);
    qn_err_t err = config->sources ? load_layers(config, path, sets, set_count, run_dir)
                                   : qn_fail(QN_ERR_NO_MEMORY, "no memory for the configuration");
    if (err) {
        qn_config_free(&config);
        return err;
    }
    *ret_config = config;
    return QN_OK;
}

void qn_config_free(qn_config_t **config)
{
    qn_config_t *self = *config;
    if (!self) return;
    for (size_t i = 0; i < self->key_count; i++) {
        qn_config_value_free(&self->values, &self->keys[i]);
        if (self->sources) free(self->sources[i].origin);
    }
    free(self->sources);
    free(self);
    *config = NULL;
}

static qn_err_t copy_values(const qn_config_t *from, qn_config_t *to)
{
    for (size_t i = 0; i < from->key_count; i++) {
        char *text = qn_config_value_text(&from->values, &from->keys[i]);
        qn_err_t err = text ? store(to, i, text, "copy", from->sources[i].origin)
                            : qn_fail(QN_ERR_NO_MEMORY, "no memory for the configuration");
        free(text);
        if (err) return err;
    }
    return QN_OK;
}

static qn_err_t change(qn_config_t *config, const char *key, const char *value, const char *origin)
{
    int index = qn_config_key_index(key);
    if (index < 0) return fail_unknown(origin, key);
    if (!qn_config_is_live(key))
        return qn_fail(QN_ERR_UNSUPPORTED, "%s cannot change while the services run: set it in the file and restart",
                       key);
    return store(config, (size_t)index, value, origin, origin);
}

qn_err_t qn_config_change(const qn_config_t *config, const char *const *keys, const char *const *values, size_t count,
                          const char *origin, qn_config_t **ret_config, size_t *ret_at_fault)
{
    qn_config_t *copy = calloc(1, sizeof *copy);
    if (!copy) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the configuration");
    copy->keys = config->keys;
    copy->key_count = config->key_count;
    copy->sources = calloc(config->key_count, sizeof *copy->sources);
    qn_err_t err =
        copy->sources ? copy_values(config, copy) : qn_fail(QN_ERR_NO_MEMORY, "no memory for the configuration");
    for (size_t i = 0; i < count && !err; i++) {
        *ret_at_fault = i;
        err = change(copy, keys[i], values[i], origin);
    }
    if (err)
        qn_config_free(&copy);
    else
        *ret_config = copy;
    return err;
}

const qn_config_values_t *qn_config_values(const qn_config_t *config) { return &config->values; }

const char *qn_config_origin(const qn_config_t *config, const char *key)
{
    int index = qn_config_key_index(key);
    return index < 0 ? NULL : config->sources[index].origin;
}

char *qn_config_get_text(const qn_config_t *config, const char *key)
{
    int index = qn_config_key_index(key);
    return index < 0 ? NULL : qn_config_value_text(&config->values, &config->keys[index]);
}

/* ---- the command line ---- */

static void print_help(const char *program)
{
    const char *base = strrchr(program, '/');
    printf("Usage: %s [--config FILE] [--set KEY=VALUE]... [--run-dir DIR]\n\n"
           "One of the five services of Quintet; `quintet up` starts and supervises all of them.\n\n"
           "  --config FILE     configuration (default: $QUINTET_CONFIG, else the built-in values)\n"
           "  --set KEY=VALUE   override one key; may be repeated, the last wins (quintet config keys lists them)\n"
           "  --run-dir DIR     directory of sockets, locks and statistics (run_dir)\n"
           "  --help            show this text\n"
           "  --version         show the build\n\n"
           "Environment: QUINTET_SCHEDULER_POLICY sets scheduler.policy, and so on for every key.\n"
           "Exit status: 0 after a clean stop, 64 for a wrong command line, 78 for a wrong configuration.\n",
           base ? base + 1 : program);
}

/* The value of option `name` at argv[*at], as "--name value" (moves *at) or "--name=value"; NULL: another option. */
static const char *option_value(int argc, char **argv, int *at, const char *name, qn_err_t *err)
{
    size_t length = strlen(name);
    const char *argument = argv[*at];
    if (strncmp(argument, name, length) != 0) return NULL;
    if (argument[length] == '=') return argument + length + 1;
    if (argument[length] != '\0') return NULL;
    if (*at + 1 >= argc) {
        *err = qn_fail(QN_ERR_INVALID, "%s needs a value", name);
        return NULL;
    }
    return argv[++*at];
}

/* Takes the option at argv[*at] into `arguments`. Returns false when it is not one of ours. */
static bool take_option(int argc, char **argv, int *at, qn_config_arguments_t *arguments, qn_err_t *err)
{
    const char *value;
    if ((value = option_value(argc, argv, at, "--config", err))) {
        arguments->path = value;
    } else if (!*err && (value = option_value(argc, argv, at, "--run-dir", err))) {
        arguments->run_dir = value;
    } else if (!*err && (value = option_value(argc, argv, at, "--set", err))) {
        if (arguments->set_count == QN_CONFIG_SETS_MAX) {
            *err = qn_fail(QN_ERR_INVALID, "more than %d times --set", QN_CONFIG_SETS_MAX);
        } else {
            arguments->sets[arguments->set_count++] = value;
        }
    }
    return value != NULL || *err != QN_OK;
}

/* An argument that is no option of ours, of a daemon: --help, --version, or a mistake. */
static qn_err_t take_other(const char *program, const char *argument)
{
    bool help = strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0;
    if (help)
        print_help(program);
    else if (strcmp(argument, "--version") == 0)
        printf("quintet %s\n", qn_build_id());
    else
        return qn_fail(QN_ERR_INVALID, "unknown argument %.100s; --help shows what there is", argument);
    exit(0);
}

qn_err_t qn_config_parse_arguments(int *argc, char **argv, bool keep_rest, qn_config_arguments_t *ret_arguments)
{
    qn_config_arguments_t arguments = {.path = getenv("QUINTET_CONFIG")};
    if (arguments.path && arguments.path[0] == '\0') arguments.path = NULL;
    int kept = 1;
    bool ended = false; /* by "--" */
    for (int i = 1; i < *argc; i++) {
        qn_err_t err = QN_OK;
        ended = ended || (keep_rest && strcmp(argv[i], "--") == 0);
        if (!ended && take_option(*argc, argv, &i, &arguments, &err)) {
            if (err) return err;
        } else if (keep_rest) {
            argv[kept++] = argv[i];
        } else if ((err = take_other(argv[0], argv[i]))) {
            return err;
        }
    }
    if (keep_rest) {
        *argc = kept;
        argv[kept] = NULL;
    }
    *ret_arguments = arguments;
    return QN_OK;
}

qn_err_t qn_config_from_arguments(int *argc, char **argv, bool keep_rest, qn_config_t **ret_config)
{
    qn_config_arguments_t arguments;
    qn_err_t err = qn_config_parse_arguments(argc, argv, keep_rest, &arguments);
    if (err) return err;
    return qn_config_load(arguments.path, arguments.sets, arguments.set_count, arguments.run_dir, ret_config);
}
