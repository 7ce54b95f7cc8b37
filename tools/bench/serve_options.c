/* What is this?      Options of quintet bench serve: parsed, checked against each other, files read.
 * State owned:       none; all goes into a serve_options_t.
 * Must never:        take an option that has no effect.
 * Read next:         bench_serve.c, load_prompts.h, load_plan.h. */
#include "tools/bench/serve_options.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "tools/cli.h"

#define REQUESTS_DEFAULT 100
#define CONCURRENCY_DEFAULT 8
#define TIMEOUT_DEFAULT_S 600
#define PRIORITY_MAX 2147483647.0

/* As given; texts are parsed after all options are known. */
typedef struct {
    const char *prompt_tokens, *output_tokens, *shared_prefix, *prompts, *trace, *arrivals, *slo;
    uint64_t requests, concurrency, users, vocab, seed;
    double seconds, rate, priority;
    bool has_requests, has_concurrency, has_priority, has_rate, has_seconds;
    cli_texts_t fields;
} given_t;

static const char details[] =
    "DIST is N, A-B (uniform), lognormal:MEDIAN:SIGMA or exp:MEAN; what does not fit into the model is made shorter, and\n"
    "counted. Without --rate and --trace a new request is sent as soon as one has ended (closed loop; 0.1 s later when it "
    "failed);\nwith --rate requests arrive whether or not others have ended, and --concurrency is a cap. The run ends with "
    "--requests\nor --seconds, whichever is first; nothing is sent after that and what is under way is waited for. Ctrl-C "
    "takes it back.\n\n"
    "A line of --prompts is a JSON string or an object: prompt, text or input_ids, or prompt_tokens (so many random ids), "
    "and\nmax_tokens. In a --trace each has arrival, in seconds from the begin. Lines are repeated for more --requests.\n\n"
    "Requests are streamed with temperature 0 and ignore_eos, which --field may change. Tokens are counted by the "
    "server's own\ncount (stream_options.continuous_usage_stats), not by events. Of requests answered in full:\n"
    "  TTFT         from sending to the first tokens\n"
    "  ITL          each token after the first ones: the gap before it, divided by the tokens that came at once\n"
    "  TPOT         mean of a request's ITL\n"
    "  longest gap  of a request\n"
    "  E2E          from sending to the end of the answer\n"
    "  sent late    by the load itself: how long after it was due; if that spoils the figures, a warning says so\n"
    "  goodput      requests that meet all of --slo: ttft, itl (the request's TPOT), gap (its longest), e2e, in ms\n"
    "A percentile is the nearest rank: the smallest value that at least so many percent of the values do not exceed.\n\n"
    "Exit status: 0 when a request was answered, 130 after Ctrl-C, 64 for wrong use; when none was answered, by the first\n"
    "failure: 69 no connection, 75 try again (429, 503, timeout), 65 other 4xx, 70 other 5xx, 76 no stream of events.\n\n"
    "examples:\n"
    "  quintet bench serve --concurrency 64 --requests 1000 --prompt-tokens 100-1024 --output-tokens 100-1024\n"
    "  quintet bench serve --rate 20 --seconds 60 --slo ttft=500,itl=50 -j > a.json\n"
    "  quintet bench serve --rate 20 --seconds 60 --compare a.json";

/* ---- single options ---- */

static int fail_option(const char *name) { return cli_usage("--%s %s", name, qn_err_text()); }

/* "N" or "N:S". */
static int parse_prefix(const char *text, load_prompts_t *prompts)
{
    char *end;
    unsigned long tokens = strtoul(text, &end, 10);
    double share = 1;
    bool good = text[0] >= '0' && text[0] <= '9' && tokens >= 1 && tokens <= QN_PROMPT_TOKENS_MAX;
    if (good && *end == ':') {
        const char *number = end + 1;
        share = strtod(number, &end);
        good = end != number && share >= 0 && share <= 1;
    }
    if (!good || *end)
        return cli_usage("--shared-prefix wants N or N:S, N from 1 to %u and S from 0 to 1, not \"%s\"",
                         QN_PROMPT_TOKENS_MAX, text);
    prompts->prefix_tokens = (uint32_t)tokens;
    prompts->prefix_share = share;
    return -1;
}

