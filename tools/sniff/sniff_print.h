/* How the sniffer shows messages: lines for people, lines of JSON, hex dumps. All on standard output. */
#ifndef QN_TOOLS_SNIFF_SNIFF_PRINT_H
#define QN_TOOLS_SNIFF_SNIFF_PRINT_H

#include "tools/sniff/sniff_message.h"

/* `clock_ns` turns monotonic times into times of day (sniff_capture.h). The message is decoded. */
void sniff_print_line(const sniff_message_t *message, uint64_t clock_ns);
/* {"time", "tap", "direction", "type", "bytes", "requests", "message" or "error", "hex" when `with_hex`} */
void sniff_print_json(const sniff_message_t *message, uint64_t clock_ns, bool with_hex);
void sniff_print_hex(const sniff_message_t *message);
/* "12:03:04.123456 -- scheduler: 17 messages missed --", or {"time", "tap", "note", "missed"}. */
void sniff_print_note(const sniff_message_t *message, uint64_t clock_ns, bool json, const char *note);

#endif
