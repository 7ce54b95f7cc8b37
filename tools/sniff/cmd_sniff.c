/* What is this?      quintet sniff: follows the messages between the services, decoded, filtered, live or from a file.
 * State owned:       one run: reader or file, reorder window, counters.
 * Must never:        slow down a service; it only listens.
 * Read next:         common/watch/tap.h (where messages come from), sniff_filter.h (the filter language). */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "common/daemon/links/endpoint.h"
#include "common/clock.h"
#include "common/config/config.h"
#include "common/daemon/links/links.h"
#include "common/paths.h"
#include "tools/cli.h"
#include "common/capture/capture_file.h"
#include "tools/sniff/sniff_filter.h"
#include "common/capture/capture_order.h"
#include "tools/sniff/sniff_print.h"

/* Frames of two services sent in one order reach the sniffer in that order within this time, unless the machine is very
 * busy. What goes to a file may wait longer, and a file is put in order again when it is read. */
#define WINDOW_NS 20000000ull
#define FILE_WINDOW_NS 1000000000ull
/* Messages taken from the taps before due ones are shown. */
#define TAKE_MAX 1024

static struct {
    const char *write, *read, *run_dir, *config;
    uint64_t count;
    bool all, json, hex, print, quiet;
} options;

static const cli_option_t option_table[] = {
    {"all", 'a', CLI_FLAG, &options.all, NULL, NULL, "show Hello, Heartbeat and Credit, too", 0, 0},
    {"json", 'j', CLI_FLAG, &options.json, NULL, NULL, "one JSON object per message", 0, 0},
    {"hex", 'x', CLI_FLAG, &options.hex, NULL, NULL, "the bytes of each frame, too", 0, 0},
    {"count", 'c', CLI_COUNT, &options.count, NULL, "N", "end after N messages", 1, 1e15},
    {"write", 'w', CLI_TEXT, &options.write, NULL, "FILE",
     "write them to a capture file instead of printing; -: standard output", 0, 0},
    {"print", 0, CLI_FLAG, &options.print, NULL, NULL, "print them even with --write", 0, 0},
    {"read", 'r', CLI_TEXT, &options.read, NULL, "FILE", "read a capture file instead of listening; -: standard input",
     0, 0},
    {"run-dir", 0, CLI_TEXT, &options.run_dir, NULL, "DIR", "run directory of the services", 0, 0},
    {"config", 0, CLI_TEXT, &options.config, NULL, "FILE", "configuration that names the run directory", 0, 0},
    {"quiet", 'q', CLI_FLAG, &options.quiet, NULL, NULL, "nothing on standard error but failures", 0, 0},
};

static const cli_command_t command = {
    .name = "sniff",
    .arguments = "[OPTION]... [FILTER]",
    .summary = "Follows the messages between the services of a run directory, one line each, in the order of sending.",
    .details = "filter (tests joined by and, or, not and parentheses):\n"
               "  src S, dst S, host S     sender, receiver, either: frontend, tokenizer, scheduler, memory, compute\n"
               "  type T, or just T        StepPlan, Encode, ...; several: type StepPlan|StepResult\n"
               "  req N, req ID            messages about request N, or with this x-request-id, batches included\n"
               "  bytes > N, epoch N, seq N, dropped\n"
               "  FIELD OP VALUE           any field of a message: step >= 9, StepPlan.runs.token_count > 64,\n"
               "                           finish = stop, temperature > 0, runs.length > 8,\n"
               "                           reasons ~ fcfs\n\n"
               "examples:\n"
               "  quintet sniff\n"
               "  quintet sniff 'src scheduler and type StepPlan and req 7'\n"
               "  quintet sniff -c 100 -w trace.qncap; quintet sniff -r trace.qncap -j | jq .message.step\n"
               "  ssh host quintet sniff -w - | quintet sniff -r -",
    .options = option_table,
    .option_count = sizeof option_table / sizeof *option_table,
};

/* More than five when a service has several instances. */
#define BOOTS_MAX 64

