/* What is this?      `quintet config`: shows keys, values in force and where they come from; checks files.
 * State owned:       none.
 * Must never:        talk to a running service: it answers for what would be started.
 * Read next:         common/config/config.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "common/config/config.h"
#include "tools/cli.h"

typedef struct {
    bool origin, json, markdown, yaml;
} flags_t;

/* A value as JSON: numbers and booleans as such. Returns owned. */
static json_t *value_json(const qn_config_key_t *key, const qn_config_values_t *values)
{
    const char *field = (const char *)values + key->offset;
    switch (key->kind) {
    case QN_CONFIG_COUNT:
    case QN_CONFIG_BYTES: return json_integer((json_int_t) * (const uint64_t *)(const void *)field);
    case QN_CONFIG_BOOL: return json_boolean(*(const bool *)(const void *)field);
    default: return json_string(*(char *const *)(const void *)field);
    }
}

/* The value, or {"value", "origin"}. Returns owned. */
static json_t *entry_json(const qn_config_t *config, const qn_config_key_t *key, bool origin)
{
    json_t *value = value_json(key, qn_config_values(config));
    return origin ? json_pack("{s:o, s:s}", "value", value, "origin", qn_config_origin(config, key->key)) : value;
}

static void show_json(const qn_config_t *config, bool origin)
{
    size_t count;
    const qn_config_key_t *keys = qn_config_keys(&count);
    json_t *all = json_object();
    for (size_t i = 0; i < count; i++)
        json_object_set_new(all, keys[i].key, entry_json(config, &keys[i], origin));
    cli_print_json(all);
    json_decref(all);
}

static int show(const qn_config_t *config, const flags_t *flags)
{
    size_t count;
    const qn_config_key_t *keys = qn_config_keys(&count);
    if (flags->json) {
        show_json(config, flags->origin);
        return cli_finish_output();
    }
    for (size_t i = 0; i < count; i++) {
        char *value = qn_config_get_text(config, keys[i].key);
        const char *quote = value[0] == '\0' || strpbrk(value, " :#\"") ? "\"" : "";
        int used = printf("%s: %s%s%s", keys[i].key, quote, value, quote);
        if (flags->origin) printf("%*s  # %s", used < 48 ? 48 - used : 0, "", qn_config_origin(config, keys[i].key));
        putchar('\n');
        free(value);
    }
    return cli_finish_output();
}

static int get(const qn_config_t *config, const flags_t *flags, const char *name)
{
    size_t count;
    const qn_config_key_t *keys = qn_config_keys(&count);
    for (size_t i = 0; i < count; i++) {
        if (strcmp(keys[i].key, name) != 0) continue;
        if (flags->json) {
            json_t *value = entry_json(config, &keys[i], flags->origin);
            cli_print_json(value);
            json_decref(value);
        } else {
            char *value = qn_config_get_text(config, name);
            printf("%s", value);
            if (flags->origin) printf("  # %s", qn_config_origin(config, name));
            putchar('\n');
            free(value);
        }
        return cli_finish_output();
    }
    const char *suggestion = qn_config_suggest(name);
    if (suggestion) return cli_usage("unknown key %s; did you mean %s?", name, suggestion);
    return cli_usage("unknown key %s; quintet config keys lists them", name);
}

static int check(const flags_t *flags, const char *path)
{
    qn_config_t *config = NULL;
    qn_err_t err = qn_config_load(path, NULL, 0, NULL, &config);
    qn_config_free(&config);
    if (flags->json) {
        json_t *answer =
            json_pack("{s:s, s:b, s:s*}", "file", path, "ok", err == QN_OK, "error", err ? qn_err_text() : NULL);
        cli_print_json(answer);
        json_decref(answer);
    } else if (!err) {
        printf("%s: ok\n", path);
    } else {
        return cli_fail_err(err);
    }
    int status = cli_finish_output();
    return status ? status : qn_err_exit_status(err);
}

