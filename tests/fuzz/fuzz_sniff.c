/* libFuzzer target for everything of the sniffer that reads foreign bytes: the first line of the input is a filter, the
 * rest a frame as a tap would give it. Whatever they are: parse, decode, match, summarise. */
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "tools/sniff/sniff_filter.h"
#include "tools/sniff/sniff_summary.h"

static qn_capture_slots_t slots;

static void look_at(qn_capture_message_t *message, const sniff_filter_t *filter)
{
    qn_arena_t arena;
    qn_arena_init(&arena, 4096);
    qn_capture_message_decode(message, &slots, &arena);
    if (filter) sniff_filter_match(filter, message);
    if (message->content) {
        sniff_line_t line = {.bytes = 0};
        sniff_summary_add(&line, message);
        QN_ASSERT(strlen(line.text) == line.bytes);
    }
    qn_arena_fini(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const uint8_t *end = bytes ? memchr(data, '\n', bytes) : NULL;
    size_t length = end ? (size_t)(end - data) : bytes;
    char *text = strndup((const char *)data, length);
    sniff_filter_t *filter = NULL;
    size_t at = 0;
    qn_err_t err = sniff_filter_parse(text, &filter, &at);
    QN_ASSERT(!err == (filter != NULL) && at <= strlen(text));
    size_t skip = end ? length + 1 : bytes;
    qn_tap_header_t header = {.direction = (uint8_t)(bytes & 1), .now_ns = 1, .service = "compute"};
    qn_capture_message_t *message = qn_capture_message_new(&header, data + skip, bytes - skip, 0);
    QN_ASSERT(message != NULL);
    look_at(message, filter);
    free(message);
    sniff_filter_free(&filter);
    free(text);
    return 0;
}