typedef struct {
    sniff_filter_t *filter;
    qn_capture_t *in;  /* NULL without --read */
    qn_capture_t *out; /* NULL without --write */
    qn_capture_order_t order;
    qn_capture_slots_t slots;
    qn_arena_t arena; /* of the message being shown */
    uint64_t clock_ns;
    uint64_t received, shown, missed;
    struct {
        char service[QN_TAP_NAME_BYTES];
        uint64_t boot_ns;
    } boots[BOOTS_MAX];
    size_t boot_count;
    int status;
} run_t;

static bool is_done(const run_t *run) { return run->status || (options.count && run->shown >= options.count); }

/* ---- one message ---- */

static bool is_left_out(const run_t *run, qn_message_type_t type)
{
    bool chatter = type == QN_MESSAGE_HELLO || type == QN_MESSAGE_HEARTBEAT || type == QN_MESSAGE_CREDIT;
    return chatter && !options.all && !sniff_filter_names(run->filter, type);
}

static bool is_wanted(const run_t *run, const qn_capture_message_t *message)
{
    if (message->header.direction == QN_TAP_SENT && is_left_out(run, message->type)) return false;
    return sniff_filter_match(run->filter, message);
}

/* Does the message come from another life of its daemon than the one before it? */
static bool is_new_boot(run_t *run, const qn_capture_message_t *message)
{
    for (size_t i = 0; i < run->boot_count; i++) {
        if (strcmp(run->boots[i].service, message->header.service)) continue;
        bool changed = run->boots[i].boot_ns != message->header.boot_ns;
        run->boots[i].boot_ns = message->header.boot_ns;
        return changed;
    }
    if (run->boot_count < BOOTS_MAX) {
        memcpy(run->boots[run->boot_count].service, message->header.service, QN_TAP_NAME_BYTES);
        run->boots[run->boot_count++].boot_ns = message->header.boot_ns;
    }
    return false;
}

static void note(run_t *run, const qn_capture_message_t *message)
{
    char text[96];
    bool print = !run->out || options.print;
    if (is_new_boot(run, message) && print) sniff_print_note(message, run->clock_ns, options.json, "started anew");
    if (!message->missed) return;
    run->missed += message->missed;
    snprintf(text, sizeof text, "%" PRIu64 " message%s missed here, the sniffer was too slow", message->missed,
             message->missed == 1 ? "" : "s");
    if (print) sniff_print_note(message, run->clock_ns, options.json, text);
}

static void print(const run_t *run, const qn_capture_message_t *message)
{
    if (options.json) {
        sniff_print_json(message, run->clock_ns, options.hex);
        return;
    }
    sniff_print_line(message, run->clock_ns);
    if (options.hex) sniff_print_hex(message);
}

/* Takes the message. */
static void show(run_t *run, qn_capture_message_t *message)
{
    if (message->header.direction == QN_TAP_SPAN) { /* of a recording: quintet trace shows those */
        free(message);
        return;
    }
    run->received++;
    qn_arena_reset(&run->arena);
    qn_capture_message_decode(message, &run->slots, &run->arena);
    sniff_filter_learn(run->filter, message);
    note(run, message);
    if (is_wanted(run, message)) {
        run->shown++;
        if (run->out && qn_capture_write(run->out, message)) run->status = cli_fail(EX_IOERR, "%s", qn_err_text());
        if (!run->out || options.print) print(run, message);
    }
    free(message);
    if (ferror(stdout) && !run->status) run->status = cli_fail(EX_IOERR, "cannot write: %s", strerror(errno));
}

static void show_due(run_t *run, uint64_t now_ns)
{
    qn_capture_message_t *message;
    while (!is_done(run) && (message = qn_capture_order_take(&run->order, now_ns)) != NULL)
        show(run, message);
    if (run->out && !run->status && qn_capture_flush(run->out)) run->status = cli_fail(EX_IOERR, "%s", qn_err_text());
}

/* ---- live ---- */

static uint64_t wall_minus_monotonic_ns(void)
{
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    return (uint64_t)wall.tv_sec * 1000000000ull + (uint64_t)wall.tv_nsec - qn_clock_now_ns();
}

