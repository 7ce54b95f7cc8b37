/* Log lines to standard error, one per event: "LEVEL service: text". Under a service manager
 * (JOURNAL_STREAM or NOTIFY_SOCKET set) each line starts with sd-daemon's "<N>" priority instead of
 * the word, and the manager adds the time and the name. Never blocks longer than a write(2). */
#ifndef QN_COMMON_WATCH_LOG_H
#define QN_COMMON_WATCH_LOG_H

typedef enum { QN_LOG_ERROR, QN_LOG_WARNING, QN_LOG_NOTICE, QN_LOG_INFO, QN_LOG_DEBUG } qn_log_level_t;

/* Name shown for this thread's lines (borrowed; lives as long as the thread). NULL: "quintet". */
void qn_log_set_name(const char *name);
/* Lines above this level are dropped; process-wide, set once at start. */
void qn_log_set_level(qn_log_level_t level);
void qn_log(qn_log_level_t level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define qn_log_error(...) qn_log(QN_LOG_ERROR, __VA_ARGS__)
#define qn_log_warning(...) qn_log(QN_LOG_WARNING, __VA_ARGS__)
#define qn_log_notice(...) qn_log(QN_LOG_NOTICE, __VA_ARGS__)
#define qn_log_info(...) qn_log(QN_LOG_INFO, __VA_ARGS__)
#define qn_log_debug(...) qn_log(QN_LOG_DEBUG, __VA_ARGS__)

#endif
