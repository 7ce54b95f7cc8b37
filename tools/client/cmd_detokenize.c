/* What is this?      quintet detokenize: the text of token ids, or of each line of a JSON Lines stream.
 * State owned:       none beyond the run.
 * Must never:        guess at an id that is no number.
 * Read next:         token_source.h; cmd_tokenize.c for the way there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "tools/cli.h"
#include "tools/client/token_source.h"

static struct {
    const char *tokenizer, *url;
    bool jsonl, json, keep_special, skip_special;
} options;

static const cli_option_t option_table[] = {
    {"tokenizer", 0, CLI_TEXT, &options.tokenizer, NULL, "FILE", "use this tokenizer.json (or directory), no server", 0,
     0},
    {"jsonl", 0, CLI_FLAG, &options.jsonl, NULL, NULL, "an array of ids per input line, a JSON string per output line",
     0, 0},
    {"keep-special", 0, CLI_FLAG, &options.keep_special, NULL, NULL, "special tokens leave their text (the default)", 0,
     0},
    {"skip-special", 0, CLI_FLAG, &options.skip_special, NULL, NULL, "special tokens leave no text", 0, 0},
    {"json", 'j', CLI_FLAG, &options.json, NULL, NULL, "print {\"text\": \"...\"}", 0, 0},
    {"url", 0, CLI_TEXT, &options.url, NULL, "URL", "server: http://host:port or unix:PATH", 0, 0},
};

static const cli_command_t command = {
    .name = "detokenize",
    .arguments = "[OPTION]... ID... | --jsonl",
    .summary = "Prints the text of token ids, through the running server or --tokenizer.",
    .details = "IDs may be separated by spaces or commas, in brackets or not.\n\n"
               "examples:\n"
               "  quintet detokenize 464 3797\n"
               "  quintet tokenize \"a text\" | xargs quintet detokenize\n"
               "  quintet detokenize --tokenizer model/tokenizer.json --jsonl --skip-special < ids.jsonl",
    .options = option_table,
    .option_count = sizeof option_table / sizeof *option_table,
};

static int print_string(const char *text, size_t bytes, const char *member)
{
    json_t *string = json_stringn(text, bytes);
    if (!string) return cli_fail(EX_PROTOCOL, "the answer is not UTF-8");
    json_t *json = member ? json_pack("{s:o}", member, string) : string;
    cli_print_json(json);
    json_decref(json);
    return EX_OK;
}

static int detokenize_line(token_source_t *source, const char *line, size_t bytes, size_t number, token_ids_t *ids)
{
    json_error_t why;
    json_t *array = json_loadb(line, bytes, 0, &why);
    if (!json_is_array(array)) {
        json_decref(array);
        return cli_fail(EX_DATAERR, "line %zu is not a JSON array of token ids%s%s", number, array ? "" : ": ",
                        array ? "" : why.text);
    }
    int status = EX_OK;
    ids->count = 0;
    for (size_t i = 0; i < json_array_size(array) && !status; i++) {
        const json_t *id = json_array_get(array, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > UINT32_MAX)
            status = cli_fail(EX_DATAERR, "line %zu, element %zu is no token id", number, i);
        else
            token_ids_add(ids, (uint32_t)json_integer_value(id));
    }
    json_decref(array);
    const char *text;
    size_t text_bytes;
    if (!status) status = token_source_decode(source, ids, options.skip_special, &text, &text_bytes);
    return status ? status : print_string(text, text_bytes, NULL);
}

static int detokenize_lines(token_source_t *source)
{
    char *line = NULL;
    size_t capacity = 0, number = 0;
    ssize_t bytes;
    token_ids_t ids = {0};
    int status = EX_OK;
    while (!status && (bytes = getline(&line, &capacity, stdin)) > 0)
        status = detokenize_line(source, line, (size_t)bytes, ++number, &ids);
    free(line);
    token_ids_fini(&ids);
    return status;
}

static int detokenize_ids(token_source_t *source, const token_ids_t *ids)
{
    const char *text;
    size_t bytes;
    int status = token_source_decode(source, ids, options.skip_special, &text, &bytes);
    if (status) return status;
    if (options.json) return print_string(text, bytes, "text");
    cli_print_text(text, bytes);
    putchar('\n');
    return EX_OK;
}

int cmd_detokenize(int argc, char **argv)
{
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (options.keep_special && options.skip_special)
        return cli_usage("--keep-special and --skip-special exclude each other");
    if (options.jsonl ? argc > 1 : argc < 2)
        return options.jsonl ? cli_usage("--jsonl reads standard input and takes no ids") : cli_usage("give token ids");
    if (options.jsonl && options.json) return cli_usage("--jsonl prints JSON strings: leave out --json");
    if (options.tokenizer && options.url) return cli_usage("--tokenizer uses no server: leave out --url");
    token_ids_t ids = {0};
    for (int i = 1; i < argc; i++)
        if ((status = token_ids_parse(argv[i], &ids)) != EX_OK) return status;
    token_source_t *source = NULL;
    status = token_source_open(options.tokenizer, options.url, &source);
    if (status) return status;
    status = options.jsonl ? detokenize_lines(source) : detokenize_ids(source, &ids);
    token_source_close(&source);
    token_ids_fini(&ids);
    int output = cli_finish_output();
    return status ? status : output;
}
