/* What is this?      quintet generate: a prompt to POST /v1/completions, the answer streamed to the terminal, a line of
 *                    figures at the end.
 * State owned:       one answer while it comes.
 * Must never:        print anything but the answer on standard output.
 * Read next:         http_client.h; services/frontend for the other end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/limits.h"
#include "tools/cli.h"
#include "tools/client/http_client.h"
#include "tools/client/token_source.h"

/* OpenAI's default of 16 is for programs; a person wants to see something. */
#define DEFAULT_MAX_TOKENS 128
#define RATE_TOKENS_LEAST 7
#define RATE_MS_LEAST 5.0

static struct {
    const char *url, *prompt_file, *input_ids;
    uint64_t max_tokens, top_k, seed;
    double temperature, top_p, min_p;
    bool temperature_given, top_p_given, min_p_given, top_k_given, seed_given;
    bool ignore_eos, json, echo, ids, quiet;
    cli_texts_t stop;
} options = {.max_tokens = DEFAULT_MAX_TOKENS};

static const cli_option_t option_table[] = {
    {"max-tokens", 'm', CLI_COUNT, &options.max_tokens, NULL, "N", "tokens generated at most (default 128)", 0,
     QN_PROMPT_TOKENS_MAX},
    {"temperature", 't', CLI_NUMBER, &options.temperature, &options.temperature_given, "X",
     "0 is greedy (default: the server's)", 0, 100},
    {"top-p", 0, CLI_NUMBER, &options.top_p, &options.top_p_given, "X", "nucleus sampling", 0, 1},
    {"top-k", 0, CLI_COUNT, &options.top_k, &options.top_k_given, "N", "sample among the N likeliest; 0 is all", 0,
     QN_VOCAB_MAX},
    {"min-p", 0, CLI_NUMBER, &options.min_p, &options.min_p_given, "X", "drop tokens below X times the likeliest", 0,
     1},
    {"seed", 0, CLI_COUNT, &options.seed, &options.seed_given, "N", "the same seed gives the same answer", 0, 0},
    {"stop", 0, CLI_TEXTS, &options.stop, NULL, "TEXT", "end before this text; may be repeated", 0, 0},
    {"ignore-eos", 0, CLI_FLAG, &options.ignore_eos, NULL, NULL, "go on after the model's end token", 0, 0},
    {"prompt-file", 'f', CLI_TEXT, &options.prompt_file, NULL, "FILE", "take the prompt from a file", 0, 0},
    {"input-ids", 0, CLI_TEXT, &options.input_ids, NULL, "IDS", "token ids instead of a text: \"464 3797\", [464,3797]",
     0, 0},
    {"echo", 0, CLI_FLAG, &options.echo, NULL, NULL, "print the prompt before the answer", 0, 0},
    {"ids", 0, CLI_FLAG, &options.ids, NULL, NULL, "print token ids instead of text", 0, 0},
    {"json", 'j', CLI_FLAG, &options.json, NULL, NULL, "one JSON object with text and figures at the end", 0, 0},
    {"quiet", 'q', CLI_FLAG, &options.quiet, NULL, NULL, "no line of figures", 0, 0},
    {"url", 0, CLI_TEXT, &options.url, NULL, "URL", "server: http://host:port or unix:PATH", 0, 0},
};

static const cli_command_t command = {
    .name = "generate",
    .arguments = "[OPTION]... PROMPT | --input-ids IDS",
    .summary = "Completes PROMPT (\"-\": standard input), streaming the answer to standard output.",
    .details = "The figures on standard error: time to first token, tokens per second after it, tokens, and the time "
               "of each hop\nfrom service to service. Ctrl-C ends the connection and the server stops generating.\n\n"
               "examples:\n"
               "  quintet generate \"The SELECT statement \" --max-tokens 64 --temperature 0\n"
               "  quintet generate -f prompt.txt --stop END -j | jq -r .text",
    .options = option_table,
    .option_count = sizeof option_table / sizeof *option_table,
};

/* An answer while it comes. */
typedef struct {
    char *text; /* owned; kept for --json */
    size_t text_bytes, text_capacity;
    json_t *ids; /* owned; array */
    uint64_t sent_ns, first_ns, last_ns;
    size_t first_ids; /* tokens that came with the first event */
    char finish_reason[32];
    json_t *usage, *metadata, *error; /* owned, NULL until they came */
    bool ends_line;                   /* what was printed last ended a line */
    int status;                       /* an exit status, when something is wrong with the answer itself */
} answer_t;