static int parse_field(const char *text, json_t *fields)
{
    static const char *const own[] = {"prompt", "input_ids",      "max_tokens",
                                      "stream", "stream_options", "return_token_ids"};
    const char *equals = strchr(text, '=');
    if (!equals || equals == text) return cli_usage("--field wants NAME=JSON, not \"%s\"", text);
    char name[QN_NAME_MAX + 1];
    snprintf(name, sizeof name, "%.*s", (int)(equals - text < QN_NAME_MAX ? equals - text : QN_NAME_MAX), text);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!strcmp(name, own[i])) return cli_usage("--field %s: this field is made from other options", name);
    json_t *value = json_loads(equals + 1, JSON_DECODE_ANY, NULL);
    if (!value)
        return cli_usage("--field %s: \"%s\" is no JSON; a string wants quotes: '%s=\"...\"'", name, equals + 1, name);
    if (json_object_get(fields, name)) {
        json_decref(value);
        return cli_usage("--field %s is given twice", name);
    }
    return json_object_set_new(fields, name, value) ? cli_usage("--field: the name is not UTF-8") : -1;
}

static int set_fields(const given_t *given, serve_options_t *o)
{
    int status = -1;
    o->fields = json_object();
    for (size_t i = 0; i < given->fields.count && status == -1; i++)
        status = parse_field(given->fields.items[i], o->fields);
    if (status != -1) return status;
    if (given->users && json_object_get(o->fields, "user"))
        return cli_usage("give --user-count or --field user, not both");
    if (given->has_priority && json_object_get(o->fields, "priority"))
        return cli_usage("give --priority or --field priority, not both");
    if (given->has_priority && given->priority != floor(given->priority))
        return cli_usage("--priority wants a whole number, not %g", given->priority);
    if (given->has_priority) json_object_set_new(o->fields, "priority", json_integer((json_int_t)given->priority));
    if (o->ids) json_object_set_new(o->fields, "return_token_ids", json_true());
    return -1;
}

/* ---- options together ---- */

static int check_together(const given_t *given, const serve_options_t *o)
{
    const char *file = given->trace ? "trace" : "prompts";
    if (given->trace && given->prompts) return cli_usage("give --prompts or --trace, not both");
    if (given->trace && given->has_rate) return cli_usage("--trace has its own arrivals: leave out --rate");
    if (given->arrivals && !given->has_rate) return cli_usage("--arrivals is of --rate: give both");
    if ((given->trace || given->prompts) && given->prompt_tokens)
        return cli_usage("--%s has its own prompts: leave out --prompt-tokens", file);
    if ((given->trace || given->prompts) && given->shared_prefix)
        return cli_usage("--%s has its own prompts: leave out --shared-prefix", file);
    if (o->ids && !o->save) return cli_usage("--ids is for the lines of --save FILE: give both");
    return -1;
}

static int parse_texts(const given_t *given, serve_options_t *o)
{
    load_prompts_t *prompts = &o->prompts;
    int status = -1;
    if (load_length_parse(given->prompt_tokens ? given->prompt_tokens : "512", &prompts->prompt))
        return fail_option("prompt-tokens");
    if (load_length_parse(given->output_tokens ? given->output_tokens : "128", &prompts->output))
        return fail_option("output-tokens");
    if (given->shared_prefix) status = parse_prefix(given->shared_prefix, prompts);
    if (status != -1) return status;
    if (given->slo && load_slo_parse(given->slo, &o->slo)) return fail_option("slo");
    o->has_arrivals = given->has_rate;
    if (given->has_rate &&
        load_arrivals_parse(given->arrivals ? given->arrivals : "poisson", given->rate, given->seed, &o->arrivals))
        return fail_option("arrivals");
    return -1;
}

static int read_lines(const char *path, bool is_trace, load_lines_t *lines)
{
    size_t bytes;
    char *text = cli_read_all(path, LOAD_FILE_BYTES_MAX, &bytes);
    if (!text) return cli_fail(EX_NOINPUT, "--%s: %s", is_trace ? "trace" : "prompts", qn_err_text());
    qn_err_t err = load_lines_parse(path, text, bytes, is_trace, lines);
    free(text);
    return err ? cli_fail(EX_DATAERR, "--%s: %s", is_trace ? "trace" : "prompts", qn_err_text()) : -1;
}

