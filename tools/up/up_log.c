/* What is this?      Lines in, prefixed lines out.
 * State owned:       half a line per service.
 * Must never:        wait for a reader of standard error: restarts and the fd store come first.
 * Read next:         up.c. */
#include "tools/up/up_log.h"

#include <ctype.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define WAIT_FOR_READER_MS 50

static const struct {
    const char *name, *colour;
} sources[] = {
    {"frontend", "\033[36m"}, {"tokenizer", "\033[35m"}, {"scheduler", "\033[34m"},
    {"memory", "\033[33m"},   {"compute", "\033[32m"},
};
#define SOURCE_COUNT (sizeof sources / sizeof sources[0])

static const char *level_word(int priority)
{
    if (priority <= UP_LOG_ERROR) return "error: ";
    if (priority == UP_LOG_WARNING) return "warning: ";
    return priority > UP_LOG_INFO ? "debug: " : "";
}

static const char *level_colour(int priority)
{
    if (priority <= UP_LOG_ERROR) return "\033[31m";
    if (priority == UP_LOG_WARNING) return "\033[33m";
    if (priority == UP_LOG_NOTICE) return "\033[1m";
    return priority > UP_LOG_INFO ? "\033[2m" : "";
}

static const char *source_colour(const char *source)
{
    for (size_t i = 0; i < SOURCE_COUNT; i++) {
        if (strcmp(sources[i].name, source) == 0) return sources[i].colour;
    }
    return "\033[1m";
}

size_t up_log_format(char *buffer, size_t capacity, up_style_t style, const char *clock, const char *source,
                     int priority, const char *text)
{
    char clean[UP_LINE_BYTES_MAX + 1];
    size_t length = 0;
    for (; text[length] && length < sizeof clean - 1; length++) {
        unsigned char byte = (unsigned char)text[length];
        clean[length] = byte == '\t' ? ' ' : byte < 0x20 || byte == 0x7f ? '?' : text[length];
    }
    clean[length] = '\0';
    int used;
    if (style == UP_STYLE_JOURNAL) {
        used = snprintf(buffer, capacity, "<%d>%s: %s\n", priority, source, clean);
    } else if (style == UP_STYLE_COLOUR) {
        used = snprintf(buffer, capacity, "\033[2m%s\033[0m %s%-9s\033[0m %s%s%s\033[0m\n", clock,
                        source_colour(source), source, level_colour(priority), level_word(priority), clean);
    } else {
        used = snprintf(buffer, capacity, "%s %-9s %s%s\n", clock, source, level_word(priority), clean);
    }
    if (used < 0) return 0;
    return (size_t)used < capacity ? (size_t)used : capacity - 1;
}

/* JOURNAL_STREAM is inherited by everything a service starts; it holds for a descriptor of that device and inode. */
static bool is_journal(int fd)
{
    const char *text = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat info;
    return text && sscanf(text, "%llu:%llu", &device, &inode) == 2 && fstat(fd, &info) == 0 && info.st_dev == device &&
           info.st_ino == inode;
}

void up_log_init(up_log_t *log, int fd)
{
    const char *no_colour = getenv("NO_COLOR"), *terminal = getenv("TERM");
    *log = (up_log_t){.fd = fd, .style = UP_STYLE_PLAIN};
    if (isatty(fd)) {
        log->terminal = terminal && strcmp(terminal, "dumb") != 0;
        if (log->terminal && !(no_colour && no_colour[0])) log->style = UP_STYLE_COLOUR;
    } else if (is_journal(fd)) {
        log->style = UP_STYLE_JOURNAL;
    }
}

static void write_clock(char *buffer, size_t capacity)
{
    struct timespec now;
    struct tm local;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &local);
    size_t used = strftime(buffer, capacity, "%H:%M:%S", &local);
    snprintf(buffer + used, capacity - used, ".%03d", (int)(now.tv_nsec / 1000000));
}