/* ---- the request ---- */

/* Returns owned, NUL-terminated, or NULL after a message with *ret_status. */
static char *take_prompt(int argc, char **argv, size_t *ret_bytes, int *ret_status)
{
    *ret_status = -1;
    if (options.prompt_file && argc > 1)
        *ret_status = cli_usage("give the prompt or --prompt-file, not both");
    else if (!options.prompt_file && argc != 2)
        *ret_status = argc < 2 ? cli_usage("give a prompt, or - to read it from standard input")
                               : cli_usage("the prompt must be one argument: quote it");
    if (*ret_status != -1) return NULL;
    const char *file = options.prompt_file ? options.prompt_file : strcmp(argv[1], "-") ? NULL : "-";
    if (!file) {
        *ret_bytes = strlen(argv[1]);
        return strdup(argv[1]);
    }
    char *prompt = cli_read_all(file, QN_TEXT_BYTES_MAX, ret_bytes);
    if (!prompt) *ret_status = cli_fail(EX_NOINPUT, "%s", qn_err_text());
    return prompt;
}

/* The prompt as token ids. Returns owned, or NULL after a message with *ret_status. */
static json_t *make_ids(int argc, int *ret_status)
{
    token_ids_t ids = {0};
    *ret_status = EX_OK;
    if (argc > 1 || options.prompt_file) *ret_status = cli_usage("give a prompt or --input-ids, not both");
    if (!*ret_status && options.echo)
        *ret_status = cli_usage("--echo prints a text prompt: leave it out with --input-ids");
    if (!*ret_status) *ret_status = token_ids_parse(options.input_ids, &ids);
    if (!*ret_status && !ids.count) *ret_status = cli_usage("--input-ids names no token id");
    json_t *array = *ret_status ? NULL : json_array();
    for (size_t i = 0; array && i < ids.count; i++)
        json_array_append_new(array, json_integer(ids.items[i]));
    token_ids_fini(&ids);
    return array;
}

/* Takes `prompt`, a text or an array of ids. Returns owned. */
static json_t *make_body(json_t *prompt)
{
    json_t *body = json_pack("{s:o, s:I, s:b, s:{s:b}}", "prompt", prompt, "max_tokens", (json_int_t)options.max_tokens,
                             "stream", 1, "stream_options", "include_usage", 1);
    if (options.temperature_given) json_object_set_new(body, "temperature", json_real(options.temperature));
    if (options.top_p_given) json_object_set_new(body, "top_p", json_real(options.top_p));
    if (options.min_p_given) json_object_set_new(body, "min_p", json_real(options.min_p));
    if (options.top_k_given) json_object_set_new(body, "top_k", json_integer((json_int_t)options.top_k));
    if (options.seed_given) json_object_set_new(body, "seed", json_integer((json_int_t)options.seed));
    if (options.ignore_eos) json_object_set_new(body, "ignore_eos", json_true());
    /* Figures need to know how many tokens an event has. */
    if (options.ids || options.json || !options.quiet) json_object_set_new(body, "return_token_ids", json_true());
    if (options.stop.count) {
        json_t *stop = json_array();
        for (size_t i = 0; i < options.stop.count; i++)
            json_array_append_new(stop, json_string(options.stop.items[i]));
        json_object_set_new(body, "stop", stop);
    }
    return body;
}

/* ---- the answer ---- */

static void keep_text(answer_t *answer, const char *text, size_t bytes)
{
    if (answer->text_bytes + bytes > answer->text_capacity) {
        answer->text_capacity = (answer->text_bytes + bytes) * 2 + 4096;
        answer->text = realloc(answer->text, answer->text_capacity);
        if (!answer->text) exit(cli_fail(EX_OSERR, "no memory for the answer"));
    }
    memcpy(answer->text + answer->text_bytes, text, bytes);
    answer->text_bytes += bytes;
}

static void take_ids(answer_t *answer, const json_t *ids)
{
    size_t index;
    json_t *id;
    json_array_foreach(ids, index, id)
    {
        if (options.ids && !options.json)
            printf("%s%" JSON_INTEGER_FORMAT, json_array_size(answer->ids) ? " " : "", json_integer_value(id));
        json_array_append(answer->ids, id);
    }
}

