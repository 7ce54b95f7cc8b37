/* The log of `quintet up`: lines of the services and its own, each with time, source and level, on standard error. */
#ifndef QN_TOOLS_UP_UP_LOG_H
#define QN_TOOLS_UP_UP_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UP_LINE_BYTES_MAX 3072 /* of a service's line; with the prefix it stays below PIPE_BUF */
#define UP_LOG_ERROR 3         /* syslog(3) priorities, the N of "<N>" */
#define UP_LOG_WARNING 4
#define UP_LOG_NOTICE 5
#define UP_LOG_INFO 6
#define UP_LOG_DEBUG 7

typedef enum {
    UP_STYLE_PLAIN,   /* "12:00:01.250 scheduler  error: text" */
    UP_STYLE_COLOUR,  /* the same on a terminal */
    UP_STYLE_JOURNAL, /* "<3>scheduler: text": the journal adds the time */
} up_style_t;

typedef struct {
    int fd; /* borrowed */
    up_style_t style;
    bool debug;       /* show lines of priority UP_LOG_DEBUG */
    bool terminal;    /* one that can go back to the start of a line */
    bool progress;    /* the cursor is behind a line of progress, which the next line takes the place of */
    bool stalled;     /* the last line found nobody reading */
    uint64_t dropped; /* lines since then */
} up_log_t;

/* Chooses the style: journal under systemd, colour on a terminal unless NO_COLOR is set. */
void up_log_init(up_log_t *log, int fd);
/* Writes one line. Waits at most 50 ms for a reader, then drops lines and says later how many. */
void up_log_write(up_log_t *log, const char *source, int priority, const char *text);
void up_log_printf(up_log_t *log, int priority, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* On a terminal: what a service is busy with, in place of the last such line; elsewhere nothing. */
void up_log_progress(up_log_t *log, const char *source, const char *text);

/* One line with its newline, as `style` has it. `clock` is "12:00:01.250". Control characters in `text` become '?',
 * so that a service cannot steer the terminal. Returns the length, at most capacity. */
size_t up_log_format(char *buffer, size_t capacity, up_style_t style, const char *clock, const char *source,
                     int priority, const char *text);

/* Cuts a service's output into lines. */
typedef struct {
    char text[UP_LINE_BYTES_MAX + 1];
    size_t used;
    bool cutting; /* the rest of an overlong line is dropped */
} up_lines_t;

typedef void up_line_taker_t(void *context, char *line);

/* Gives every full line, without its newline, to `take`; an overlong one is cut and ends in "...". */
void up_lines_feed(up_lines_t *lines, const char *bytes, size_t length, up_line_taker_t *take, void *context);
/* The end of the output: what is left is a line. */
void up_lines_end(up_lines_t *lines, up_line_taker_t *take, void *context);

/* Takes "<N>" and "name: " (one of the five) off a line. Returns view of the text; *ret_source is left alone when the
 * line names none. */
char *up_log_parse(char *line, const char **ret_source, int *ret_priority);

#endif
