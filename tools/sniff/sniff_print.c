/* What is this?      Output of the sniffer.
 * State owned:       none.
 * Must never:        send bytes of a wire to a terminal unescaped.
 * Read next:         sniff_summary.h. */
#include "tools/sniff/sniff_print.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/cli.h"
#include "tools/sniff/sniff_summary.h"

#define REQUESTS_SHOWN 4

static void add_time(sniff_line_t *line, uint64_t wall_ns)
{
    time_t seconds = (time_t)(wall_ns / 1000000000u);
    struct tm local;
    localtime_r(&seconds, &local);
    sniff_line_add(line, "%02d:%02d:%02d.%06" PRIu64, local.tm_hour, local.tm_min, local.tm_sec,
                   (uint64_t)(wall_ns % 1000000000u / 1000));
}

static json_t *json_time(uint64_t wall_ns)
{
    time_t seconds = (time_t)(wall_ns / 1000000000u);
    struct tm utc;
    gmtime_r(&seconds, &utc);
    char text[64];
    size_t used = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(text + used, sizeof text - used, ".%06" PRIu64 "Z", (uint64_t)(wall_ns % 1000000000u / 1000));
    return json_string(text);
}

/* The tap's name, from a wire like everything else. */
static void add_tap(sniff_line_t *line, const qn_capture_message_t *message)
{
    for (const char *at = message->header.service; *at; at++)
        sniff_line_add(line, "%c", isgraph((unsigned char)*at) ? *at : '?');
}

static void add_requests(sniff_line_t *line, const qn_capture_message_t *message)
{
    for (size_t i = 0; i < message->request_count && i < REQUESTS_SHOWN; i++)
        sniff_line_add(line, "%s%" PRIu64, i ? "," : " req ", message->requests[i]);
    if (message->request_count > REQUESTS_SHOWN)
        sniff_line_add(line, " and %zu more", message->request_count - REQUESTS_SHOWN);
}

static void print_sent(sniff_line_t *line, const qn_capture_message_t *message)
{
    const char *name = message->type ? qn_message_name(message->type) : "?";
    sniff_line_add(line, " %s > %s %s", qn_capture_service_name(message->head.src),
                   qn_capture_service_name(message->head.dst), name);
    add_requests(line, message);
    if (message->head.sequence) sniff_line_add(line, " #%" PRIu64, message->head.sequence);
    sniff_line_add(line, " %zu bytes  ", message->bytes);
    if (message->content)
        sniff_summary_add(line, message);
    else
        sniff_line_add(line, "cannot be decoded: %s", message->error);
}

static void print_dropped(sniff_line_t *line, const qn_capture_message_t *message)
{
    sniff_line_add(line, " ");
    add_tap(line, message);
    sniff_line_add(line, " dropped %zu bytes", message->bytes);
    if (message->head.src) sniff_line_add(line, " from %s", qn_capture_service_name(message->head.src));
    if (message->type) sniff_line_add(line, " that begin as %s", qn_message_name(message->type));
    sniff_line_add(line, ": %s", message->content ? "the receiver's build has another schema" : message->error);
}

void sniff_print_line(const qn_capture_message_t *message, uint64_t clock_ns)
{
    sniff_line_t line = {.bytes = 0};
    add_time(&line, message->time_ns + clock_ns);
    if (message->header.direction == QN_TAP_DROPPED)
        print_dropped(&line, message);
    else
        print_sent(&line, message);
    while (line.bytes && line.text[line.bytes - 1] == ' ')
        line.bytes--;
    cli_print_text(line.text, line.bytes);
    putchar('\n');
}

void sniff_print_hex(const qn_capture_message_t *message)
{
    for (size_t row = 0; row < message->bytes; row += 16) {
        printf("        0x%04zx: ", row);
        for (size_t i = row; i < row + 16; i++) {
            if (i < message->bytes)
                printf("%s%02x", i % 2 ? "" : " ", message->frame[i]);
            else
                fputs(i % 2 ? "  " : "   ", stdout);
        }
        fputs("  ", stdout);
        for (size_t i = row; i < row + 16 && i < message->bytes; i++)
            putchar(isprint(message->frame[i]) ? message->frame[i] : '.');
        putchar('\n');
    }
}

static json_t *json_hex(const qn_capture_message_t *message)
{
    static const char digits[] = "0123456789abcdef";
    char *text = malloc(message->bytes * 2 + 1);
    if (!text) return json_null();
    for (size_t i = 0; i < message->bytes; i++) {
        text[2 * i] = digits[message->frame[i] >> 4];
        text[2 * i + 1] = digits[message->frame[i] & 15];
    }
    json_t *hex = json_stringn(text, message->bytes * 2);
    free(text);
    return hex;
}

static json_t *json_begin(const qn_capture_message_t *message, uint64_t clock_ns)
{
    sniff_line_t tap = {.bytes = 0};
    add_tap(&tap, message);
    json_t *json = json_object();
    json_object_set_new(json, "time", json_time(message->time_ns + clock_ns));
    json_object_set_new(json, "tap", json_string(tap.text));
    return json;
}

void sniff_print_json(const qn_capture_message_t *message, uint64_t clock_ns, bool with_hex)
{
    json_t *json = json_begin(message, clock_ns);
    bool dropped = message->header.direction == QN_TAP_DROPPED;
    json_object_set_new(json, "direction", json_string(dropped ? "dropped" : "sent"));
    json_object_set_new(json, "type", message->type ? json_string(qn_message_name(message->type)) : json_null());
    json_object_set_new(json, "bytes", json_integer((json_int_t)message->bytes));
    json_t *requests = json_array();
    for (size_t i = 0; i < message->request_count; i++)
        json_array_append_new(requests, json_integer((json_int_t)message->requests[i]));
    json_object_set_new(json, "requests", requests);
    json_t *decoded = NULL;
    if (message->content) decoded = qn_wire_to_json(qn_wire_type(message->type), message->frame, message->bytes);
    if (decoded)
        json_object_set_new(json, "message", decoded);
    else
        json_object_set_new(json, "error", json_string(message->error));
    if (with_hex) json_object_set_new(json, "hex", json_hex(message));
    cli_print_json(json);
    json_decref(json);
}

void sniff_print_note(const qn_capture_message_t *message, uint64_t clock_ns, bool json, const char *note)
{
    if (json) {
        json_t *object = json_begin(message, clock_ns);
        json_object_set_new(object, "note", json_string(note));
        json_object_set_new(object, "missed", json_integer((json_int_t)message->missed));
        cli_print_json(object);
        json_decref(object);
        return;
    }
    sniff_line_t line = {.bytes = 0};
    add_time(&line, message->time_ns + clock_ns);
    sniff_line_add(&line, " -- ");
    add_tap(&line, message);
    sniff_line_add(&line, ": %s --", note);
    puts(line.text);
}
