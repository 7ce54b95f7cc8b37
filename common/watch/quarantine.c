/* What is this?      Files of quarantined requests: written, and the oldest removed.
 * State owned:       the folder <run_dir>/quarantine.
 * Must never:        grow without bound, or stop a daemon because a file cannot be written.
 * Read next:         services/scheduler/quarantine/quarantine.c, common/daemon/in_hand.h */
#include "common/watch/quarantine.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int is_record(const struct dirent *entry) { return strstr(entry->d_name, ".json") != NULL; }

/* Names begin with the time: the oldest come first. Leaves room for one more. */
static void remove_oldest(const char *folder)
{
    struct dirent **entries;
    int count = scandir(folder, &entries, is_record, alphasort);
    for (int i = 0; i < count; i++) {
        char path[2 * QN_PATH_MAX];
        snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
        if (i <= count - QN_QUARANTINE_FILES_MAX) unlink(path);
        free(entries[i]);
    }
    if (count >= 0) free(entries);
}

qn_err_t qn_quarantine_write(const char *run_dir, const char *service, uint64_t key, json_t *object,
                             char ret_path[QN_PATH_MAX])
{
    char folder[QN_PATH_MAX];
    struct timespec now;
    if (snprintf(folder, sizeof folder, "%s/quarantine", run_dir) >= (int)sizeof folder - 64)
        return qn_fail(QN_ERR_LIMIT, "run_dir is too long: %s", run_dir);
    if (mkdir(folder, 0700) != 0 && errno != EEXIST)
        return qn_fail(QN_ERR_IO, "cannot make %s: %s", folder, strerror(errno));
    remove_oldest(folder);
    clock_gettime(CLOCK_REALTIME, &now);
    json_object_set_new(object, "time", json_integer(now.tv_sec));
    snprintf(ret_path, QN_PATH_MAX, "%.900s/%010lld%03ld-%.16s-%016" PRIx64 ".json", folder, (long long)now.tv_sec,
             now.tv_nsec / 1000000, service, key);
    if (json_dump_file(object, ret_path, JSON_COMPACT) != 0)
        return qn_fail(QN_ERR_IO, "cannot write %s: %s", ret_path, strerror(errno));
    return QN_OK;
}

json_t *qn_quarantine_ids(const uint32_t *ids, size_t count)
{
    json_t *list = json_array();
    for (size_t i = 0; i < count && i < QN_QUARANTINE_IDS_MAX; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

json_t *qn_quarantine_text(const char *text, size_t bytes)
{
    if (bytes > QN_QUARANTINE_TEXT_BYTES_MAX) bytes = QN_QUARANTINE_TEXT_BYTES_MAX;
    json_t *string = json_stringn(text, bytes);
    if (string != NULL) return string;
    char *escaped = malloc(4 * bytes + 1);
    size_t length = 0;
    for (size_t i = 0; escaped != NULL && i < bytes; i++)
        length += (size_t)sprintf(escaped + length, text[i] >= ' ' && text[i] < 127 ? "%c" : "\\x%02x",
                                  (unsigned char)text[i]);
    string = escaped != NULL ? json_stringn(escaped, length) : json_null();
    free(escaped);
    return string;
}
