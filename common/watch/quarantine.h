/* The quarantine of a run directory: requests that made a daemon crash, a JSON file each in <run_dir>/quarantine, for whoever
 * looks into it afterwards. Bounded in number (the oldest gives way) and in size. */
#ifndef QN_COMMON_WATCH_QUARANTINE_H
#define QN_COMMON_WATCH_QUARANTINE_H

#include <jansson.h>
#include <stdint.h>

#include "common/err.h"
#include "common/limits.h"

#define QN_QUARANTINE_FILES_MAX 32
#define QN_QUARANTINE_IDS_MAX 65536u              /* of one list of token ids; a file says how many were left out */
#define QN_QUARANTINE_TEXT_BYTES_MAX (256u << 10) /* of a text */

/* Writes one file and names it in ret_path. Adds "time", in seconds since 1970, to `object` (borrowed). Takes milliseconds.
 * QN_ERR_IO. */
qn_err_t qn_quarantine_write(const char *run_dir, const char *service, uint64_t key, json_t *object,
                             char ret_path[QN_PATH_MAX]);
/* At most QN_QUARANTINE_IDS_MAX of them. Returns owned. */
json_t *qn_quarantine_ids(const uint32_t *ids, size_t count);
/* The text as far as the bound allows; bytes that are no UTF-8 as "\xNN". Returns owned. */
json_t *qn_quarantine_text(const char *text, size_t bytes);

#endif