/* Says whom it listens to, and who is not there yet. */
static void greet(const char *run_dir)
{
    if (options.quiet) return;
    char absent[128] = "";
    size_t used = 0;
    for (size_t i = 0; i < QN_DAEMON_COUNT; i++) {
        char path[QN_PATH_MAX + 64];
        struct stat found;
        snprintf(path, sizeof path, "%s/%s.tap", run_dir, qn_daemon_names()[i]);
        if (stat(path, &found))
            used +=
                (size_t)snprintf(absent + used, sizeof absent - used, "%s%s", used ? ", " : "", qn_daemon_names()[i]);
    }
    fprintf(stderr, "quintet sniff: listening in %s%s%s%s\n", run_dir, used ? "; not there yet: " : "", absent,
            used ? " (is this the run directory of your quintet up?)" : "");
}

static void take_arrived(run_t *run, qn_tap_reader_t *reader)
{
    qn_tap_message_t arrived;
    for (int i = 0; i < TAKE_MAX && qn_capture_order_due_ns(&run->order) && qn_tap_reader_take(reader, &arrived); i++) {
        qn_capture_message_t *message =
            qn_capture_message_new(arrived.header, arrived.frame, arrived.bytes, arrived.missed);
        if (message)
            qn_capture_order_put(&run->order, message);
        else
            run->missed++;
    }
}

static int milliseconds_until(uint64_t due_ns, uint64_t now_ns)
{
    if (due_ns <= now_ns) return 0;
    return due_ns - now_ns > 1000000000ull ? 1000 : (int)((due_ns - now_ns + 999999) / 1000000);
}

static void follow(run_t *run, qn_tap_reader_t *reader, int interrupt_fd)
{
    zmq_pollitem_t items[] = {
        {.socket = qn_tap_reader_socket(reader), .events = ZMQ_POLLIN},
        {.fd = interrupt_fd, .events = ZMQ_POLLIN},
    };
    while (!is_done(run)) {
        int wait_ms = milliseconds_until(qn_capture_order_due_ns(&run->order), qn_clock_now_ns());
        if (zmq_poll(items, 2, wait_ms) == -1 && zmq_errno() != EINTR)
            run->status = cli_fail(EX_OSERR, "cannot wait for messages: %s", zmq_strerror(zmq_errno()));
        take_arrived(run, reader);
        bool interrupted = items[1].revents & ZMQ_POLLIN;
        show_due(run, interrupted ? UINT64_MAX : qn_clock_now_ns());
        if (interrupted) break;
    }
}

/* Asks the taps for what the filter can take, and for what tells whose slots a plan names. */
static void subscribe(const run_t *run, qn_tap_reader_t *reader)
{
    bool plans = sniff_filter_wants(run->filter, QN_SERVICE_SCHEDULER, QN_MESSAGE_STEP_PLAN);
    for (int source = QN_SERVICE_FRONTEND; source <= QN_SERVICE_COMPUTE; source++)
        for (int type = 1; type < QN_MESSAGE_COUNT; type++) {
            bool helps = plans && source == QN_SERVICE_COMPUTE && type == QN_MESSAGE_STEP_RESULT;
            bool wanted = sniff_filter_wants(run->filter, (qn_service_t)source, (qn_message_type_t)type);
            if (helps || (wanted && !is_left_out(run, (qn_message_type_t)type)))
                qn_tap_reader_want(reader, (uint8_t)source, qn_wire_type((qn_message_type_t)type)->identifier);
        }
    qn_tap_reader_want_dropped(reader);
}

static int sniff_live(run_t *run)
{
    char run_dir[QN_PATH_MAX];
    /* Signals first: threads of ZeroMQ inherit the mask. */
    int interrupt_fd = cli_interrupt_fd();
    qn_links_setup_zmq();
    qn_tap_reader_t *reader = NULL;
    qn_err_t err = cli_run_dir(options.config, options.run_dir, run_dir);
    if (!err) err = qn_tap_reader_open(run_dir, qn_daemon_names(), QN_DAEMON_COUNT, &reader);
    if (err) return cli_fail_err(err);
    subscribe(run, reader);
    greet(run_dir);
    follow(run, reader, interrupt_fd);
    if (qn_tap_reader_foreign(reader) && !options.quiet)
        fprintf(stderr, "quintet sniff: %" PRIu64 " messages of the taps were of another version of Quintet\n",
                qn_tap_reader_foreign(reader));
    qn_tap_reader_close(&reader);
    close(interrupt_fd);
    return run->status;
}

