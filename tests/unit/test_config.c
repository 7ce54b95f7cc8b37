/* The configuration: layers, every message a bad file or variable gets, and the files made from the key table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/config/config.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static char directory[] = "/tmp/quintet-test-config-XXXXXX";
static char file_path[64];

static int make_directory(void **state)
{
    (void)state;
    if (!mkdtemp(directory) || chdir(directory) != 0) return -1;
    snprintf(file_path, sizeof file_path, "config.yaml");
    return 0;
}

static void write_bytes(const char *bytes, size_t length)
{
    FILE *file = fopen(file_path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    fclose(file);
}

static qn_config_t *load(const char *text, const char *const *sets, size_t set_count)
{
    qn_config_t *config = NULL;
    if (text) write_bytes(text, strlen(text));
    qn_err_t err = qn_config_load(text ? file_path : NULL, sets, set_count, "/tmp/run", &config);
    if (err) fail_msg("%s", qn_err_text());
    return config;
}

static void expect_failure(const char *text, size_t length, const char *expected)
{
    qn_config_t *config = NULL;
    write_bytes(text, length);
    assert_int_equal(qn_config_load(file_path, NULL, 0, NULL, &config), QN_ERR_CONFIG);
    assert_null(config);
    assert_string_equal(qn_err_text(), expected);
}

/* ---- values ---- */

static void test_config_without_file_has_the_defaults(void **state)
{
    (void)state;
    qn_config_t *config = load(NULL, NULL, 0);
    const qn_config_values_t *values = qn_config_values(config);
    assert_string_equal(values->frontend.listen, "127.0.0.1:8000");
    assert_int_equal(values->frontend.max_body_bytes, 8u << 20);
    assert_string_equal(values->scheduler.policy, "fcfs");
    assert_int_equal(values->scheduler.max_sequences, 64);
    assert_true(values->memory.prefix_cache);
    assert_string_equal(values->memory.kv_dtype, "auto");
    assert_string_equal(values->up.composed, "");
    assert_string_equal(qn_config_origin(config, "scheduler.policy"), "default");
    assert_null(qn_config_origin(config, "scheduler.nothing"));
    assert_null(qn_config_get_text(config, "scheduler.nothing"));
    qn_config_free(&config);
    assert_null(config);
    qn_config_free(&config);
}

static void test_config_layers_override_in_order(void **state)
{
    (void)state;
    const char *text = "scheduler:\n  max_sequences: 2\n  max_step_tokens: 20\n  queue_limit: 200\n";
    const char *const sets[] = {"scheduler.queue_limit=1", "scheduler.queue_limit=204"};
    setenv("QUINTET_SCHEDULER_MAX_STEP_TOKENS", "23", 1);
    setenv("QUINTET_SCHEDULER_QUEUE_LIMIT", "203", 1);
    qn_config_t *config = load(text, sets, COUNT(sets));
    unsetenv("QUINTET_SCHEDULER_MAX_STEP_TOKENS");
    unsetenv("QUINTET_SCHEDULER_QUEUE_LIMIT");
    const qn_config_values_t *values = qn_config_values(config);
    assert_int_equal(values->scheduler.max_sequences, 2);
    assert_int_equal(values->scheduler.max_step_tokens, 23);
    assert_int_equal(values->scheduler.queue_limit, 204);
    assert_int_equal(values->scheduler.lookahead, 1);
    assert_string_equal(values->run_dir, "/tmp/run");
    assert_string_equal(qn_config_origin(config, "scheduler.lookahead"), "default");
    assert_string_equal(qn_config_origin(config, "scheduler.max_sequences"), "config.yaml:2");
    assert_string_equal(qn_config_origin(config, "scheduler.max_step_tokens"),
                        "environment QUINTET_SCHEDULER_MAX_STEP_TOKENS");
    assert_string_equal(qn_config_origin(config, "scheduler.queue_limit"), "--set");
    assert_string_equal(qn_config_origin(config, "run_dir"), "--run-dir");
    qn_config_free(&config);
}