static void take_choice(answer_t *answer, const json_t *choice)
{
    const json_t *text = json_object_get(choice, "text");
    const char *reason = json_string_value(json_object_get(choice, "finish_reason"));
    const json_t *ids = json_object_get(choice, "token_ids");
    size_t bytes = json_string_length(text);
    if (bytes || json_array_size(ids)) {
        answer->last_ns = qn_clock_now_ns();
        if (!answer->first_ns) {
            answer->first_ns = answer->last_ns;
            answer->first_ids = json_array_size(ids);
        }
    }
    take_ids(answer, ids);
    if (bytes && options.json) {
        keep_text(answer, json_string_value(text), bytes);
    } else if (bytes && !options.ids) {
        cli_print_text(json_string_value(text), bytes);
        answer->ends_line = json_string_value(text)[bytes - 1] == '\n';
    }
    if (reason) snprintf(answer->finish_reason, sizeof answer->finish_reason, "%s", reason);
    fflush(stdout);
}

static void take_member(json_t **place, const json_t *object, const char *name)
{
    json_t *member = json_object_get(object, name);
    if (!json_is_object(member)) return;
    json_decref(*place);
    *place = json_incref(member);
}

static bool take_event(void *context, const char *data, size_t bytes)
{
    answer_t *answer = context;
    if (bytes == 6 && !memcmp(data, "[DONE]", 6)) return true;
    json_error_t why;
    json_t *event = json_loadb(data, bytes, 0, &why);
    if (!json_is_object(event)) {
        answer->status = cli_fail(EX_PROTOCOL, "the server sent an event that is no JSON object: %s", why.text);
        json_decref(event);
        return false;
    }
    take_member(&answer->metadata, event, "metadata");
    /* Research mode may wrap the reply. */
    const json_t *data_member = json_object_get(event, "data");
    const json_t *chunk = json_is_object(data_member) ? data_member : event;
    take_member(&answer->error, chunk, "error");
    take_member(&answer->usage, chunk, "usage");
    const json_t *choices = json_object_get(chunk, "choices");
    for (size_t i = 0; i < json_array_size(choices); i++)
        take_choice(answer, json_array_get(choices, i));
    json_decref(event);
    if (ferror(stdout)) answer->status = cli_fail(EX_IOERR, "cannot write the answer");
    return !ferror(stdout);
}

/* ---- figures ---- */

static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

/* Tokens after the first event, by the time they took: what a reader of the stream sees. 0: too few, or too short a time,
 * to say; three tokens that were read in one go say nothing. */
static double tokens_per_second(const answer_t *answer, json_int_t tokens)
{
    double ms = ms_between(answer->first_ns, answer->last_ns);
    json_int_t later = tokens - (json_int_t)(answer->first_ids ? answer->first_ids : 1);
    return later >= RATE_TOKENS_LEAST && ms >= RATE_MS_LEAST ? (double)later * 1000 / ms : 0;
}

static json_int_t generated_tokens(const answer_t *answer)
{
    const json_t *count = json_object_get(answer->usage, "completion_tokens");
    return count ? json_integer_value(count) : (json_int_t)json_array_size(answer->ids);
}

static void print_hops(const json_t *hops)
{
    for (size_t i = 0; i < json_array_size(hops); i++) {
        const json_t *hop = json_array_get(hops, i);
        const char *from = json_string_value(json_object_get(hop, "from"));
        const char *to = json_string_value(json_object_get(hop, "to"));
        /* From a service to itself: what it did in between. */
        if (from && to)
            fprintf(stderr, "%s%s%s%s %.2f ms", i ? ", " : " | hops: ", strcmp(from, to) ? from : "in ",
                    strcmp(from, to) ? ">" : "", to, json_number_value(json_object_get(hop, "us")) / 1000);
    }
}

static void print_figures(const answer_t *answer)
{
    bool dim = isatty(STDERR_FILENO);
    json_int_t tokens = generated_tokens(answer);
    double rate = tokens_per_second(answer, tokens);
    fputs(dim ? "\x1b[2m" : "", stderr);
    if (answer->first_ns) fprintf(stderr, "TTFT %.1f ms | ", ms_between(answer->sent_ns, answer->first_ns));
    if (rate > 0) fprintf(stderr, "%.0f tok/s | ", rate);
    fprintf(stderr, "%lld token%s", (long long)tokens, tokens == 1 ? "" : "s");
    if (answer->finish_reason[0]) fprintf(stderr, ", %s", answer->finish_reason);
    print_hops(json_object_get(answer->metadata, "hops"));
    fprintf(stderr, "%s\n", dim ? "\x1b[0m" : "");
}

