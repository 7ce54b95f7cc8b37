/* The API keys of frontend.api_keys_file: who may use what. One line each:
 *
 *     NAME SCOPE KEY        # and what follows a '#' at the beginning of a line is a comment
 *
 * NAME: 1 to 63 of [A-Za-z0-9._-], for the log; SCOPE: user or admin (who may do all that user may); KEY: 16 to 256
 * visible ASCII characters. No name and no key stands twice. Keys are in no log and in no message. */
#ifndef QN_FRONTEND_HTTP_API_KEYS_H
#define QN_FRONTEND_HTTP_API_KEYS_H

#include <stddef.h>

#include "common/err.h"
#include "services/frontend/http/router.h"

#define API_KEYS_MAX 1024
#define API_KEY_BYTES_MIN 16
#define API_KEY_BYTES_MAX 256

typedef struct api_keys api_keys_t;

/* Reads the file; one that others than its owner can read is warned of. Failure: that of reading; QN_ERR_CONFIG: it breaks
 * a rule, the text names file and line. Returns owned. */
qn_err_t api_keys_read(const char *path, api_keys_t **ret_keys);
/* The same from text, `path` names it in errors. */
qn_err_t api_keys_parse(const char *path, const char *text, size_t bytes, api_keys_t **ret_keys);
/* Overwrites the keys; accepts NULL. */
void api_keys_destroy(api_keys_t **keys);
size_t api_keys_count(const api_keys_t *keys);

/* What the value of an Authorization header ("Bearer KEY"; NULL: there was none) allows: ACCESS_PUBLIC when it is no
 * key's. Takes as long for a wrong key as for a right one, however much of it is right. */
access_t api_keys_scope(const api_keys_t *keys, const char *authorization);

#endif
