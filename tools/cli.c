/* What is this?      Options, messages and small input and output for the subcommands of `quintet`.
 * State owned:       the name of the running subcommand, for messages.
 * Must never:        know a subcommand.
 * Read next:         main.c (dispatch), cmd_generate.c (a typical subcommand). */
#include "tools/cli.h"

#include "common/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sysexits.h>
#include <unistd.h>

#include "common/config/suggest.h"

static const char *running = NULL;

/* ---- messages ---- */

/* --json was given: whoever reads standard output gets failures there, too. */
static bool wants_json = false;

/* {"error": {"message", "exit_status", "server"}}; `server` (may be NULL) is what the server said. */
static void print_json_error(int status, const char *message, const json_t *server)
{
    json_t *error = json_pack("{s:o, s:i}", "message", cli_text_json(message), "exit_status", status);
    if (server) json_object_set(error, "server", (json_t *)(uintptr_t)server);
    json_t *all = json_pack("{s:o}", "error", error);
    cli_print_json(all);
    json_decref(all);
    fflush(stdout);
}

static void print_message(int status, const json_t *server, const char *format, va_list arguments)
{
    char text[QN_ERR_TEXT_MAX * 8];
    vsnprintf(text, sizeof text, format, arguments);
    fflush(stdout);
    fprintf(stderr, "quintet%s%s: %s\n", running ? " " : "", running ? running : "", text);
    if (wants_json && status != EX_OK) print_json_error(status, text, server);
}

int cli_fail(int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_message(status, NULL, format, arguments);
    va_end(arguments);
    return status;
}

int cli_fail_server(int status, const json_t *server, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_message(status, server, format, arguments);
    va_end(arguments);
    return status;
}

int cli_usage(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_message(EX_USAGE, NULL, format, arguments);
    va_end(arguments);
    fprintf(stderr, "try: quintet %s%s--help\n", running ? running : "", running ? " " : "");
    return EX_USAGE;
}

int cli_fail_err(qn_err_t err) { return cli_fail(qn_err_exit_status(err), "%s", qn_err_text()); }

/* ---- suggestions ---- */

const char *cli_nearest(const char *word, const char *const *words, size_t count)
{
    const char *nearest = NULL;
    unsigned least = QN_SUGGEST_DISTANCE_MAX + 1;
    for (size_t i = 0; i < count; i++) {
        unsigned distance = qn_edit_distance(word, words[i]);
        if (distance < least && distance * 2 < strlen(words[i])) {
            least = distance;
            nearest = words[i];
        }
    }
    return nearest;
}

/* ---- options ---- */

static void print_help(const cli_command_t *command)
{
    printf("usage: quintet %s %s\n\n%s\n\noptions:\n", command->name, command->arguments, command->summary);
    for (size_t i = 0; i < command->option_count; i++) {
        const cli_option_t *option = &command->options[i];
        char left[80], letter[8] = "    ";
        if (option->letter) snprintf(letter, sizeof letter, "-%c, ", option->letter);
        snprintf(left, sizeof left, "  %s--%s%s%s", letter, option->name, option->argument ? " " : "",
                 option->argument ? option->argument : "");
        printf("%-28s %s\n", left, option->help);
    }
    printf("%-28s %s\n", "  -h, --help", "this text");
    if (command->configuration)
        printf("\nconfiguration:\n"
               "      --config FILE          configuration (default: $QUINTET_CONFIG, else the built-in values)\n"
               "      --set KEY=VALUE        override one key; may be repeated, the last wins (quintet config keys)\n"
               "      --run-dir DIR          directory of sockets, locks and statistics (run_dir)\n");
    if (command->details) printf("\n%s\n", command->details);
}

static int unknown_option(const cli_command_t *command, const char *text)
{
    const char *names[68];
    size_t count = 0;
    for (; count < command->option_count && count < 64; count++)
        names[count] = command->options[count].name;
    names[count++] = "help";
    if (command->configuration) {
        names[count++] = "config";
        names[count++] = "set";
        names[count++] = "run-dir";
    }
    size_t length = strcspn(text, "=");
    char word[QN_NAME_MAX + 1];
    snprintf(word, sizeof word, "%.*s", (int)(length < QN_NAME_MAX ? length : QN_NAME_MAX), text);
    const char *nearest = cli_nearest(word, names, count);
    if (nearest) return cli_usage("unknown option --%s; did you mean --%s?", word, nearest);
    return cli_usage("unknown option --%s", word);
}

