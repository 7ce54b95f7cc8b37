/* What config.c, config_keys.c, config_value.c and config_yaml.c share. Not for anyone else. */
#ifndef QN_COMMON_CONFIG_CONFIG_INTERNAL_H
#define QN_COMMON_CONFIG_CONFIG_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>

#include "common/config/config.h"

#define CONFIG_FILE_BYTES_MAX (1u << 20) /* the default file is 8 KiB */
#define CONFIG_KEY_BYTES_MAX 64

/* One "section.key: value" of a file. `quoted`: the value stood in quotes or in a block, so it is text. The strings are
 * valid during the call. Returns a failure that already names file and line. */
typedef qn_err_t qn_config_take_t(void *context, const char *key, const char *value, bool quoted, unsigned line);

/* Reads the file and gives every key to `take`, in file order. Unknown sections, nesting, lists, anchors, tags and
 * YAML errors fail here; keys and values are judged by `take`. */
qn_err_t qn_config_yaml_read(const char *path, qn_config_take_t *take, void *context);

/* Judges `text` by `key` and stores it in `values` (replacing). `where` begins the failure text ("config.yaml:12"). */
qn_err_t qn_config_value_store(qn_config_values_t *values, const qn_config_key_t *key, const char *text,
                               const char *where);
/* Returns owned text of a stored value, in a form that qn_config_value_store takes. */
char *qn_config_value_text(const qn_config_values_t *values, const qn_config_key_t *key);
void qn_config_value_free(qn_config_values_t *values, const qn_config_key_t *key);
/* "8MiB", "4097": the largest unit that keeps it exact. */
void qn_config_format_bytes(uint64_t bytes, char *buffer, size_t capacity);
bool qn_config_kind_is_text(qn_config_kind_t kind);

/* Index of `name` in the table, or -1. */
int qn_config_key_index(const char *name);
bool qn_config_section_exists(const char *name);
/* The known section nearest to `name`, or NULL. */
const char *qn_config_section_suggest(const char *name, char *buffer, size_t capacity);
#endif