static int set_run(const given_t *given, serve_options_t *o)
{
    load_run_t *run = &o->run;
    size_t lines = o->prompts.lines.count;
    bool open_loop = given->has_rate || given->trace;
    run->purpose = LOAD_FOR_REQUESTS;
    run->is_trace = given->trace != NULL;
    run->seconds = given->seconds;
    run->requests = given->requests;
    if (!given->has_requests && given->trace) run->requests = lines;
    if (!given->has_requests && !given->has_seconds && !given->trace) run->requests = lines ? lines : REQUESTS_DEFAULT;
    if (given->trace && run->requests > lines)
        return cli_usage("--requests %llu: the trace has %zu", (unsigned long long)run->requests, lines);
    run->concurrency = given->has_concurrency ? (uint32_t)given->concurrency
                       : open_loop            ? LOAD_CONCURRENCY_MAX
                                              : CONCURRENCY_DEFAULT;
    return -1;
}

/* What was asked for, for the report; --compare looks whether it was the same. */
static json_t *describe(const given_t *given, const serve_options_t *o)
{
    const char *file = given->trace ? given->trace : given->prompts;
    bool random = !file;
    return json_pack("{s:s, s:o, s:I, s:o, s:o, s:o, s:o, s:s, s:o, s:o, s:I, s:I, s:I, s:o}", "mode",
                     given->trace      ? "trace"
                     : given->has_rate ? "open"
                                       : "closed",
                     "requests", o->run.requests ? json_integer((json_int_t)o->run.requests) : json_null(),
                     "concurrency", (json_int_t)o->run.concurrency, "seconds",
                     given->has_seconds ? json_real(given->seconds) : json_null(), "rate",
                     given->has_rate ? json_real(given->rate) : json_null(), "arrivals",
                     given->has_rate ? cli_text_json(given->arrivals ? given->arrivals : "poisson") : json_null(),
                     "prompt_tokens",
                     random ? cli_text_json(given->prompt_tokens ? given->prompt_tokens : "512") : json_null(),
                     "output_tokens", given->output_tokens ? given->output_tokens : "128", "shared_prefix",
                     given->shared_prefix ? cli_text_json(given->shared_prefix) : json_null(), "file",
                     file ? cli_text_json(file) : json_null(), "seed", (json_int_t)given->seed, "warmup",
                     (json_int_t)o->warmup, "users", (json_int_t)given->users, "fields", json_deep_copy(o->fields));
}

static int settle(const given_t *given, serve_options_t *o)
{
    int status = check_together(given, o);
    if (status == -1) status = parse_texts(given, o);
    if (status == -1) status = set_fields(given, o);
    if (status == -1 && (given->trace || given->prompts))
        status = read_lines(given->trace ? given->trace : given->prompts, given->trace != NULL, &o->prompts.lines);
    if (status == -1) status = set_run(given, o);
    if (status != -1) return status;
    o->prompts.seed = given->seed;
    o->prompts.user_count = (uint32_t)given->users;
    o->prompts.vocab_size = (uint32_t)given->vocab;
    o->load = describe(given, o);
    return o->load ? -1 : cli_usage("an option is not UTF-8");
}