static void print_answer_json(const answer_t *answer, const http_reply_t *reply)
{
    json_int_t tokens = generated_tokens(answer);
    double rate = tokens_per_second(answer, tokens);
    json_t *json = json_object();
    json_t *text = json_stringn(answer->text ? answer->text : "", answer->text_bytes);
    json_object_set_new(json, "text", text ? text : json_null());
    json_object_set(json, "ids", answer->ids);
    json_object_set_new(json, "finish_reason",
                        answer->finish_reason[0] ? json_string(answer->finish_reason) : json_null());
    json_object_set_new(json, "tokens", json_integer(tokens));
    json_object_set_new(json, "ttft_ms",
                        answer->first_ns ? json_real(ms_between(answer->sent_ns, answer->first_ns)) : json_null());
    json_object_set_new(json, "tokens_per_second", rate > 0 ? json_real(rate) : json_null());
    json_object_set_new(json, "stream_ms", json_real(ms_between(answer->first_ns, answer->last_ns)));
    json_object_set_new(json, "total_ms", json_real(ms_between(answer->sent_ns, qn_clock_now_ns())));
    json_object_set_new(json, "request_id", json_string(reply->request_id));
    json_object_set_new(json, "usage", answer->usage ? json_incref(answer->usage) : json_null());
    json_object_set_new(json, "metadata", answer->metadata ? json_incref(answer->metadata) : json_null());
    cli_print_json(json);
    json_decref(json);
}

/* ---- all of it ---- */

/* Prints what remains to be said after the call; returns the exit status. */
static int finish(const http_client_t *client, qn_err_t err, const http_reply_t *reply, answer_t *answer)
{
    bool begun = !options.json && (answer->first_ns || options.echo);
    if (begun && !answer->ends_line) putchar('\n');
    fflush(stdout);
    if (answer->status) return answer->status;
    int status = http_client_explain(client, err, reply);
    if (status == EX_OK && answer->error) status = http_client_explain_error(answer->error, 0);
    if (status == EX_OK && !answer->finish_reason[0])
        status = cli_fail(EX_PROTOCOL, "the answer of %s stops without an end", http_client_url(client));
    if (options.json && status == EX_OK)
        print_answer_json(answer, reply);
    else if (!options.json && !options.quiet && answer->first_ns)
        print_figures(answer);
    int output = cli_finish_output();
    return status ? status : output;
}

int cmd_generate(int argc, char **argv)
{
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (options.seed > (uint64_t)INT64_MAX) return cli_usage("--seed wants a whole number up to 9223372036854775807");
    size_t bytes = 0;
    char *text = options.input_ids ? NULL : take_prompt(argc, argv, &bytes, &status);
    if (!options.input_ids && !text) return status;
    json_t *prompt = options.input_ids ? make_ids(argc, &status) : json_stringn(text, bytes);
    if (!prompt) return options.input_ids ? status : cli_fail(EX_DATAERR, "the prompt is not UTF-8 text");
    json_t *body = make_body(prompt);
    http_client_t *client = NULL;
    qn_err_t err = http_client_open(options.url, cli_interrupt_fd(), &client);
    if (err) return cli_usage("%s", qn_err_text());

    answer_t answer = {.ids = json_array()};
    if (options.echo && !options.json) {
        cli_print_text(text, bytes);
        fflush(stdout);
    }
    http_call_t call = {.method = "POST",
                        .path = "/v1/completions",
                        .body = body,
                        .header = "x-quintet-mode: research",
                        .event = take_event,
                        .context = &answer};
    http_reply_t reply;
    answer.sent_ns = qn_clock_now_ns();
    err = http_client_call(client, &call, &reply);
    status = finish(client, err, &reply, &answer);

    http_reply_fini(&reply);
    http_client_close(&client);
    json_decref(body);
    json_decref(answer.ids);
    json_decref(answer.usage);
    json_decref(answer.metadata);
    json_decref(answer.error);
    free(answer.text);
    free(text);
    return status;
}