static void test_config_good_files_are_taken(void **state)
{
    (void)state;
    static const struct {
        const char *text, *key, *value;
    } cases[] = {
        {"", "scheduler.policy", "fcfs"},
        {"# nothing\n", "scheduler.policy", "fcfs"},
        {"---\n", "scheduler.policy", "fcfs"},
        {"scheduler:\n", "scheduler.policy", "fcfs"},
        {"scheduler: { policy: ./p.so }\n", "scheduler.policy", "./p.so"},
        {"\xef\xbb\xbfscheduler:\n  policy: \"a b\"\n", "scheduler.policy", "a b"},
        {"model:\r\n  id: 'caf\xc3\xa9'\r\n", "model.id", "caf\xc3\xa9"},
        {"model:\n  id: 7\n", "model.id", "7"},
        {"model: {path: /models/tiny//}\n", "model.id", "tiny"},
        {"model: {path: /models/tiny}\n", "tokenizer.path", "/models/tiny"},
        {"model: {seed: 9223372036854775807}\n", "model.seed", "9223372036854775807"},
        {"memory: {prefix_cache: false}\n", "memory.prefix_cache", "false"},
        {"memory: {kv_bytes: 3GiB}\n", "memory.kv_bytes", "3GiB"},
        {"memory: {kv_bytes: \"4097\"}\n", "memory.kv_bytes", "4097"},
        {"memory: {kv_bytes: 64TiB}\n", "memory.kv_bytes", "64TiB"},
        {"memory: {endpoint: 'tcp://10.0.0.1:9000'}\n", "memory.endpoint", "tcp://10.0.0.1:9000"},
        {"frontend: {listen: '[::1]:80'}\n", "frontend.listen", "[::1]:80"},
        {"frontend: {listen: 'unix:/tmp/q.sock'}\n", "frontend.listen", "unix:/tmp/q.sock"},
        {"frontend: {max_body_bytes: 1KiB}\n", "frontend.max_body_bytes", "1KiB"},
        {"up: {composed: 'scheduler,memory'}\n", "up.composed", "scheduler,memory"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        qn_config_t *config = load(cases[i].text, NULL, 0);
        char *value = qn_config_get_text(config, cases[i].key);
        assert_string_equal(value, cases[i].value);
        free(value);
        qn_config_free(&config);
    }
}

static void test_config_numbers_stop_at_their_limits(void **state)
{
    (void)state;
    static const struct {
        const char *set;
        bool good;
    } cases[] = {
        {"scheduler.max_sequences=1", true},
        {"scheduler.max_sequences=0", false},
        {"scheduler.max_sequences=1024", true},
        {"scheduler.max_sequences=1025", false},
        {"scheduler.lookahead=1", true},
        {"scheduler.lookahead=2", false},
        {"frontend.max_body_bytes=8MiB", true},
        {"frontend.max_body_bytes=8388609", false},
        {"frontend.max_body_bytes=1024", true},
        {"frontend.max_body_bytes=1023", false},
        {"model.seed=9223372036854775807", true},
        {"model.seed=9223372036854775808", false},
        {"model.seed=18446744073709551616", false},
        {"model.seed=0", true},
        {"memory.kv_bytes=64TiB", true},
        {"memory.kv_bytes=16777216TiB", false},
        {"memory.kv_bytes=1.5GiB", false},
        {"memory.kv_bytes=1GB", false},
        {"scheduler.lookahead=", false},
        {"scheduler.lookahead= 1", false},
        {"scheduler.lookahead=+1", false},
        {"scheduler.lookahead=0x1", false},
        {"memory.prefix_cache=yes", false},
        {"memory.prefix_cache=true", true},
        {"frontend.listen=:8000", true},
        {"memory.endpoint=tcp://:1", false},
        {"frontend.listen=a:65535", true},
        {"frontend.listen=a:65536", false},
        {"frontend.listen=::1:80", false},
        {"frontend.listen=unix:", false},
        {"compute.endpoint=ipc://x", false},
        {"up.composed=frontend,", false},
        {"up.composed=all,memory", false},
        {"model.load_format=auto|dummy", false},
        {"model.load_format=", false},
        {"=1", false},
        {"scheduler", false},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        qn_config_t *config = NULL;
        qn_err_t err = qn_config_load(NULL, &cases[i].set, 1, "/tmp/run", &config);
        if (err != (cases[i].good ? QN_OK : QN_ERR_CONFIG)) fail_msg("--set %s: %s", cases[i].set, qn_err_text());
        qn_config_free(&config);
    }
}

/* ---- failures ---- */

static void test_config_bad_file_is_refused_with_line_and_remedy(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"model:\n  seed: 1\nscheduler:\n  polcy: fcfs\n",
         "config.yaml:4: unknown key scheduler.polcy; did you mean scheduler.policy?"},
        {"policy: fcfs\n", "config.yaml:1: unknown key policy; did you mean scheduler.policy?"},
        {"memory:\n  lookahead: 1\n", "config.yaml:2: unknown key memory.lookahead; did you mean scheduler.lookahead?"},
        {"memory:\n  quite_different: 1\n",
         "config.yaml:2: unknown key memory.quite_different; quintet config keys lists them"},
        {"schedular:\n  policy: fcfs\n", "config.yaml:1: unknown section schedular; did you mean scheduler?"},
        {"gpu:\n  policy: fcfs\n", "config.yaml:1: unknown section gpu; see quintet config keys"},
        {"scheduler:\n  lookahead: 1\n  policy: fcfs\n  lookahead: 1\n",
         "config.yaml:4: scheduler.lookahead appears twice (first in line 2)"},
        {"scheduler:\n  lookahead: 1\nmemory:\nscheduler:\n  policy: fcfs\n",
         "config.yaml:4: section scheduler appears twice (first in line 1)"},
        {"scheduler:\n  lookahead: many\n", "config.yaml:2: scheduler.lookahead must be a whole number, not \"many\""},
        {"scheduler:\n  lookahead: \"1\"\n",
         "config.yaml:2: scheduler.lookahead must be a number, not text; write it without quotes"},
        {"memory:\n  prefix_cache: yes\n", "config.yaml:2: memory.prefix_cache must be true or false, not \"yes\""},
        {"memory:\n  prefix_cache: \"true\"\n",
         "config.yaml:2: memory.prefix_cache must be true or false, not text; write it without quotes"},
        {"memory:\n  kv_bytes: 2GB\n",
         "config.yaml:2: memory.kv_bytes must be a number of bytes, as 4096, 64KiB or 2GiB, not \"2GB\""},
        {"frontend:\n  max_body_bytes: 1GiB\n",
         "config.yaml:2: frontend.max_body_bytes must be from 1KiB to 8MiB, not 1GiB"},
        {"scheduler:\n  max_sequences: 0\n", "config.yaml:2: scheduler.max_sequences must be from 1 to 1024, not 0"},
        {"memory:\n  kv_dtype: f16\n", "config.yaml:2: memory.kv_dtype must be one of auto|f32|bf16, not \"f16\""},
        {"frontend:\n  listen: 8000\n",
         "config.yaml:2: frontend.listen must be host:port, [v6]:port, :port or unix:PATH, not \"8000\""},
        {"memory:\n  endpoint: ipc:///tmp/x\n",
         "config.yaml:2: memory.endpoint must be ipc or tcp://host:port, not \"ipc:///tmp/x\""},
        {"model:\n  path:\n",
         "config.yaml:2: model.path has no value; write one (\"\" is the empty text) or remove the line"},
        {"model:\n  path: ~\n",
         "config.yaml:2: model.path has no value; write one (\"\" is the empty text) or remove the line"},
        {"model:\n  path: \"a\\0b\"\n", "config.yaml:2: model.path must be without control characters"},
        {"model:\n  id: \"a\\tb\"\n", "config.yaml:2: model.id must be without control characters, not \"a\tb\""},
        {"model: tiny\n", "config.yaml:1: model is a section: write its keys below it, indented"},
        {"model:\n  path: [a, b]\n", "config.yaml:2: model.path takes one value, not a list"},
        {"model:\n  path:\n    deep: 1\n", "config.yaml:2: model.path takes one value, not a section"},
        {"model:\n  ? [a]\n  : 1\n", "config.yaml:2: a key must be a word"},
        {"- model\n", "config.yaml:1: expected sections, as \"scheduler:\", and keys below them"},
        {"just words\n", "config.yaml:1: expected sections, as \"scheduler:\", and keys below them"},
        {"model: &m\n  id: a\n", "config.yaml:1: anchors and aliases are not allowed; write the value"},
        {"model:\n  id: &m a\n", "config.yaml:2: anchors and aliases are not allowed; write the value"},
        {"model:\n  id: *m\n", "config.yaml:2: anchors and aliases are not allowed; write the value"},
        {"model:\n  id: !!str a\n", "config.yaml:2: tags (!) are not allowed; write the value"},
        {"model:\n  <<: a\n", "config.yaml:2: unknown key model.<<; quintet config keys lists them"},
        {"model:\n\tid: a\n", "config.yaml:2: indented with a tab; use spaces"},
        {"model:\n  id: a\n---\nmodel:\n  id: b\n",
         "config.yaml:3: a second document begins here; a configuration is one"},
        {"model:\n  id: \xff\xfe\n", "config.yaml:2: not UTF-8 text: invalid leading UTF-8 octet"},
        {"model:\n  id: a\n\n  path: \xc3(\n", "config.yaml:4: not UTF-8 text: invalid trailing UTF-8 octet"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        expect_failure(cases[i].text, strlen(cases[i].text), cases[i].message);
    }
    expect_failure("model:\n  id: a\0b\n", 17, "config.yaml:2: not UTF-8 text: control characters are not allowed");
}

