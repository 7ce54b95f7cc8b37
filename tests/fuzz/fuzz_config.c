/* libFuzzer target: any bytes as a configuration file, as a notice of a service, and as a service's output.
 * A file is either taken or refused with a text; what was taken prints and loads to the same. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/config/config.h"
#include "tools/up/up_log.h"
#include "tools/up/up_notify.h"

static qn_config_t *load(const uint8_t *data, size_t bytes)
{
    char path[64];
    int fd = memfd_create("config", MFD_CLOEXEC);
    QN_ASSERT(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    qn_config_t *config = NULL;
    qn_err_t err = qn_config_load(path, NULL, 0, NULL, &config);
    QN_ASSERT((err == QN_OK) == (config != NULL));
    QN_ASSERT(err == QN_OK || (err == QN_ERR_CONFIG && qn_err_text()[0]));
    close(fd);
    return config;
}

/* Every value in force, given back as --set, is accepted and means the same. */
static void check_round_trip(const qn_config_t *config)
{
    size_t count;
    const qn_config_key_t *keys = qn_config_keys(&count);
    for (size_t i = 0; i < count; i++) {
        char set[QN_PATH_MAX + 128];
        const char *sets[] = {set};
        qn_config_t *again = NULL;
        char *value = qn_config_get_text(config, keys[i].key);
        snprintf(set, sizeof set, "%s=%s", keys[i].key, value);
        QN_ASSERT(qn_config_load(NULL, sets, 1, NULL, &again) == QN_OK);
        char *text = qn_config_get_text(again, keys[i].key);
        QN_ASSERT(value[0] == '\0' || strcmp(text, value) == 0);
        free(text);
        free(value);
        qn_config_free(&again);
    }
}

static void take_line(void *context, char *line)
{
    const char *source = "memory";
    char out[UP_LINE_BYTES_MAX + 256];
    int priority;
    char *text = up_log_parse(line, &source, &priority);
    size_t length = up_log_format(out, sizeof out, UP_STYLE_PLAIN, "12:00:00.000", source, priority, text);
    QN_ASSERT(length > 0 && length < sizeof out && priority >= 0 && priority <= 7);
    QN_ASSERT(memchr(out, '\033', length) == NULL && memchr(out, '\n', length) == out + length - 1);
    ++*(size_t *)context;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    up_notice_t notice;
    up_notice_parse((const char *)data, bytes, &notice);
    QN_ASSERT(notice.fd_name[0] == '\0' || up_store_name_is_valid(notice.fd_name));

    size_t lines = 0;
    up_lines_t *cutter = calloc(1, sizeof *cutter);
    QN_ASSERT(cutter);
    up_lines_feed(cutter, (const char *)data, bytes, take_line, &lines);
    up_lines_end(cutter, take_line, &lines);
    QN_ASSERT(lines <= bytes);
    free(cutter);

    qn_config_t *config = load(data, bytes);
    if (config) check_round_trip(config);
    qn_config_free(&config);
    return 0;
}