static bool outside(const cli_option_t *option, double value)
{
    return (option->min != 0 || option->max != 0) && !(value >= option->min && value <= option->max);
}

/* Stores `text` in a COUNT or NUMBER option; -1, or the status of a usage error. */
static int store_number(const cli_option_t *option, const char *text)
{
    char *end = NULL;
    errno = 0;
    double number = 0;
    if (option->kind == CLI_NUMBER) {
        number = strtod(text, &end);
    } else {
        unsigned long long count = strtoull(text, &end, 10);
        number = (double)count;
        if (end != text && !*end && !errno && text[0] >= '0' && text[0] <= '9' && !outside(option, number)) {
            *(uint64_t *)option->value = count;
            return -1;
        }
    }
    bool bad = end == text || *end || errno || !isfinite(number);
    if (option->kind == CLI_NUMBER && !bad && !outside(option, number)) {
        *(double *)option->value = number;
        return -1;
    }
    const char *what = option->kind == CLI_NUMBER ? "a number" : "a whole number";
    if (option->min != 0 || option->max != 0)
        return cli_usage("--%s wants %s from %.15g to %.15g, not \"%s\"", option->name, what, option->min, option->max,
                         text);
    return cli_usage("--%s wants %s, not \"%s\"", option->name, what, text);
}

/* -1, or the status of a usage error. `text` is NULL for a flag. */
static int store(const cli_option_t *option, const char *text)
{
    if (option->given) *option->given = true;
    switch (option->kind) {
    case CLI_FLAG: *(bool *)option->value = true; return -1;
    case CLI_TEXT: *(const char **)option->value = text; return -1;
    case CLI_TEXTS: {
        cli_texts_t *texts = option->value;
        if (texts->count == CLI_TEXTS_MAX)
            return cli_usage("--%s may be given %d times at most", option->name, CLI_TEXTS_MAX);
        texts->items[texts->count++] = text;
        return -1;
    }
    case CLI_COUNT:
    case CLI_NUMBER: return store_number(option, text);
    }
    return -1;
}

/* The walk over argv: `at` is the word looked at, `kept` those that stay. */
typedef struct {
    const cli_command_t *command;
    int argc, at, kept;
    char **argv;
} walk_t;

/* Gives the option its value: what follows '=' or the next word. */
static int take_value(walk_t *walk, const cli_option_t *option, const char *attached)
{
    if (option->kind == CLI_FLAG && attached) return cli_usage("--%s takes no value", option->name);
    if (option->kind == CLI_FLAG || attached) return store(option, attached);
    if (walk->at + 1 == walk->argc) return cli_usage("--%s wants a value: %s", option->name, option->argument);
    return store(option, walk->argv[++walk->at]);
}

static int take_long(walk_t *walk, const char *text)
{
    size_t length = strcspn(text, "=");
    const char *attached = text[length] ? text + length + 1 : NULL;
    if (length == 4 && !strncmp(text, "help", 4)) {
        print_help(walk->command);
        return EX_OK;
    }
    for (size_t i = 0; i < walk->command->option_count; i++) {
        const cli_option_t *option = &walk->command->options[i];
        if (strlen(option->name) == length && !strncmp(option->name, text, length))
            return take_value(walk, option, attached);
    }
    return unknown_option(walk->command, text);
}

static int take_letters(walk_t *walk, const char *letters)
{
    int status = -1;
    for (const char *letter = letters; *letter && status == -1; letter++) {
        if (*letter == 'h') {
            print_help(walk->command);
            return EX_OK;
        }
        const cli_option_t *option = NULL;
        for (size_t i = 0; i < walk->command->option_count && !option; i++)
            if (walk->command->options[i].letter == *letter) option = &walk->command->options[i];
        if (!option) return cli_usage("unknown option -%c", *letter);
        bool takes_rest = option->kind != CLI_FLAG && letter[1];
        status = take_value(walk, option, takes_rest ? letter + 1 : NULL);
        if (takes_rest) break;
    }
    return status;
}

static bool is_flag_letter(const cli_command_t *command, char letter)
{
    for (size_t i = 0; i < command->option_count; i++)
        if (command->options[i].letter == letter) return command->options[i].kind == CLI_FLAG;
    return false;
}

/* Does the word hold the flag: "--json", "-j", or the letter among other flags, "-jx"? */
static bool holds_flag(const cli_command_t *command, const char *word, const cli_option_t *flag)
{
    if (word[0] != '-' || word[1] == '-') return word[0] == '-' && word[1] == '-' && !strcmp(word + 2, flag->name);
    for (const char *letter = word + 1; is_flag_letter(command, *letter); letter++)
        if (*letter == flag->letter) return true;
    return false;
}