static void test_config_broken_yaml_names_its_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *begin;
    } cases[] = {
        {"model:\n  id: \"a\n", "config.yaml:"},
        {"model:\n  id: a: b\n", "config.yaml:2: not YAML: "},
        {"model:\n   id: a\n  path: b\n", "config.yaml:3: not YAML: "},
        {"model: {id: a\n", "config.yaml:2: not YAML: "},
        {"model:\n  id: @a\n", "config.yaml:2: not YAML: "},
        {"%YAML 9.9\n---\nmodel:\n", "config.yaml:1: not YAML: "},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        qn_config_t *config = NULL;
        write_bytes(cases[i].text, strlen(cases[i].text));
        assert_int_equal(qn_config_load(file_path, NULL, 0, NULL, &config), QN_ERR_CONFIG);
        if (strncmp(qn_err_text(), cases[i].begin, strlen(cases[i].begin)) != 0) {
            fail_msg("%s: \"%s\"", cases[i].text, qn_err_text());
        }
    }
}

static void test_config_every_truncation_of_the_default_file_is_judged(void **state)
{
    (void)state;
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    assert_non_null(stream);
    qn_config_print_yaml(stream);
    fclose(stream);
    for (size_t cut = 0; cut <= length; cut++) {
        qn_config_t *config = NULL;
        write_bytes(text, cut);
        qn_err_t err = qn_config_load(file_path, NULL, 0, NULL, &config);
        assert_true(err == QN_OK || err == QN_ERR_CONFIG);
        qn_config_free(&config);
    }
    free(text);
}