/* A writable pipe has room for PIPE_BUF bytes, which a line never exceeds, so the write after it does not block. */
static bool has_reader(up_log_t *log)
{
    struct pollfd item = {.fd = log->fd, .events = POLLOUT};
    int ready = poll(&item, 1, log->stalled ? 0 : WAIT_FOR_READER_MS);
    log->stalled = ready == 0;
    return ready > 0 && (item.revents & POLLOUT);
}

#define BACK_TO_START "\r\033[K"

static void write_line(up_log_t *log, const char *source, int priority, const char *text)
{
    char clock[32], line[UP_LINE_BYTES_MAX + 256];
    size_t back = log->progress ? strlen(BACK_TO_START) : 0;
    memcpy(line, BACK_TO_START, back);
    log->progress = false;
    write_clock(clock, sizeof clock);
    size_t length = back + up_log_format(line + back, sizeof line - back, log->style, clock, source, priority, text);
    if (write(log->fd, line, length) < 0) log->dropped++;
}

void up_log_write(up_log_t *log, const char *source, int priority, const char *text)
{
    if (priority >= UP_LOG_DEBUG && !log->debug) return;
    if (!has_reader(log)) {
        log->dropped++;
        return;
    }
    if (log->dropped > 0) {
        char note[96];
        snprintf(note, sizeof note, "%llu lines were dropped because nobody read them",
                 (unsigned long long)log->dropped);
        log->dropped = 0;
        write_line(log, "up", UP_LOG_WARNING, note);
    }
    write_line(log, source, priority, text);
}

/* Shorter than a narrow terminal: a line that wraps cannot be taken back. */
#define PROGRESS_BYTES_MAX 72

void up_log_progress(up_log_t *log, const char *source, const char *text)
{
    char line[PROGRESS_BYTES_MAX + 32];
    if (!log->terminal || !has_reader(log)) return;
    int length = snprintf(line, sizeof line, BACK_TO_START "%-9s %.*s", source, PROGRESS_BYTES_MAX - 12, text);
    for (int i = (int)strlen(BACK_TO_START); i < length; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) line[i] = '?';
    log->progress = length > 0 && write(log->fd, line, (size_t)length) == length;
}

void up_log_printf(up_log_t *log, int priority, const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    up_log_write(log, "up", priority, text);
}

/* ---- lines ---- */

static void finish_line(up_lines_t *lines, up_line_taker_t *take, void *context)
{
    lines->text[lines->used] = '\0';
    if (lines->cutting) memcpy(lines->text + lines->used - 3, "...", 3);
    lines->used = 0;
    lines->cutting = false;
    take(context, lines->text);
}

void up_lines_feed(up_lines_t *lines, const char *bytes, size_t length, up_line_taker_t *take, void *context)
{
    for (size_t i = 0; i < length; i++) {
        if (bytes[i] == '\n')
            finish_line(lines, take, context);
        else if (lines->used == UP_LINE_BYTES_MAX)
            lines->cutting = true;
        else
            lines->text[lines->used++] = bytes[i] ? bytes[i] : '?';
    }
}

void up_lines_end(up_lines_t *lines, up_line_taker_t *take, void *context)
{
    if (lines->used > 0) finish_line(lines, take, context);
}

char *up_log_parse(char *line, const char **ret_source, int *ret_priority)
{
    *ret_priority = UP_LOG_INFO;
    if (line[0] == '<' && line[1] >= '0' && line[1] <= '7' && line[2] == '>') {
        *ret_priority = line[1] - '0';
        line += 3;
    }
    for (size_t i = 0; i < SOURCE_COUNT; i++) {
        size_t length = strlen(sources[i].name);
        if (strncmp(line, sources[i].name, length) != 0 || strncmp(line + length, ": ", 2) != 0) continue;
        *ret_source = sources[i].name;
        return line + length + 2;
    }
    return line;
}
