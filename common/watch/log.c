/* What is this?      The log sink of every daemon and tool.
 * State owned:       the process-wide level, each thread's name.
 * Must never:        allocate, buffer across lines, or fail.
 * Read next:         err.h for what the texts carry. */
#include "common/watch/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_BYTES_MAX 2048

static atomic_int log_level = QN_LOG_INFO;
static _Thread_local const char *log_name;

void qn_log_set_name(const char *name) { log_name = name; }

void qn_log_set_level(qn_log_level_t level) { atomic_store(&log_level, (int)level); }

static int is_managed(void) { return getenv("NOTIFY_SOCKET") != NULL || getenv("JOURNAL_STREAM") != NULL; }

void qn_log(qn_log_level_t level, const char *format, ...)
{
    static const struct {
        const char *word;
        int priority;
    } levels[] = {
        [QN_LOG_ERROR] = {"error", 3}, [QN_LOG_WARNING] = {"warning", 4}, [QN_LOG_NOTICE] = {"notice", 5},
        [QN_LOG_INFO] = {"info", 6},   [QN_LOG_DEBUG] = {"debug", 7},
    };
    if ((int)level > atomic_load_explicit(&log_level, memory_order_relaxed)) return;
    char line[LINE_BYTES_MAX];
    int used = is_managed()
                   ? snprintf(line, sizeof line, "<%d>%s: ", levels[level].priority, log_name ? log_name : "quintet")
                   : snprintf(line, sizeof line, "%-7s %s: ", levels[level].word, log_name ? log_name : "quintet");
    va_list arguments;
    va_start(arguments, format);
    int text = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, arguments);
    va_end(arguments);
    if (text < 0) return;
    size_t length = (size_t)used + (size_t)text;
    if (length > sizeof line - 2) length = sizeof line - 2;
    for (size_t i = (size_t)used; i < length; i++) {
        if (line[i] == '\n') line[i] = ' '; /* one event, one line: foreign text cannot forge a second */
    }
    line[length++] = '\n';
    if (write(STDERR_FILENO, line, length) < 0) { /* a closed log must not stop a daemon */
    }
}
