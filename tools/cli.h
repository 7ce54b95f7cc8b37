/* What the subcommands of `quintet` share: the list of commands, options, messages, exit statuses.
 *
 * A subcommand is `int cmd_<name>(int argc, char **argv)`: argv[0] is its name ("generate"), the result is the exit
 * status (sysexits.h). It runs once per process, so it may call exit and need not free what it holds to the end.
 * Answers go to standard output, everything else to standard error. */
#ifndef QN_TOOLS_CLI_H
#define QN_TOOLS_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/config/config.h"
#include "common/err.h"

int cmd_up(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_detokenize(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_call(int argc, char **argv);
int cmd_sniff(int argc, char **argv);
int cmd_model(int argc, char **argv);
int cmd_config(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_policy(int argc, char **argv);
int cmd_kernel(int argc, char **argv);
int cmd_note_crash(int argc, char **argv);
int cmd_record(int argc, char **argv);
int cmd_trace(int argc, char **argv);

/* ---- options ------------------------------------------------------------------------------------------------ */

/* Exit status of a program ended by Ctrl-C, as shells report it. */
#define CLI_EXIT_INTERRUPTED 130
#define CLI_TEXTS_MAX 16

typedef struct {
    const char *items[CLI_TEXTS_MAX];
    size_t count;
} cli_texts_t;

typedef enum {
    CLI_FLAG,   /* bool */
    CLI_TEXT,   /* const char * */
    CLI_COUNT,  /* uint64_t, within min and max */
    CLI_NUMBER, /* double, within min and max */
    CLI_TEXTS,  /* cli_texts_t: may be given several times */
} cli_kind_t;

typedef struct {
    const char *name; /* "max-tokens", given as --max-tokens N or --max-tokens=N */
    char letter;      /* 'j' for -j, 0 for none */
    cli_kind_t kind;
    void *value;          /* written when the option is given; its content before that is the default */
    bool *given;          /* may be NULL */
    const char *argument; /* how help names the value; NULL for a flag */
    const char *help;
    double min, max; /* CLI_COUNT and CLI_NUMBER; both 0: no bounds */
} cli_option_t;

typedef struct {
    const char *name;      /* "generate" */
    const char *arguments; /* "[OPTION]... PROMPT" */
    const char *summary;   /* one sentence */
    const char *details;   /* paragraphs and examples after the options; may be NULL */
    const cli_option_t *options;
    size_t option_count;
    qn_config_arguments_t *configuration; /* takes --config, --set and --run-dir too, written here; NULL: does not */
} cli_command_t;

/* Parses argv: options may stand anywhere, "--" ends them, letters may be joined (-jx). What is no option is left in
 * argv[1] and on, *argc updated. --help is understood everywhere. Returns -1 to go on, or the exit status after help or
 * a usage error was printed (an unknown option gets a suggestion). */
int cli_parse(const cli_command_t *command, int *argc, char **argv);

/* The nearest of `count` words (edit distance at most 3 and less than half the word), or NULL. */
const char *cli_nearest(const char *word, const char *const *words, size_t count);

/* ---- messages ----------------------------------------------------------------------------------------------- */

/* Prints "quintet NAME: text" to standard error and returns `status`. NAME is that of the last cli_parse. With --json a
 * failure is an object on standard output, too: {"error": {"message", "exit_status"}}. */
int cli_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same for a server's refusal; `server` is its error object, given on as "server". Borrowed; may be NULL. */
int cli_fail_server(int status, const json_t *server, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The same for a wrong use: adds "try: quintet NAME --help" and returns EX_USAGE. */
int cli_usage(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same for the last qn_fail, with its exit status. */
int cli_fail_err(qn_err_t err);

/* Prints text from a model or a wire: on a terminal control characters other than newline and tab are shown as
 * "\x1b" instead of obeyed. */
void cli_print_text(const char *text, size_t bytes);
/* `text` as JSON; a replacement when it is not UTF-8 (a path may be anything). Returns owned. */
json_t *cli_text_json(const char *text);
/* One line of compact JSON on standard output. */
void cli_print_json(const json_t *json);
/* Flushes standard output: 0, or EX_IOERR with a message when what was printed could not be written. */
int cli_finish_output(void);

/* Reads a whole file, "-" being standard input, of at most `bytes_max` bytes. Returns owned with a NUL after the
 * *ret_bytes bytes, or NULL after qn_fail. */
char *cli_read_all(const char *path, size_t bytes_max, size_t *ret_bytes);

/* The run directory that these name, or the default one: `config` a file (NULL: $QUINTET_CONFIG), `run_dir` a directory (NULL:
 * that of the configuration). */
qn_err_t cli_run_dir(const char *config, const char *run_dir, char ret_path[QN_PATH_MAX]);

/* Turns SIGINT and SIGTERM of this process into input on the returned descriptor (a signalfd). Call before any thread
 * is started. */
int cli_interrupt_fd(void);

#endif
