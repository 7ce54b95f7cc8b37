/* JSON as Python's json module writes and reads it, which is what model files hold: NaN, Infinity and -Infinity, whole
 * numbers of any length, real numbers beyond a double, lone surrogates and NUL in texts. Keys that nobody reads may
 * hold any of it. For files of a model only: what comes over HTTP is JSON as RFC 8259 has it. */
#ifndef QN_COMMON_MODEL_PYTHON_JSON_H
#define QN_COMMON_MODEL_PYTHON_JSON_H

#include <jansson.h>
#include <stddef.h>

/* Parses `bytes` of `text`, which may be binary. A number without a value of its own becomes its name, a string
 * ("NaN", "Infinity", "-Infinity"), so that whoever reads it as a number refuses it; a whole number beyond 64 bits
 * becomes a real one; a lone surrogate or NUL becomes U+FFFD. Of equal keys the last counts. Returns owned; NULL: not
 * JSON, and *ret_error says why and in which line. */
json_t *qn_python_json_load(const char *text, size_t bytes, json_error_t *ret_error);

#endif
