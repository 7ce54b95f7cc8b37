/* What is this?      A short list of texts.
 * State owned:       none; the list is the caller's.
 * Must never:        hold bytes that are not UTF-8: names from files are in it, and it goes out as JSON.
 * Read next:         model_config.c, services/memory/weights/weights.c (who warns). */
#include "common/model/model_warnings.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Bytes of the character that begins here; 0: none does. (Overlong forms and surrogates do not come out of JSON.) */
static size_t character_bytes(const unsigned char *at)
{
    size_t wanted = at[0] >= 0x20 && at[0] < 0x7f ? 1 : at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : at[0] >= 0xc2 ? 2 : 0;
    if (at[0] > 0xf4) return 0;
    for (size_t i = 1; i < wanted; i++)
        if ((at[i] & 0xc0) != 0x80) return 0;
    return wanted;
}

/* Names of files are any bytes, and the buffer's end may have cut a character in two. */
static void make_printable(char *text)
{
    for (size_t i = 0; text[i];) {
        size_t bytes = character_bytes((const unsigned char *)text + i);
        if (bytes == 0) text[i] = '?';
        i += bytes ? bytes : 1;
    }
}

void qn_model_warn(qn_model_warnings_t *warnings, const char *format, ...)
{
    if (!warnings) return;
    char text[QN_MODEL_WARNING_BYTES_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    make_printable(text);
    for (uint32_t i = 0; i < warnings->count; i++)
        if (strcmp(warnings->texts[i], text) == 0) return;
    if (warnings->count == QN_MODEL_WARNINGS_MAX) {
        warnings->dropped++;
        return;
    }
    memcpy(warnings->texts[warnings->count++], text, sizeof text);
}

void qn_model_warnings_append(qn_model_warnings_t *warnings, const qn_model_warnings_t *more)
{
    for (uint32_t i = 0; i < more->count; i++)
        qn_model_warn(warnings, "%s", more->texts[i]);
    warnings->dropped += more->dropped;
}