int serve_options_parse(int argc, char **argv, serve_options_t *ret_options)
{
    serve_options_t *o = ret_options;
    given_t g = {0};
    *o = (serve_options_t){.timeout_s = TIMEOUT_DEFAULT_S};
    const cli_option_t table[] = {
        {"url", 0, CLI_TEXT, &o->url, NULL, "URL", "server: http://host:port or unix:PATH", 0, 0},
        {"requests", 'n', CLI_COUNT, &g.requests, &g.has_requests, "N",
         "end after so many (default 100, or the lines of a file)", 1, LOAD_REQUESTS_MAX},
        {"seconds", 0, CLI_NUMBER, &g.seconds, &g.has_seconds, "S", "send nothing after so long", 0.01, 86400},
        {"concurrency", 'c', CLI_COUNT, &g.concurrency, &g.has_concurrency, "N",
         "requests at once (default 8); with --rate or --trace a cap (default 4096)", 1, LOAD_CONCURRENCY_MAX},
        {"rate", 0, CLI_NUMBER, &g.rate, &g.has_rate, "R", "requests that arrive per second", 0.001, 100000},
        {"arrivals", 0, CLI_TEXT, &g.arrivals, NULL, "KIND", "poisson (default), uniform, burst or burst:N (8 at once)",
         0, 0},
        {"prompt-tokens", 0, CLI_TEXT, &g.prompt_tokens, NULL, "DIST", "length of random prompts (default 512)", 0, 0},
        {"output-tokens", 0, CLI_TEXT, &g.output_tokens, NULL, "DIST", "length of answers (default 128)", 0, 0},
        {"shared-prefix", 0, CLI_TEXT, &g.shared_prefix, NULL, "N[:S]",
         "N tokens more in front, the same for all, or for a share S (0 to 1) of them", 0, 0},
        {"prompts", 0, CLI_TEXT, &g.prompts, NULL, "FILE", "prompts from JSON lines (\"-\": standard input)", 0, 0},
        {"trace", 0, CLI_TEXT, &g.trace, NULL, "FILE", "the same with arrivals", 0, 0},
        {"seed", 0, CLI_COUNT, &g.seed, NULL, "N", "the same seed gives the same load, prompts included (default 0)", 0,
         9007199254740992.0},
        {"warmup", 0, CLI_COUNT, &o->warmup, NULL, "N", "requests before, not counted (default 0)", 0,
         LOAD_REQUESTS_MAX},
        {"timeout", 0, CLI_NUMBER, &o->timeout_s, NULL, "S", "of a request (default 600)", 0.01, 86400},
        {"priority", 0, CLI_NUMBER, &g.priority, &g.has_priority, "N", "of all requests", -PRIORITY_MAX, PRIORITY_MAX},
        {"user-count", 0, CLI_COUNT, &g.users, NULL, "N", "requests come from users u0, u1, ... in turn", 1, 1000000},
        {"field", 0, CLI_TEXTS, &g.fields, NULL, "NAME=JSON", "a further field of each request; may be repeated", 0, 0},
        {"vocab-size", 0, CLI_COUNT, &g.vocab, NULL, "N", "ids of random prompts, of a server that does not tell", 1,
         QN_VOCAB_MAX},
        {"slo", 0, CLI_TEXT, &g.slo, NULL, "LIST", "count what meets ttft=MS,itl=MS,gap=MS,e2e=MS", 0, 0},
        {"save", 0, CLI_TEXT, &o->save, NULL, "FILE", "a JSON line per request", 0, 0},
        {"ids", 0, CLI_FLAG, &o->ids, NULL, NULL, "with output ids in --save", 0, 0},
        {"compare", 0, CLI_TEXT, &o->compare, NULL, "FILE", "ratios to an earlier result of -j", 0, 0},
        {"json", 'j', CLI_FLAG, &o->json, NULL, NULL, "the result as JSON", 0, 0},
    };
    const cli_command_t command = {
        .name = "bench serve",
        .arguments = "[OPTION]...",
        .summary = "Puts load on a running server over HTTP and measures what its clients see.",
        .details = details,
        .options = table,
        .option_count = sizeof table / sizeof *table,
    };
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (argc > 1) return cli_usage("\"%s\" is no option: this command takes nothing else", argv[1]);
    return settle(&g, o);
}

/* ---- the server ---- */

int serve_options_complete(serve_options_t *o, const load_server_t *server)
{
    load_prompts_t *prompts = &o->prompts;
    if (prompts->vocab_size > server->vocab_size && server->vocab_size)
        return cli_usage("--vocab-size %u is more than the model's %u", prompts->vocab_size, server->vocab_size);
    if (!prompts->vocab_size) prompts->vocab_size = server->vocab_size;
    prompts->max_model_len = server->max_model_len;
    for (size_t i = 0; i < server->special_count && server->special_ids[i] < prompts->vocab_size; i++)
        prompts->special_ids[prompts->special_count++] = server->special_ids[i];
    /* Some servers want to be told which of their models is meant. */
    if (!json_object_get(o->fields, "model")) json_object_set_new(o->fields, "model", cli_text_json(server->model));
    prompts->fields = o->fields;
    return load_prompts_check(prompts) ? cli_usage("%s", qn_err_text()) : EX_OK;
}
