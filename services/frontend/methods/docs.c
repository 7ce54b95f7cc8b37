/* What is this?      The page of the docs: docs.html with the description in it.
 * State owned:       none; the page is part of the binary.
 * Must never:        let the description end the element it stands in.
 * Read next:         docs.html, openapi.c. */
#include "services/frontend/methods/docs.h"

#include <string.h>

__asm__(".section .rodata\n"
        "docs_page: .incbin \"services/frontend/methods/docs.html\"\n"
        ".byte 0\n"
        ".previous\n");
extern const char docs_page[] __attribute__((visibility("hidden")));

#define PLACE "{\"here\":\"openapi\"}" /* in docs.html */

void docs_write(const reply_buffer_t *openapi, reply_buffer_t *out)
{
    const char *place = strstr(docs_page, PLACE), *at = openapi->data, *end = at + openapi->bytes;
    reply_buffer_append(out, docs_page, (size_t)(place - docs_page));
    for (const char *next; at < end; at = next) {
        next = memchr(at, '<', (size_t)(end - at));
        if (!next) next = end;
        reply_buffer_append(out, at, (size_t)(next - at));
        if (next < end) reply_buffer_text(out, "\\u003c"); /* "</script>" would end it */
        next += next < end;
    }
    reply_buffer_text(out, place + strlen(PLACE));
}