static json_t *key_json(const qn_config_key_t *key)
{
    static const char *const kinds[] = {
        [QN_CONFIG_STRING] = "text",       [QN_CONFIG_COUNT] = "count",    [QN_CONFIG_BYTES] = "bytes",
        [QN_CONFIG_BOOL] = "bool",         [QN_CONFIG_LISTEN] = "address", [QN_CONFIG_ENDPOINT] = "endpoint",
        [QN_CONFIG_SERVICES] = "services",
    };
    json_t *row = json_pack("{s:s, s:s, s:s, s:s}", "key", key->key, "kind", kinds[key->kind], "default",
                            key->default_text, "help", key->help);
    if (key->choices) json_object_set_new(row, "choices", json_string(key->choices));
    if (key->kind == QN_CONFIG_COUNT || key->kind == QN_CONFIG_BYTES) {
        json_object_set_new(row, "min", json_integer((json_int_t)key->min));
        json_object_set_new(row, "max", json_integer((json_int_t)key->max));
    }
    return row;
}

static int keys_command(const flags_t *flags)
{
    size_t count;
    const qn_config_key_t *keys = qn_config_keys(&count);
    json_t *rows = flags->json ? json_array() : NULL;
    if (flags->markdown)
        qn_config_print_markdown(stdout);
    else if (flags->yaml)
        qn_config_print_yaml(stdout);
    else {
        for (size_t i = 0; i < count; i++) {
            if (rows)
                json_array_append_new(rows, key_json(&keys[i]));
            else
                printf("%-32s %-16s %s\n", keys[i].key, keys[i].default_text[0] ? keys[i].default_text : "\"\"",
                       keys[i].help);
        }
    }
    if (rows) cli_print_json(rows);
    json_decref(rows);
    return cli_finish_output();
}

static int run_with_config(const qn_config_arguments_t *arguments, const flags_t *flags, const char *key)
{
    qn_config_t *config = NULL;
    qn_err_t err = qn_config_load(arguments->path, arguments->sets, arguments->set_count, arguments->run_dir, &config);
    if (err) return cli_fail_err(err);
    int status = key ? get(config, flags, key) : show(config, flags);
    qn_config_free(&config);
    return status;
}

/* -1, or the status of a usage error: an option that would do nothing is a mistake. */
static int check_flags(const flags_t *flags, const qn_config_arguments_t *arguments, const char *verb)
{
    bool is_keys = strcmp(verb, "keys") == 0, is_check = strcmp(verb, "check") == 0;
    if (flags->origin && (is_keys || is_check)) return cli_usage("--origin is for show and get");
    if ((flags->markdown || flags->yaml) && !is_keys) return cli_usage("--markdown and --yaml are for keys");
    if (flags->markdown + flags->yaml + (is_keys && flags->json) > 1)
        return cli_usage("give one of --json, --markdown and --yaml");
    if ((is_keys || is_check) && arguments->set_count > 0) return cli_usage("--set is for show and get");
    return -1;
}

int cmd_config(int argc, char **argv)
{
    flags_t flags = {0};
    const cli_option_t options[] = {
        {.name = "origin", .kind = CLI_FLAG, .value = &flags.origin, .help = "tell where each value comes from"},
        {.name = "json", .letter = 'j', .kind = CLI_FLAG, .value = &flags.json, .help = "answer in JSON"},
        {.name = "markdown", .kind = CLI_FLAG, .value = &flags.markdown, .help = "keys: as a Markdown table"},
        {.name = "yaml", .kind = CLI_FLAG, .value = &flags.yaml, .help = "keys: as the default config.yaml"},
    };
    qn_config_arguments_t arguments;
    const cli_command_t command = {
        .name = "config",
        .arguments = "show | get KEY | check FILE | keys",
        .summary = "Shows configuration keys, values and where they come from.",
        .details = "show         every key with the value that quintet up would use\n"
                   "get KEY      one value\n"
                   "check FILE   is the file right? 0, or 78 with line and remedy\n"
                   "keys         every key with its default and meaning\n",
        .options = options,
        .option_count = sizeof options / sizeof options[0],
        .configuration = &arguments,
    };
    int done = cli_parse(&command, &argc, argv);
    if (done >= 0) return done;
    const char *verb = argc > 1 ? argv[1] : "show";
    int operands = argc > 2 ? argc - 2 : 0;
    done = check_flags(&flags, &arguments, verb);
    if (done >= 0) return done;
    if (strcmp(verb, "show") == 0 && operands == 0) return run_with_config(&arguments, &flags, NULL);
    if (strcmp(verb, "get") == 0 && operands == 1) return run_with_config(&arguments, &flags, argv[2]);
    if (strcmp(verb, "check") == 0 && operands == 1) return check(&flags, argv[2]);
    if (strcmp(verb, "keys") == 0 && operands == 0) return keys_command(&flags);
    return cli_usage("expected show, get KEY, check FILE or keys");
}
