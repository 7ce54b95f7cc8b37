/* How the sniffer shows messages: lines for people, lines of JSON, hex dumps. All on standard output. */
#ifndef QN_TOOLS_SNIFF_SNIFF_PRINT_H
#define QN_TOOLS_SNIFF_SNIFF_PRINT_H

#include "common/capture/capture_message.h"

/* `clock_ns` turns monotonic times into times of day (capture_file.h). The message is decoded. */
void sniff_print_line(const qn_capture_message_t *message, uint64_t clock_ns);
/* {"time", "tap", "direction", "type", "bytes", "requests", "message" or "error", "hex" when `with_hex`} */
void sniff_print_json(const qn_capture_message_t *message, uint64_t clock_ns, bool with_hex);
void sniff_print_hex(const qn_capture_message_t *message);
/* "12:03:04.123456 -- scheduler: 17 messages missed --", or {"time", "tap", "note", "missed"}. */
void sniff_print_note(const qn_capture_message_t *message, uint64_t clock_ns, bool json, const char *note);

#endif
