/* What is this?      A look over JSON before it is parsed, and after that failed.
 * State owned:       none.
 * Must never:        allocate, recurse, or read behind the text.
 * Read next:         json_fields.c, which asks. */
#include "services/frontend/request/json_scan.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

json_size_t json_scan_size(const char *text, size_t bytes)
{
    json_size_t size = {0};
    uint32_t depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (quoted) {
            if (c == '\\')
                i++;
            else if (c == '"')
                quoted = false;
            continue;
        }
        if (c == '"') quoted = true;
        if (c == ',' || c == '[' || c == '{') size.values++;
        if (c == ':') size.keys++;
        if ((c == '[' || c == '{') && ++depth > size.depth) size.depth = depth;
        if ((c == ']' || c == '}') && depth > 0) depth--;
    }
    return size;
}

#define LEVELS 2 /* of objects whose members are named */
#define NAME_MAX_BYTES 64

typedef struct {
    char names[LEVELS][NAME_MAX_BYTES + 1];
    bool is_list[LEVELS]; /* what the level is */
    uint32_t depth;
} member_path_t;

/* A string at `at` that a colon follows is a name. Returns where it ends. */
static size_t take_string(const char *text, size_t bytes, size_t at, member_path_t *path)
{
    size_t end = at + 1;
    while (end < bytes && text[end] != '"')
        end += text[end] == '\\' ? 2 : 1;
    size_t next = end + 1;
    while (next < bytes && strchr(" \t\r\n", text[next]) && text[next])
        next++;
    bool is_name = next < bytes && text[next] == ':' && path->depth >= 1 && path->depth <= LEVELS &&
                   !path->is_list[path->depth - 1];
    if (!is_name) return end;
    char *name = path->names[path->depth - 1];
    size_t length = end - at - 1 <= NAME_MAX_BYTES ? end - at - 1 : NAME_MAX_BYTES;
    for (size_t i = 0; i < length; i++)
        name[i] = text[at + 1 + i] > 0x20 && text[at + 1 + i] < 0x7F ? text[at + 1 + i] : '?';
    name[length] = '\0';
    return end;
}

void json_scan_member(const char *text, size_t bytes, size_t offset, char *ret_name, size_t room)
{
    member_path_t path = {0};
    for (size_t i = 0; i < bytes && i < offset; i++) {
        char c = text[i];
        if (c == '"') i = take_string(text, bytes, i, &path);
        if ((c == '[' || c == '{') && path.depth++ < LEVELS) {
            path.is_list[path.depth - 1] = c == '[';
            path.names[path.depth - 1][0] = '\0';
        }
        if ((c == ']' || c == '}') && path.depth > 0) path.depth--;
    }
    bool second = path.depth >= 2 && path.names[1][0] && !path.is_list[1];
    snprintf(ret_name, room, "%s%s%s", path.depth >= 1 ? path.names[0] : "", second ? "." : "",
             second ? path.names[1] : "");
}
