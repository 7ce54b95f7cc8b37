/* What is this?      Failpoints: what the environment arms, and what a hit does.
 * State owned:       the armed points of this process and their counts.
 * Must never:        fire what was not asked for by name; cost more than a branch when nothing is armed.
 * Read next:         tests/README.md for the points and who hits them. */
#include "common/failpoint.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/limits.h"
#include "common/watch/log.h"

#define ARMED_MAX 32
#define MATCH_BYTES_MAX 64
#define TEXT_BYTES_MAX 4096
#define COUNT_MAX 1000000000u
#define JOURNAL "failpoints"

typedef enum { KNOWS_NOTHING, KNOWS_IDS, KNOWS_TEXT } knows_t;
typedef enum { ACTION_CRASH, ACTION_KILL, ACTION_EXIT, ACTION_HANG, ACTION_ERROR } action_t;

static const struct {
    const char *name;
    knows_t knows;
} points[QN_FAILPOINT_COUNT] = {
    [QN_FAILPOINT_FRONTEND_REQUEST] = {"frontend.request", KNOWS_TEXT},
    [QN_FAILPOINT_FRONTEND_FIRST_BYTE] = {"frontend.first_byte", KNOWS_NOTHING},
    [QN_FAILPOINT_FRONTEND_EVENT] = {"frontend.event", KNOWS_NOTHING},
    [QN_FAILPOINT_TOKENIZER_BEFORE_ENCODE] = {"tokenizer.before_encode", KNOWS_TEXT},
    [QN_FAILPOINT_TOKENIZER_AFTER_ENCODE] = {"tokenizer.after_encode", KNOWS_IDS},
    [QN_FAILPOINT_TOKENIZER_BEFORE_TOKENS] = {"tokenizer.before_tokens", KNOWS_NOTHING},
    [QN_FAILPOINT_TOKENIZER_TOKEN] = {"tokenizer.token", KNOWS_IDS},
    [QN_FAILPOINT_SCHEDULER_SUBMIT] = {"scheduler.submit", KNOWS_IDS},
    [QN_FAILPOINT_SCHEDULER_BEFORE_PLAN] = {"scheduler.before_plan", KNOWS_IDS},
    [QN_FAILPOINT_SCHEDULER_AFTER_PLAN] = {"scheduler.after_plan", KNOWS_IDS},
    [QN_FAILPOINT_SCHEDULER_AFTER_RESULT] = {"scheduler.after_result", KNOWS_NOTHING},
    [QN_FAILPOINT_SCHEDULER_LEDGER_APPEND] = {"scheduler.ledger_append", KNOWS_NOTHING},
    [QN_FAILPOINT_MEMORY_BEFORE_GRANT] = {"memory.before_grant", KNOWS_IDS},
    [QN_FAILPOINT_MEMORY_AFTER_LEASE] = {"memory.after_lease", KNOWS_IDS},
    [QN_FAILPOINT_COMPUTE_BEFORE_STEP] = {"compute.before_step", KNOWS_IDS},
    [QN_FAILPOINT_COMPUTE_AFTER_STEP] = {"compute.after_step", KNOWS_IDS},
};

typedef struct {
    qn_failpoint_t point;
    char match[MATCH_BYTES_MAX]; /* "": every hit */
    uint32_t match_id;
    uint32_t at; /* the hit that fires */
    action_t action;
    int status;         /* of ACTION_EXIT */
    uint32_t times;     /* firings in all lives; UINT32_MAX: not limited */
    uint32_t had_fired; /* in lives before this one */
    _Atomic uint32_t hits;
} armed_t;

static armed_t armed[ARMED_MAX];
static size_t armed_count;
static char journal_path[QN_PATH_MAX + sizeof JOURNAL];

bool qn_failpoints_armed = false;

/* ---- reading ---- */

static qn_err_t fail_name(const char *name)
{
    char list[QN_ERR_TEXT_MAX];
    size_t used = 0;
    for (size_t i = 0; i < QN_FAILPOINT_COUNT && used < sizeof list; i++)
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i > 0 ? ", " : "", points[i].name);
    return qn_fail(QN_ERR_CONFIG, "QUINTET_FAILPOINTS: no point %.40s; there are %s", name, list);
}

