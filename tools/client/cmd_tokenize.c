/* What is this?      quintet tokenize: the token ids of a text, or of each line of a JSON Lines stream.
 * State owned:       none beyond the run.
 * Must never:        change the text it was given.
 * Read next:         token_source.h; cmd_detokenize.c for the way back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "common/limits.h"
#include "tools/cli.h"
#include "tools/client/token_source.h"

static struct {
    const char *tokenizer, *url;
    bool jsonl, json, no_special;
} options;

static const cli_option_t option_table[] = {
    {"tokenizer", 0, CLI_TEXT, &options.tokenizer, NULL, "FILE", "use this tokenizer.json (or directory), no server", 0,
     0},
    {"jsonl", 0, CLI_FLAG, &options.jsonl, NULL, NULL, "a JSON string per input line, an array of ids per output line",
     0, 0},
    {"no-special", 0, CLI_FLAG, &options.no_special, NULL, NULL, "add no begin or end token", 0, 0},
    {"json", 'j', CLI_FLAG, &options.json, NULL, NULL, "print {\"tokens\": [...], \"count\": N}", 0, 0},
    {"url", 0, CLI_TEXT, &options.url, NULL, "URL", "server: http://host:port or unix:PATH", 0, 0},
};

static const cli_command_t command = {
    .name = "tokenize",
    .arguments = "[OPTION]... TEXT | --jsonl",
    .summary = "Prints the token ids of TEXT (\"-\": standard input), through the running server or --tokenizer.",
    .details = "Special tokens written in the text (\"<|endoftext|>\") become their ids.\n\n"
               "examples:\n"
               "  quintet tokenize \"Hello world\"\n"
               "  quintet tokenize --tokenizer model/tokenizer.json --jsonl --no-special < texts.jsonl > ids.jsonl",
    .options = option_table,
    .option_count = sizeof option_table / sizeof *option_table,
};

static void print_ids(const token_ids_t *ids, const char *separator)
{
    for (size_t i = 0; i < ids->count; i++)
        printf("%s%u", i ? separator : "", ids->items[i]);
}

static int tokenize_line(token_source_t *source, const char *line, size_t bytes, size_t number, token_ids_t *ids)
{
    json_error_t why;
    json_t *text = json_loadb(line, bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    int status;
    if (!json_is_string(text))
        status =
            cli_fail(EX_DATAERR, "line %zu is not a JSON string%s%s", number, text ? "" : ": ", text ? "" : why.text);
    else
        status =
            token_source_encode(source, json_string_value(text), json_string_length(text), !options.no_special, ids);
    json_decref(text);
    if (status) return status;
    putchar('[');
    print_ids(ids, ",");
    puts("]");
    return EX_OK;
}

static int tokenize_lines(token_source_t *source)
{
    char *line = NULL;
    size_t capacity = 0, number = 0;
    ssize_t bytes;
    token_ids_t ids = {0};
    int status = EX_OK;
    while (!status && (bytes = getline(&line, &capacity, stdin)) > 0)
        status = tokenize_line(source, line, (size_t)bytes, ++number, &ids);
    free(line);
    token_ids_fini(&ids);
    return status;
}

static int tokenize_text(token_source_t *source, const char *argument)
{
    size_t bytes = strlen(argument);
    char *text = strcmp(argument, "-") ? strdup(argument) : cli_read_all("-", QN_TEXT_BYTES_MAX, &bytes);
    if (!text) return cli_fail(EX_NOINPUT, "%s", qn_err_text());
    token_ids_t ids = {0};
    int status = token_source_encode(source, text, bytes, !options.no_special, &ids);
    if (!status) {
        fputs(options.json ? "{\"tokens\":[" : "", stdout);
        print_ids(&ids, options.json ? "," : " ");
        if (options.json) printf("],\"count\":%zu}", ids.count);
        putchar('\n');
    }
    token_ids_fini(&ids);
    free(text);
    return status;
}

int cmd_tokenize(int argc, char **argv)
{
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (options.jsonl && argc > 1) return cli_usage("--jsonl reads standard input and takes no TEXT");
    if (!options.jsonl && argc != 2)
        return argc < 2 ? cli_usage("give a text, or - to read it from standard input")
                        : cli_usage("the text must be one argument: quote it");
    if (options.jsonl && options.json) return cli_usage("--jsonl prints arrays: leave out --json");
    if (options.tokenizer && options.url) return cli_usage("--tokenizer uses no server: leave out --url");
    token_source_t *source = NULL;
    status = token_source_open(options.tokenizer, options.url, &source);
    if (status) return status;
    status = options.jsonl ? tokenize_lines(source) : tokenize_text(source, argv[1]);
    token_source_close(&source);
    int output = cli_finish_output();
    return status ? status : output;
}