static void test_config_missing_or_huge_file_is_refused(void **state)
{
    (void)state;
    qn_config_t *config = NULL;
    assert_int_equal(qn_config_load("absent.yaml", NULL, 0, NULL, &config), QN_ERR_CONFIG);
    assert_string_equal(qn_err_text(), "absent.yaml: No such file or directory");
    assert_int_equal(qn_config_load("/tmp", NULL, 0, NULL, &config), QN_ERR_CONFIG);
    char *text = malloc((1u << 20) + 1);
    assert_non_null(text);
    memset(text, '\n', (1u << 20) + 1);
    write_bytes(text, 1u << 20);
    assert_int_equal(qn_config_load(file_path, NULL, 0, NULL, &config), QN_OK);
    qn_config_free(&config);
    expect_failure(text, (1u << 20) + 1, "config.yaml: more than 1048576 bytes; is it the right file?");
    free(text);
}

static void test_config_environment_knows_keys_and_ignores_the_rest(void **state)
{
    (void)state;
    static const struct {
        const char *name, *value, *message;
    } cases[] = {
        {"QUINTET_URL", "http://x", NULL},
        {"QUINTET_FRONTEND_SERVICE_HOST", "10.0.0.1", NULL},
        {"QUINTET_FRONTEND_PORT", "tcp://10.0.0.1:8000", NULL},
        {"QUINTET_FRONTEND_PORT_8000_TCP_ADDR", "10.0.0.1", NULL},
        {"QUINTET_SOMETHING_ELSE", "1", NULL},
        {"NOT_QUINTET_SCHEDULER_POLCY", "1", NULL},
        {"QUINTET_SCHEDULER_POLCY", "fcfs",
         "environment QUINTET_SCHEDULER_POLCY: unknown key; did you mean QUINTET_SCHEDULER_POLICY?"},
        {"QUINTET_RUNDIR", "/x", "environment QUINTET_RUNDIR: unknown key; did you mean QUINTET_RUN_DIR?"},
        {"QUINTET_MEMORY_SOMETHING", "1",
         "environment QUINTET_MEMORY_SOMETHING: unknown key; unset it, or see quintet config keys"},
        {"QUINTET_SCHEDULER_LOOKAHEAD", "2",
         "environment QUINTET_SCHEDULER_LOOKAHEAD: scheduler.lookahead must be from 0 to 1, not 2"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        qn_config_t *config = NULL;
        setenv(cases[i].name, cases[i].value, 1);
        qn_err_t err = qn_config_load(NULL, NULL, 0, "/tmp/run", &config);
        unsetenv(cases[i].name);
        assert_int_equal(err, cases[i].message ? QN_ERR_CONFIG : QN_OK);
        if (cases[i].message) assert_string_equal(qn_err_text(), cases[i].message);
        qn_config_free(&config);
    }
}

static void test_config_bad_set_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *set, *message;
    } cases[] = {
        {"scheduler.polcy=x", "--set scheduler.polcy=x: unknown key scheduler.polcy; did you mean scheduler.policy?"},
        {"lookahead=1", "--set lookahead=1: unknown key lookahead; did you mean scheduler.lookahead?"},
        {"scheduler.policy", "--set scheduler.policy: expected key=value, as --set scheduler.max_sequences=16"},
        {"scheduler.lookahead=9", "--set scheduler.lookahead=9: scheduler.lookahead must be from 0 to 1, not 9"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        qn_config_t *config = NULL;
        assert_int_equal(qn_config_load(NULL, &cases[i].set, 1, NULL, &config), QN_ERR_CONFIG);
        assert_string_equal(qn_err_text(), cases[i].message);
    }
}