/* ---- from a file ---- */

static int sniff_file(run_t *run)
{
    qn_capture_message_t *message;
    qn_capture_outcome_t outcome = QN_CAPTURE_MESSAGE;
    uint64_t newest_ns = 0;
    while (!is_done(run) && (outcome = qn_capture_read(run->in, &message)) == QN_CAPTURE_MESSAGE) {
        if (message->time_ns > newest_ns) newest_ns = message->time_ns;
        qn_capture_order_put(&run->order, message);
        show_due(run, newest_ns);
    }
    char torn[QN_ERR_TEXT_MAX];
    snprintf(torn, sizeof torn, "%s", outcome == QN_CAPTURE_TORN ? qn_err_text() : "");
    show_due(run, UINT64_MAX);
    if (torn[0]) cli_fail(EX_OK, "%s", torn);
    return run->status;
}

/* ---- begin and end ---- */

/* Parses the rest of the arguments; shows the place of a mistake under the filter. */
static int parse_filter(int argc, char **argv, sniff_filter_t **ret_filter)
{
    char text[SNIFF_FILTER_BYTES_MAX + 2] = "";
    size_t used = 0, at = 0;
    for (int i = 1; i < argc && used < sizeof text; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", i > 1 ? " " : "", argv[i]);
    if (!sniff_filter_parse(text, ret_filter, &at)) return EX_OK;
    int status = cli_fail(EX_USAGE, "the filter is wrong: %s", qn_err_text());
    fprintf(stderr, "  %s\n  %*s^\n", text, (int)at, "");
    return status;
}

static void print_totals(const run_t *run)
{
    fflush(stdout);
    if (!options.quiet)
        fprintf(stderr, "%" PRIu64 " message%s %s\n%" PRIu64 " received\n%" PRIu64 " missed\n", run->shown,
                run->shown == 1 ? "" : "s", options.write ? "written" : "shown", run->received, run->missed);
}

/* A copy of a capture has the clock of the original. -1, or an exit status after a message. */
static int open_captures(run_t *run)
{
    run->clock_ns = wall_minus_monotonic_ns();
    if (options.read) {
        qn_err_t err = qn_capture_open(options.read, &run->in);
        if (err) return cli_fail_err(err);
        run->clock_ns = qn_capture_clock_ns(run->in);
    }
    if (options.write && qn_capture_create(options.write, run->clock_ns, &run->out))
        return cli_fail(EX_CANTCREAT, "%s", qn_err_text());
    return -1;
}

/* A pipe may be followed live, and its writer has put it in order. */
static uint64_t order_window_ns(void)
{
    if (options.read) return strcmp(options.read, "-") == 0 ? 0 : FILE_WINDOW_NS;
    return options.write && !options.print && strcmp(options.write, "-") != 0 ? FILE_WINDOW_NS : WINDOW_NS;
}

int cmd_sniff(int argc, char **argv)
{
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (options.read && options.run_dir) return cli_usage("--read needs no --run-dir");
    bool to_output = options.write && strcmp(options.write, "-") == 0;
    if (to_output && options.print) return cli_usage("--print and --write - would mix in standard output");
    if (to_output && isatty(STDOUT_FILENO))
        return cli_usage("a capture is no text for a terminal: give --write a file or a pipe");
    run_t *run = calloc(1, sizeof *run);
    if (!run) return cli_fail(EX_OSERR, "no memory");
    status = parse_filter(argc, argv, &run->filter);
    if (status) return status;
    qn_arena_init(&run->arena, 1u << 20);
    qn_capture_order_init(&run->order, order_window_ns());
    setvbuf(stdout, NULL, _IOLBF, 0);
    status = open_captures(run);
    if (status != -1) return status;
    status = options.read ? sniff_file(run) : sniff_live(run);
    qn_capture_close(&run->in);
    if (qn_capture_close(&run->out) && !status) status = cli_fail(EX_IOERR, "%s", qn_err_text());
    print_totals(run);
    qn_capture_order_fini(&run->order);
    qn_arena_fini(&run->arena);
    sniff_filter_free(&run->filter);
    free(run);
    return status ? status : cli_finish_output();
}
