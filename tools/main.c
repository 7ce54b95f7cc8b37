/* What is this?      The quintet command: finds the subcommand and hands it its arguments.
 * State owned:       the table of subcommands.
 * Must never:        parse an option of a subcommand.
 * Read next:         cli.h, cmd_generate.c. */
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "common/build.h"
#include "tools/cli.h"

typedef struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} command_t;

static const command_t commands[] = {
    {"up", cmd_up, "start the five services in the foreground and look after them"},
    {"generate", cmd_generate, "complete a prompt, streaming, with figures"},
    {"tokenize", cmd_tokenize, "token ids of a text"},
    {"detokenize", cmd_detokenize, "text of token ids"},
    {"status", cmd_status, "the five services as they are now"},
    {"call", cmd_call, "call a method of a service, or list them all"},
    {"sniff", cmd_sniff, "follow the messages between the services, decoded"},
    {"record", cmd_record, "record what the services do for a while"},
    {"trace", cmd_trace, "turn a recording into a timeline for Perfetto"},
    {"model", cmd_model, "describe or examine a model directory"},
    {"policy", cmd_policy, "schedule a trace again under other policies and compare"},
    {"kernel", cmd_kernel, "check the kernels of a shared object"},
    {"config", cmd_config, "show configuration keys, values and where they come from"},
    {"bench", cmd_bench, "measure the machine, kernels, steps, quality, tokenizers"},
    {"doctor", cmd_doctor, "check this machine and installation"},
    {"note-crash", cmd_note_crash, "note how a service ended, for systemd"},
};
#define COMMAND_COUNT (sizeof commands / sizeof *commands)

static void print_help(FILE *stream)
{
    fputs("usage: quintet COMMAND [ARGUMENT]...\n\ncommands:\n", stream);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(stream, "  %-12s %s\n", commands[i].name, commands[i].summary);
    fputs("\nquintet COMMAND --help tells more. Commands that talk to a server use --url, else QUINTET_URL, else\n"
          "http://127.0.0.1:8000; exit statuses are those of sysexits.h.\n",
          stream);
}

static const command_t *find(const char *name)
{
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        if (!strcmp(commands[i].name, name)) return &commands[i];
    return NULL;
}

static int unknown(const char *name)
{
    const char *names[COMMAND_COUNT];
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        names[i] = commands[i].name;
    const char *nearest = cli_nearest(name, names, COMMAND_COUNT);
    if (nearest) return cli_usage("unknown command \"%s\"; did you mean \"%s\"?", name, nearest);
    return cli_usage("unknown command \"%s\"", name);
}

/* `quintet help` and `quintet help COMMAND`. */
static int help(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stdout);
        return EX_OK;
    }
    const command_t *command = find(argv[1]);
    if (!command) return unknown(argv[1]);
    char option[] = "--help";
    char *arguments[] = {argv[1], option, NULL};
    return command->run(2, arguments);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return EX_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h")) return help(argc - 1, argv + 1);
    if (!strcmp(name, "version") || !strcmp(name, "--version")) {
        printf("quintet %s\n", qn_build_id());
        return EX_OK;
    }
    const command_t *command = find(name);
    return command ? command->run(argc - 1, argv + 1) : unknown(name);
}