static void test_config_run_dir_is_bounded(void **state)
{
    (void)state;
    char longest[82];
    memset(longest, 'a', 81);
    longest[0] = '/';
    longest[81] = '\0';
    qn_config_t *config = NULL;
    assert_int_equal(qn_config_load(NULL, NULL, 0, longest, &config), QN_ERR_CONFIG);
    assert_non_null(strstr(qn_err_text(), "run_dir has 81 bytes and may have 80"));
    longest[80] = '\0';
    assert_int_equal(qn_config_load(NULL, NULL, 0, longest, &config), QN_OK);
    assert_string_equal(qn_config_values(config)->run_dir, longest);
    qn_config_free(&config);
    assert_int_equal(qn_config_load(NULL, NULL, 0, NULL, &config), QN_OK);
    assert_string_equal(qn_config_values(config)->run_dir, "");
    qn_config_free(&config);
}

/* ---- suggestions, arguments ---- */

static void test_config_suggest_takes_near_keys_only(void **state)
{
    (void)state;
    static const struct {
        const char *key, *nearest;
    } cases[] = {
        {"scheduler.policy", "scheduler.policy"},
        {"scheduler.poilcy", "scheduler.policy"},
        {"sheduler.policy", "scheduler.policy"},
        {"memory.kvbytes", "memory.kv_bytes"},
        {"rundir", "run_dir"},
        {"listen", "frontend.listen"},
        {"completely.other", NULL},
        {"", NULL},
        {"x", NULL},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const char *nearest = qn_config_suggest(cases[i].key);
        if (cases[i].nearest)
            assert_string_equal(nearest, cases[i].nearest);
        else
            assert_null(nearest);
    }
}