/* A whole number from 1 on, and nothing else. */
static bool read_number(const char *text, uint32_t least, uint32_t most, uint32_t *ret_number)
{
    char *end;
    if (text[0] < '0' || text[0] > '9') return false;
    unsigned long long number = strtoull(text, &end, 10);
    if (*end != '\0' || number < least || number > most) return false;
    *ret_number = (uint32_t)number;
    return true;
}

static qn_err_t read_action(const char *text, armed_t *entry)
{
    static const char *const words[] = {
        [ACTION_CRASH] = "crash", [ACTION_KILL] = "kill", [ACTION_HANG] = "hang", [ACTION_ERROR] = "error"};
    uint32_t status;
    if (strncmp(text, "exit=", 5) == 0 && read_number(text + 5, 0, 255, &status)) {
        entry->action = ACTION_EXIT;
        entry->status = (int)status;
        return QN_OK;
    }
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (words[i] != NULL && strcmp(words[i], text) == 0) {
            entry->action = (action_t)i;
            return QN_OK;
        }
    return qn_fail(QN_ERR_CONFIG,
                   "QUINTET_FAILPOINTS: no action %.40s; there are crash, kill, exit=STATUS, hang, error", text);
}

static qn_err_t read_point(char *name, armed_t *entry)
{
    char *match = strchr(name, '@');
    if (match != NULL) *match++ = '\0';
    size_t point = 0;
    while (point < QN_FAILPOINT_COUNT && strcmp(points[point].name, name) != 0)
        point++;
    if (point == QN_FAILPOINT_COUNT) return fail_name(name);
    entry->point = (qn_failpoint_t)point;
    if (match == NULL) return QN_OK;
    if (points[point].knows == KNOWS_NOTHING)
        return qn_fail(QN_ERR_CONFIG, "QUINTET_FAILPOINTS: %s takes no @MATCH", name);
    if (match[0] == '\0' || strlen(match) >= sizeof entry->match)
        return qn_fail(QN_ERR_CONFIG, "QUINTET_FAILPOINTS: the match of %s has 1 to %d bytes", name,
                       MATCH_BYTES_MAX - 1);
    if (points[point].knows == KNOWS_IDS && !read_number(match, 0, UINT32_MAX, &entry->match_id))
        return qn_fail(QN_ERR_CONFIG, "QUINTET_FAILPOINTS: %s matches a token id, not %.40s", name, match);
    snprintf(entry->match, sizeof entry->match, "%s", match);
    return QN_OK;
}

/* NAME[@MATCH]:COUNT:ACTION[:TIMES] */
static qn_err_t read_entry(char *text, armed_t *entry)
{
    char *fields[4] = {text};
    size_t count = 1;
    for (char *at = text; *at != '\0'; at++) {
        if (*at != ':') continue;
        *at = '\0';
        if (count == 4) return qn_fail(QN_ERR_CONFIG, "QUINTET_FAILPOINTS: %.40s has too many fields", text);
        fields[count++] = at + 1;
    }
    if (count < 3)
        return qn_fail(QN_ERR_CONFIG, "QUINTET_FAILPOINTS: %.40s is not NAME[@MATCH]:COUNT:ACTION[:TIMES]", text);
    qn_err_t err = read_point(fields[0], entry);
    if (err < 0) return err;
    if (!read_number(fields[1], 1, COUNT_MAX, &entry->at))
        return qn_fail(QN_ERR_CONFIG, "QUINTET_FAILPOINTS: %s: the count %.40s is not in 1..%u",
                       points[entry->point].name, fields[1], COUNT_MAX);
    entry->times = UINT32_MAX;
    if (count == 4 && !read_number(fields[3], 1, COUNT_MAX, &entry->times))
        return qn_fail(QN_ERR_CONFIG, "QUINTET_FAILPOINTS: %s: the times %.40s are not in 1..%u",
                       points[entry->point].name, fields[3], COUNT_MAX);
    return read_action(fields[2], entry);
}