/* Looked for before all else, so that a wrong use is told as asked, too. */
static bool asks_for_json(const cli_command_t *command, int argc, char **argv)
{
    for (size_t i = 0; i < command->option_count; i++) {
        const cli_option_t *option = &command->options[i];
        if (option->kind != CLI_FLAG || strcmp(option->name, "json")) continue;
        for (int at = 1; at < argc && strcmp(argv[at], "--"); at++)
            if (holds_flag(command, argv[at], option)) return true;
    }
    return false;
}

int cli_parse(const cli_command_t *command, int *argc, char **argv)
{
    running = command->name;
    wants_json = asks_for_json(command, *argc, argv);
    if (command->configuration && qn_config_parse_arguments(argc, argv, true, command->configuration))
        return cli_usage("%s", qn_err_text());
    walk_t walk = {.command = command, .argc = *argc, .at = 1, .kept = 1, .argv = argv};
    int status = -1;
    for (; walk.at < walk.argc && status == -1; walk.at++) {
        char *word = argv[walk.at];
        if (!strcmp(word, "--")) {
            while (++walk.at < walk.argc)
                argv[walk.kept++] = argv[walk.at];
            break;
        }
        if (word[0] == '-' && word[1] == '-')
            status = take_long(&walk, word + 2);
        else if (word[0] == '-' && word[1])
            status = take_letters(&walk, word + 1);
        else
            argv[walk.kept++] = word;
    }
    *argc = walk.kept;
    argv[walk.kept] = NULL;
    return status;
}

/* ---- input and output ---- */

void cli_print_text(const char *text, size_t bytes)
{
    if (!isatty(STDOUT_FILENO)) {
        fwrite(text, 1, bytes, stdout);
        return;
    }
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f)
            printf("\\x%02x", c);
        else
            putchar(c);
    }
}

json_t *cli_text_json(const char *text)
{
    json_t *json = json_string(text);
    return json ? json : json_string("(not UTF-8)");
}

void cli_print_json(const json_t *json)
{
    json_dumpf(json, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9) | JSON_ENCODE_ANY);
    putchar('\n');
}

int cli_finish_output(void)
{
    if (fflush(stdout) || ferror(stdout)) return cli_fail(EX_IOERR, "cannot write the answer: %s", strerror(errno));
    return EX_OK;
}

char *cli_read_all(const char *path, size_t bytes_max, size_t *ret_bytes)
{
    bool from_stdin = !strcmp(path, "-");
    FILE *file = from_stdin ? stdin : fopen(path, "rbe");
    if (!file) {
        qn_fail(errno == ENOENT ? QN_ERR_NOT_FOUND : QN_ERR_IO, "cannot open %s: %s", path, strerror(errno));
        return NULL;
    }
    size_t bytes = 0, capacity = 65536;
    char *data = malloc(capacity + 1);
    while (data) {
        bytes += fread(data + bytes, 1, capacity - bytes, file);
        if (bytes < capacity || bytes > bytes_max) break;
        capacity *= 2;
        char *grown = realloc(data, capacity + 1);
        if (!grown) free(data);
        data = grown;
    }
    bool broken = ferror(file);
    if (!from_stdin) fclose(file);
    if (!data) {
        qn_fail(QN_ERR_NO_MEMORY, "no memory to read %s", path);
        return NULL;
    }
    if (broken || bytes > bytes_max) {
        free(data);
        if (broken)
            qn_fail(QN_ERR_IO, "cannot read %s: %s", path, strerror(errno));
        else
            qn_fail(QN_ERR_LIMIT, "%s is longer than %zu bytes", path, bytes_max);
        return NULL;
    }
    data[bytes] = '\0';
    *ret_bytes = bytes;
    return data;
}

int cli_interrupt_fd(void)
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    return signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
}

qn_err_t cli_run_dir(const char *config_file, const char *run_dir, char ret_path[QN_PATH_MAX])
{
    qn_config_t *config = NULL;
    const char *file = config_file ? config_file : getenv("QUINTET_CONFIG");
    qn_err_t err = qn_config_load(file && file[0] ? file : NULL, NULL, 0, run_dir, &config);
    if (!err) err = qn_paths_run_dir(qn_config_values(config), ret_path, QN_PATH_MAX);
    qn_config_free(&config);
    return err;
}