static void test_config_arguments_are_taken_and_the_rest_kept(void **state)
{
    (void)state;
    write_bytes("model:\n  seed: 5\n", 17);
    char *argv[] = {"quintet",   "up",         "--config=config.yaml",
                    "--inproc",  "--set",      "log.level=debug",
                    "--run-dir", "/tmp/other", "--",
                    "--set",     NULL};
    int argc = (int)COUNT(argv) - 1;
    qn_config_t *config = NULL;
    assert_int_equal(qn_config_from_arguments(&argc, argv, true, &config), QN_OK);
    assert_int_equal(argc, 5);
    assert_string_equal(argv[1], "up");
    assert_string_equal(argv[2], "--inproc");
    assert_string_equal(argv[3], "--");
    assert_string_equal(argv[4], "--set");
    assert_null(argv[5]);
    assert_int_equal(qn_config_values(config)->model.seed, 5);
    assert_string_equal(qn_config_values(config)->log.level, "debug");
    assert_string_equal(qn_config_values(config)->run_dir, "/tmp/other");
    qn_config_free(&config);
}

static void test_config_arguments_unknown_or_without_value_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *argument, *message;
    } cases[] = {
        {"--confg", "unknown argument --confg; --help shows what there is"},
        {"--set", "--set needs a value"},
        {"--run-dir", "--run-dir needs a value"},
        {"extra", "unknown argument extra; --help shows what there is"},
        {"--configuration", "unknown argument --configuration; --help shows what there is"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char *argv[] = {"quintet-memory", (char *)(uintptr_t)cases[i].argument, NULL};
        int argc = 2;
        qn_config_t *config = NULL;
        assert_int_equal(qn_config_from_arguments(&argc, argv, false, &config), QN_ERR_INVALID);
        assert_string_equal(qn_err_text(), cases[i].message);
    }
}

/* ---- what is made from the table ---- */

static void test_config_table_is_consistent(void **state)
{
    (void)state;
    size_t count;
    const qn_config_key_t *keys = qn_config_keys(&count);
    for (size_t i = 0; i < count; i++) {
        size_t help = strlen(keys[i].help);
        assert_true(help > 10 && keys[i].help[help - 1] == '.');
        assert_true(keys[i].kind != QN_CONFIG_COUNT || keys[i].max > keys[i].min);
        for (size_t j = 0; j < i; j++) {
            char a[128], b[128];
            qn_config_environment_name(keys[i].key, a, sizeof a);
            qn_config_environment_name(keys[j].key, b, sizeof b);
            assert_string_not_equal(a, b);
            assert_int_not_equal(keys[i].offset, keys[j].offset);
        }
    }
    assert_true(qn_config_names_service("all", "memory"));
    assert_true(qn_config_names_service("scheduler,memory", "memory"));
    assert_false(qn_config_names_service("scheduler,memory", "mem"));
    assert_false(qn_config_names_service("", "memory"));
}

static void test_config_default_file_loads_and_changes_nothing(void **state)
{
    (void)state;
    FILE *file = fopen(file_path, "wb");
    assert_non_null(file);
    qn_config_print_yaml(file);
    fclose(file);
    qn_config_t *plain = NULL, *loaded = NULL;
    assert_int_equal(qn_config_load(NULL, NULL, 0, NULL, &plain), QN_OK);
    assert_int_equal(qn_config_load(file_path, NULL, 0, NULL, &loaded), QN_OK);
    size_t count;
    const qn_config_key_t *keys = qn_config_keys(&count);
    for (size_t i = 0; i < count; i++) {
        char *a = qn_config_get_text(plain, keys[i].key), *b = qn_config_get_text(loaded, keys[i].key);
        assert_string_equal(a, b);
        free(a);
        free(b);
    }
    qn_config_free(&plain);
    qn_config_free(&loaded);
}

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s is missing; run this test from the top of the source tree", path);
    char *text = calloc(1, 1u << 16);
    assert_non_null(text);
    size_t length = fread(text, 1, (1u << 16) - 1, file);
    fclose(file);
    text[length] = '\0';
    return text;
}

static char *shipped_file;

static void test_config_shipped_file_is_what_the_table_prints(void **state)
{
    (void)state;
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    assert_non_null(stream);
    qn_config_print_yaml(stream);
    fclose(stream);
    assert_string_equal(shipped_file, text);
    free(text);
}

static int remove_directory(void **state)
{
    (void)state;
    free(shipped_file);
    unlink(file_path);
    return rmdir(directory);
}

