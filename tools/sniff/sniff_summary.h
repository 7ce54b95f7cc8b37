/* One line of words about a message: what a person would say it does. Types without a row of their own get their
 * scalar fields listed. */
#ifndef QN_TOOLS_SNIFF_SNIFF_SUMMARY_H
#define QN_TOOLS_SNIFF_SNIFF_SUMMARY_H

#include <stddef.h>

#include "common/capture/capture_message.h"

/* A bounded line being written; longer text is cut and ends in "...". Zeroed: empty. */
typedef struct {
    char text[1024];
    size_t bytes;
} sniff_line_t;

void sniff_line_add(sniff_line_t *line, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Text from a wire: control characters and quotes are escaped, at most `bytes_max` bytes are shown. */
void sniff_line_add_text(sniff_line_t *line, qn_text_t text, size_t bytes_max);

/* Appends the summary of a decoded message (content not NULL). */
void sniff_summary_add(sniff_line_t *line, const qn_capture_message_t *message);

#endif