/* ---- firings of earlier lives ---- */

static void count_former(void)
{
    FILE *file = fopen(journal_path, "re");
    char line[QN_NAME_MAX];
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        for (size_t i = 0; i < armed_count; i++)
            if (strcmp(points[armed[i].point].name, line) == 0) armed[i].had_fired++;
    }
    if (file != NULL) fclose(file);
}

static void write_firing(const armed_t *entry)
{
    char line[QN_NAME_MAX];
    int bytes = snprintf(line, sizeof line, "%s\n", points[entry->point].name);
    int fd = open(journal_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, line, (size_t)bytes) != bytes) qn_log_warning("cannot write %s", journal_path);
    if (fd >= 0) close(fd);
}

/* ---- arming ---- */

qn_err_t qn_failpoints_arm(const char *text, const char *run_dir)
{
    char copy[TEXT_BYTES_MAX];
    armed_count = 0;
    qn_failpoints_armed = false;
    if (text == NULL || text[0] == '\0') return QN_OK;
    if (strlen(text) >= sizeof copy)
        return qn_fail(QN_ERR_CONFIG, "QUINTET_FAILPOINTS has more than %d bytes", TEXT_BYTES_MAX - 1);
    snprintf(copy, sizeof copy, "%s", text);
    snprintf(journal_path, sizeof journal_path, "%s/" JOURNAL, run_dir);
    size_t count = 0;
    for (char *rest = copy, *entry; (entry = strsep(&rest, ",")) != NULL; count++) {
        if (count == ARMED_MAX) return qn_fail(QN_ERR_CONFIG, "QUINTET_FAILPOINTS arms %d points at most", ARMED_MAX);
        armed[count] = (armed_t){.times = UINT32_MAX};
        qn_err_t err = read_entry(entry, &armed[count]);
        if (err < 0) return err;
    }
    armed_count = count;
    count_former();
    qn_failpoints_armed = true;
    return QN_OK;
}

qn_err_t qn_failpoints_arm_from_environment(const char *run_dir)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static bool done;
    const char *text = getenv("QUINTET_FAILPOINTS");
    if (text == NULL || text[0] == '\0') return QN_OK;
    pthread_mutex_lock(&mutex);
    qn_err_t err = done ? QN_OK : qn_failpoints_arm(text, run_dir);
    if (err == QN_OK && !done) qn_log_warning("failpoints are armed: %s", text);
    done = done || err == QN_OK;
    pthread_mutex_unlock(&mutex);
    return err;
}

/* ---- hits ---- */

static bool concerns(const armed_t *entry, const uint32_t *ids, size_t id_count, const char *text, size_t bytes)
{
    if (entry->match[0] == '\0') return true;
    if (points[entry->point].knows == KNOWS_TEXT)
        return text != NULL && memmem(text, bytes, entry->match, strlen(entry->match)) != NULL;
    for (size_t i = 0; i < id_count; i++)
        if (ids[i] == entry->match_id) return true;
    return false;
}

static bool fire(const armed_t *entry)
{
    write_firing(entry);
    qn_log_warning("failpoint %s fires", points[entry->point].name);
    switch (entry->action) {
    case ACTION_CRASH: abort();
    case ACTION_KILL: kill(getpid(), SIGKILL); break;
    case ACTION_EXIT: _exit(entry->status);
    case ACTION_HANG: break;
    case ACTION_ERROR: return true;
    }
    for (;;)
        pause();
}

bool qn_failpoint_hit(qn_failpoint_t point, const uint32_t *ids, size_t id_count, const char *text, size_t bytes)
{
    bool failed = false;
    for (size_t i = 0; i < armed_count; i++) {
        armed_t *entry = &armed[i];
        if (entry->point != point || !concerns(entry, ids, id_count, text, bytes)) continue;
        if (atomic_fetch_add(&entry->hits, 1) + 1 != entry->at || entry->had_fired >= entry->times) continue;
        failed = fire(entry) || failed;
    }
    return failed;
}