static void test_config_change_of_live_keys_makes_a_new_object(void **state)
{
    (void)state;
    qn_config_t *config = NULL, *changed = NULL;
    const char *sets[] = {"scheduler.policy=priority"};
    const char *keys[] = {"frontend.mode", "frontend.default_max_tokens"}, *values[] = {"research", "7"};
    size_t at = 9;
    assert_int_equal(qn_config_load(NULL, sets, 1, NULL, &config), QN_OK);
    assert_int_equal(qn_config_change(config, keys, values, 2, "set live", &changed, &at), QN_OK);
    assert_string_equal(qn_config_values(changed)->frontend.mode, "research");
    assert_int_equal(qn_config_values(changed)->frontend.default_max_tokens, 7);
    assert_string_equal(qn_config_values(changed)->scheduler.policy, "priority");
    assert_string_equal(qn_config_origin(changed, "frontend.mode"), "set live");
    assert_string_equal(qn_config_origin(changed, "scheduler.policy"), qn_config_origin(config, "scheduler.policy"));
    assert_string_equal(qn_config_values(config)->frontend.mode, "production");
    qn_config_free(&changed);
    qn_config_free(&config);
}

static void test_config_change_that_cannot_be_names_the_key(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value, *words;
        qn_err_t err;
    } cases[] = {
        {"scheduler.policy", "fcfs", "scheduler.policy cannot change while the services run", QN_ERR_UNSUPPORTED},
        {"frontend.mod", "research", "did you mean frontend.mode?", QN_ERR_CONFIG},
        {"frontend.mode", "loud", "frontend.mode", QN_ERR_CONFIG},
        {"frontend.default_max_tokens", "-1", "frontend.default_max_tokens", QN_ERR_CONFIG},
    };
    qn_config_t *config = NULL;
    assert_int_equal(qn_config_load(NULL, NULL, 0, NULL, &config), QN_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *keys[] = {"frontend.mode", cases[i].key}, *values[] = {"research", cases[i].value};
        qn_config_t *changed = NULL;
        size_t at = 9;
        assert_int_equal(qn_config_change(config, keys, values, 2, "set live", &changed, &at), cases[i].err);
        assert_null(changed);
        assert_int_equal(at, 1);
        if (!strstr(qn_err_text(), cases[i].words)) fail_msg("%s: %s", cases[i].key, qn_err_text());
    }
    qn_config_free(&config);
}

int main(void)
{
    shipped_file = read_file("config.yaml");
    for (size_t i = 0, count; i < (qn_config_keys(&count), count); i++) {
        char name[128];
        qn_config_environment_name(qn_config_keys(&count)[i].key, name, sizeof name);
        unsetenv(name); /* what the developer has set must not decide the tests */
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_without_file_has_the_defaults),
        cmocka_unit_test(test_config_layers_override_in_order),
        cmocka_unit_test(test_config_good_files_are_taken),
        cmocka_unit_test(test_config_numbers_stop_at_their_limits),
        cmocka_unit_test(test_config_bad_file_is_refused_with_line_and_remedy),
        cmocka_unit_test(test_config_broken_yaml_names_its_line),
        cmocka_unit_test(test_config_every_truncation_of_the_default_file_is_judged),
        cmocka_unit_test(test_config_missing_or_huge_file_is_refused),
        cmocka_unit_test(test_config_environment_knows_keys_and_ignores_the_rest),
        cmocka_unit_test(test_config_bad_set_is_refused),
        cmocka_unit_test(test_config_run_dir_is_bounded),
        cmocka_unit_test(test_config_suggest_takes_near_keys_only),
        cmocka_unit_test(test_config_arguments_are_taken_and_the_rest_kept),
        cmocka_unit_test(test_config_arguments_unknown_or_without_value_are_refused),
        cmocka_unit_test(test_config_table_is_consistent),
        cmocka_unit_test(test_config_default_file_loads_and_changes_nothing),
        cmocka_unit_test(test_config_shipped_file_is_what_the_table_prints),
        cmocka_unit_test(test_config_change_of_live_keys_makes_a_new_object),
        cmocka_unit_test(test_config_change_that_cannot_be_names_the_key),
    };
    return cmocka_run_group_tests_name("config", tests, make_directory, remove_directory);
}
